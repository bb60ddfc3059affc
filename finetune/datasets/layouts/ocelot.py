"""OCELOT v1.0.1 (Ryu et al. 2023): background and tumour cells in H&E patches of 1024 x 1024 px.

`images/SPLIT/cell/NNN.jpg`, `annotations/SPLIT/cell/NNN.csv` (x,y,class without a header; empty: no cells) and
`metadata.json`, which knows every patch's slide and resolution. A split without annotations is left out. Where
train alone is annotated it is dealt out 6:2:2 by slide, as in the paper. Tissue patches are not read: a cell
patch is never in the middle of one, so that they give no wider view around it.
"""

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from finetune.datasets.annotations.listed_cells import ListedCell
from finetune.datasets.dataset import SPLITS, AnnotatedData, OfficialRule, Tile
from finetune.datasets.description import Description, checked
from finetune.datasets.pairing import by_stem, images_in, paired, require_known_folders
from finetune.datasets.splits import arrange
from finetune.datasets.tiles import read_tiles
from shared.annotations.bounded_files import read_json, read_rows
from shared.errors import UserError

SIDE = 1024  # px of an image; submitted coordinates are 0..1023
Entry = TypeVar("Entry")
LAYOUT = "OCELOT's {images,annotations}/{train,val,test}/cell with metadata.json"
# Values of the classes in the CSV files (metadata.json, label_info).
DEFAULTS = Description(classes={"background cell": "1", "tumour cell": "2"}, origin="pixel_index")
METADATA = "metadata.json"
RADIUS = 15  # px, about 3 um (the official evaluation; the paper prints 9 px)
# All cell patches of v1.0.1 have 0.194 um/px to three digits; another resolution is another data set.
MPP_TOLERANCE = 0.02


@dataclass(frozen=True)
class Patch:
    """Slide and resolution of a cell patch, from `metadata.json`."""

    slide: str
    mpp: float

    @classmethod
    def from_metadata(cls, pair: Mapping[str, Any]) -> "Patch":
        """Read an entry of `sample_pairs`; raises KeyError where a field is missing, TypeError and ValueError."""
        cell = pair["cell"]
        mpp_x, mpp_y = float(cell["resized_mpp_x"]), float(cell["resized_mpp_y"])
        if not 0 < mpp_x < float("inf") or abs(mpp_y / mpp_x - 1) > MPP_TOLERANCE:
            raise ValueError(f"{mpp_x:g} x {mpp_y:g} um/px is not a resolution of square pixels")
        return cls(str(pair["slide_name"]), mpp_x)


def matches(folder: Path) -> bool:
    """Test if the folder holds OCELOT."""
    return any((folder / "annotations" / name / "cell").is_dir() for name in SPLITS)


def load(folder: Path, description: Description) -> AnnotatedData:
    """Read the metadata, every annotation, and every image once.

    Raises:
        UserError: the metadata is missing, damaged or lacks a patch; an image or annotation has no partner or is
            malformed; patches have different resolutions.
    """
    require_known_folders(folder / "images", SPLITS)
    pairs = {name: _pairs(folder, name) for name in SPLITS if (folder / "annotations" / name / "cell").is_dir()}
    patches = _patches(folder / METADATA, [image.stem for each in pairs.values() for image, _ in each])
    mpp = checked(folder, description) if description.mpp is not None else _common_mpp(folder, patches)
    slides = {stem: patch.slide for stem, patch in patches.items()}
    tiles = {name: read_tiles(folder, each, _list_cells, description, slides) for name, each in pairs.items()}
    splits = arrange(folder, {"": tiles["train"]} if tiles.keys() == {"train"} else tiles, description)
    official = _official(description.classes, (tile for each in splits.values() for tile in each))
    return AnnotatedData(folder, mpp, tuple(description.classes), splits, RADIUS * mpp, official)


def _official(classes: Mapping[str, str], tiles: Iterable[Tile]) -> OfficialRule:
    """Return the challenge's score; it needs the two classes, by any names, and images of its size."""
    values, official = list(classes.values()), list(DEFAULTS.classes.values())
    if sorted(values) != sorted(official):
        return OfficialRule(
            "OCELOT", absent=f"it is of the classes {' and '.join(official)}, not of {', '.join(values)}"
        )
    for tile in tiles:
        if tile.size != (SIDE, SIDE):
            width, height = tile.size
            return OfficialRule(
                "OCELOT", absent=f"it is for images of {SIDE}x{SIDE} px; {tile.image} has {width}x{height}"
            )
    return OfficialRule("OCELOT", tuple(values.index(value) for value in official))


def _pairs(folder: Path, split: str) -> list[tuple[Path, Path]]:
    images, annotations = (folder / kind / split / "cell" for kind in ("images", "annotations"))
    if not images.is_dir():
        raise UserError(f"{annotations} belongs to no images; {images} is missing")
    return paired(images_in(images), by_stem(sorted(annotations.glob("[!.]*.csv"))), f"{annotations}/{{stem}}.csv")


def _patches(path: Path, stems: list[str]) -> dict[str, Patch]:
    """Read the metadata of the patches."""
    known = sample_pairs(path)
    return {stem: of_sample(Patch.from_metadata, path, known, stem) for stem in stems}


def sample_pairs(path: Path) -> Mapping[str, Any]:
    """Read the entries of `metadata.json` by the name of the sample.

    Raises:
        UserError: the file is missing, or not the metadata of OCELOT.
    """
    try:
        known: Mapping[str, Any] = read_json(path)["sample_pairs"]
    except FileNotFoundError as error:
        raise UserError(f"there is no {path}, which states OCELOT's resolution and slides; add it") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not the metadata of OCELOT v1.0.1: no sample_pairs in it ({error})") from error
    return known


def of_sample(read: Callable[[Any], Entry], path: Path, known: Mapping[str, Any], stem: str) -> Entry:
    """Parse a sample of the metadata in `path` by `read`.

    Raises:
        UserError: the sample is missing or malformed.
    """
    try:
        return read(known[stem])
    except KeyError as error:
        raise UserError(f"{path} has no {error.args[0]!r} for sample {stem!r}") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}, sample {stem!r}: {error}") from error


def _common_mpp(folder: Path, patches: Mapping[str, Patch]) -> float:
    mpp = statistics.median(patch.mpp for patch in patches.values())
    for stem, patch in patches.items():
        if abs(patch.mpp / mpp - 1) > MPP_TOLERANCE:
            raise UserError(
                f"{folder / METADATA}, sample {stem!r}: {patch.mpp:g} um/px, while the others have {mpp:g}; "
                "resample its patch or leave it out"
            )
    return mpp


def _list_cells(path: Path) -> Iterator[ListedCell]:
    """List the cells of a CSV file without a header."""
    for line, row in read_rows(path):
        if row and len(row) != 3:
            raise UserError(f"{path}, line {line}: {len(row)} fields instead of x,y,class")
        if row:
            yield ListedCell(f"{path}, line {line}", row[0], row[1], row[2].strip())
