"""BCData (Huang et al. 2020): Ki-67 at 40x, positive and negative tumour cells as HDF5 coordinates.

`images/{train,validation,test}/N.png` and `annotations/{train,validation,test}/{positive,negative}/N.h5`.
"""

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from finetune.datasets.annotations.listed_cells import ListedCell
from finetune.datasets.dataset import AnnotatedData, Tile
from finetune.datasets.description import Description, checked
from finetune.datasets.pairing import by_stem, images_in, paired, require_known_folders
from finetune.datasets.splits import arrange
from finetune.datasets.tiles import read_tiles
from shared.errors import UserError

LAYOUT = "BCData's {images,annotations}/{train,validation,test}"
# A class's value is the name of its folder. 40x: 0.25 um/px.
DEFAULTS = Description(mpp=0.25, classes={"positive": "positive", "negative": "negative"}, origin="pixel_index")
RADIUS = 10  # px (paper, Table 2)
FOLDERS = {"train": "train", "val": "validation", "test": "test"}
KINDS = ("positive", "negative")
DATASET = "coordinates"


def matches(folder: Path) -> bool:
    """Test if the folder holds BCData."""
    return any((folder / "annotations" / name / KINDS[0]).is_dir() for name in FOLDERS.values())


def load(folder: Path, description: Description) -> AnnotatedData:
    """Read every annotation, and every image once; a split whose folder is missing is left out.

    Raises:
        UserError: an image or annotation has no partner, or is malformed.
    """
    mpp = checked(folder, description)
    require_known_folders(folder / "images", FOLDERS.values())
    tiles = {
        name: _read_tiles(folder, inner, description)
        for name, inner in FOLDERS.items()
        if any((folder / part / inner).is_dir() for part in ("images", "annotations"))
    }
    splits = arrange(folder, tiles, description)
    return AnnotatedData(folder, mpp, tuple(description.classes), splits, RADIUS * mpp)


def _read_tiles(folder: Path, inner: str, description: Description) -> list[Tile]:
    images = images_in(folder / "images" / inner)
    annotations = [_annotations(folder / "annotations" / inner / kind, images) for kind in KINDS]
    pairs = [(image, [each[image] for each in annotations]) for image in images.values()]
    return read_tiles(folder, pairs, _list_cells, description)


def _annotations(folder: Path, images: dict[str, Path]) -> dict[Path, Path]:
    """Map images to their annotations of one kind."""
    return dict(paired(images, by_stem(sorted(folder.glob("[!.]*.h5"))), f"{folder}/{{stem}}.h5"))


def _list_cells(paths: list[Path]) -> Iterator[ListedCell]:
    """List the cells of an image, the positive ones first."""
    for kind, path in zip(KINDS, paths, strict=True):
        for number, (x, y) in enumerate(_coordinates(path).tolist(), 1):
            yield ListedCell(f"{path}, row {number}", x, y, kind)


def _coordinates(path: Path) -> np.ndarray:
    """Read pixel indices (x, y) as (N, 2); without cells, files hold an empty array of any shape."""
    try:
        with h5py.File(path) as file:
            content = np.asarray(file[DATASET][()], np.float64) if file[DATASET].size else np.empty((0, 2))
    except KeyError as error:
        raise UserError(f"{path} has no data set {DATASET!r}; BCData's annotations have") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as BCData's HDF5 coordinates ({error})") from error
    if content.size and (content.ndim != 2 or content.shape[1] != 2):
        raise UserError(f"{path} has coordinates of shape {content.shape}, not one (x, y) a row")
    return content.reshape(-1, 2)
