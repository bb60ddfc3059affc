"""CoNSeP (Graham et al. 2019), as published at 40x and as points at 20x; both are read at 20x, 0.5 um/px.

As published: `{Train,Test}/{Images/*.png,Labels/*.mat}`, tiles of 1000 x 1000 px, reduced to 500 x 500 while
they are read. As points: `{train,test}/{images,points}` of the same tiles, reduced already.
"""

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import scipy.io
from scipy.io.matlab import MatReadError

from finetune.datasets.annotations.listed_cells import ListedCell, place_cells
from finetune.datasets.dataset import AnnotatedData, Tile, image_sizes
from finetune.datasets.description import NAME, ORIGIN_OFFSETS, Description, checked
from finetune.datasets.layouts import points
from finetune.datasets.pairing import by_stem, images_in, paired
from finetune.datasets.splits import arrange, slide_of
from finetune.datasets.wider_views import wider_views
from shared.errors import UserError

LAYOUT = "CoNSeP's {Train,Test}/{Images,Labels}"
MPP = 0.5  # of the tiles as read (paper: 20x)
# Table 2's classes, with their values in files of points.
DEFAULTS = Description(
    mpp=MPP,
    classes={"inflammatory": "1", "epithelial": "2", "stromal": "3"},
    origin="pixel_index",
    # The validation tiles behind the paper's counts (MCSpatNet's published split).
    val=frozenset({"train_5", "train_8", "train_11", "train_16", "train_23"}),
)
# HoVer-Net's seven types -> the values above: other, inflammatory, healthy and malignant epithelial,
# fibroblast, muscle, endothelial. This grouping alone reproduces Table 2's 13,040 / 2,515 / 8,777 cells.
GROUP_OF_TYPE = {1: "3", 2: "1", 3: "2", 4: "2", 5: "3", 6: "3", 7: "3"}
PUBLISHED_SIZE = (1000, 1000)
REDUCTION = 2  # 40x -> 20x
FOLDERS = {"train": "Train", "test": "Test"}


def matches(folder: Path) -> bool:
    """Test if the folder holds CoNSeP; as points, by the names of its tiles, if no dataset.json describes it."""
    names = ("train/images/train_1.png", "test/images/test_1.png", "train/points/train_1.csv")
    as_points = all((folder / name).exists() for name in names) and not (folder / NAME).exists()
    return as_points or bool(_published(folder))


def load(folder: Path, description: Description) -> AnnotatedData:
    """Read every annotation, and every image once; a split whose folder is missing is left out.

    Raises:
        UserError: an image or annotation has no partner, or is malformed.
    """
    roots = _published(folder)
    if not roots:
        return points.load(folder, description)
    mpp = checked(folder, description)
    if abs(mpp / MPP - 1) > 0.05:
        raise UserError(
            f"{folder} is CoNSeP at 40x, whose tiles are reduced to {MPP} um/px as they are read; leave out "
            f'--slide-mpp and "mpp" in {NAME}'
        )
    tiles = {name: _read_tiles(folder, root, description) for name, root in roots.items()}
    return AnnotatedData(folder, mpp, tuple(description.classes), arrange(folder, tiles, description))


def _published(folder: Path) -> dict[str, Path]:
    """Find the folders of the published form, by split."""
    roots = {name: folder / capital for name, capital in FOLDERS.items()}
    return {
        name: root for name, root in roots.items() if (root / "Images").is_dir() and (root / "Labels").is_dir()
    }


def _read_tiles(folder: Path, root: Path, description: Description) -> list[Tile]:
    labels = by_stem(sorted((root / "Labels").glob("[!.]*.mat")))
    pairs = paired(images_in(root / "Images"), labels, f"{root / 'Labels'}/{{stem}}.mat")
    sizes = image_sizes(image for image, _ in pairs)
    return [_tile(folder, *pair, size, description) for pair, size in zip(pairs, sizes, strict=True)]


def _tile(folder: Path, image: Path, label: Path, size: tuple[int, int], description: Description) -> Tile:
    if size != PUBLISHED_SIZE:
        width, height = PUBLISHED_SIZE
        raise UserError(f"{image} has {size[0]}x{size[1]} px, not the {width}x{height} of CoNSeP's tiles at 40x")
    offset = ORIGIN_OFFSETS[description.origin]
    points_N2, labels_N = place_cells(_list_cells(label), size, description.classes, offset)
    reduced = (size[0] // REDUCTION, size[1] // REDUCTION)
    slide = slide_of(folder, image, description)
    wider = wider_views(image)
    return Tile(image, slide, reduced, points_N2 / np.float32(REDUCTION), labels_N, REDUCTION, wider)


def _list_cells(path: Path) -> Iterator[ListedCell]:
    """List the nuclei of a label file: centroids (x, y), pixel indices of the 40x tile."""
    fields = _fields(path)
    types_N, centroids_N2 = fields["inst_type"].ravel(), fields["inst_centroid"].reshape(-1, 2)
    if len(types_N) != len(centroids_N2):
        raise UserError(f"{path} has {len(types_N)} rows in inst_type but {len(centroids_N2)} in inst_centroid")
    for number, (kind, (x, y)) in enumerate(zip(types_N.tolist(), centroids_N2.tolist(), strict=True), 1):
        if kind not in GROUP_OF_TYPE:
            raise UserError(f"{path}, row {number} of inst_type: {kind:g} is none of CoNSeP's types 1 to 7")
        yield ListedCell(f"{path}, row {number} of inst_centroid", x, y, GROUP_OF_TYPE[kind])


def _fields(path: Path) -> Mapping[str, np.ndarray]:
    """Read the types and centroids of nuclei as numbers."""
    names = ("inst_type", "inst_centroid")
    try:
        content = scipy.io.loadmat(path, variable_names=names)
        return {name: np.asarray(content[name], np.float64) for name in names}
    except KeyError as error:
        raise UserError(f"{path} has no {error.args[0]}; CoNSeP's labels have {' and '.join(names)}") from error
    except (OSError, ValueError, TypeError, NotImplementedError, MatReadError, zlib.error) as error:
        raise UserError(f"{path} cannot be read as CoNSeP's MATLAB labels ({error})") from error
