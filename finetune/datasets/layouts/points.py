"""Plain layout: `{train,val,test}/{images,points}` or a flat `{images,points}`, one annotation an image."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from finetune.datasets.annotations import csv_file, json_file
from finetune.datasets.annotations.listed_cells import ListedCell, ordered_values
from finetune.datasets.dataset import SPLITS, AnnotatedData
from finetune.datasets.description import Description, checked, class_values
from finetune.datasets.pairing import by_stem, images_in, paired
from finetune.datasets.splits import arrange
from finetune.datasets.tiles import read_tiles
from shared.annotations.features import is_ignored
from shared.errors import UserError

DEFAULTS = Description()
LAYOUT = "{train,val,test}/{images,points} or a flat {images,points} with one .csv, .json or .geojson an image"
# Readers of annotations, by suffix in lower case.
LISTERS: Mapping[str, Callable[[Path], Iterator[ListedCell]]] = {
    ".csv": csv_file.list_cells,
    ".json": json_file.list_cells,
    ".geojson": json_file.list_cells,
}


def matches(folder: Path) -> bool:
    """Test if the folder has this layout."""
    return any((root / "images").is_dir() and (root / "points").is_dir() for root in _roots(folder).values())


def load(folder: Path, description: Description) -> AnnotatedData:
    """Read every annotation, and every image once.

    Raises:
        UserError: the resolution is missing; a folder, image or annotation has no partner; a slide is in two
            splits; a row is malformed; an image cannot be decoded.
    """
    mpp = checked(folder, description)
    roots = {name: root for name, root in _roots(folder).items() if (root / "images").is_dir()}
    _require_known_folders(folder, roots)
    listed = {
        name: [(image, list(_list_cells(path))) for image, path in _pairs(root)] for name, root in roots.items()
    }
    annotations = [cells for each in listed.values() for _, cells in each]
    ignored = _drop_ignored(annotations, description.classes)
    values = description.classes or _found(folder, annotations)
    if not values:
        raise UserError(f"no annotation in {folder} has a cell, so there are no classes; name them with --classes")
    described = dataclasses.replace(description, classes=values)
    tiles = {name: read_tiles(folder, each, iter, described) for name, each in listed.items()}
    splits = arrange(folder, tiles, description)
    found = not description.classes
    return AnnotatedData(folder, mpp, tuple(values), splits, classes_found=found, ignored_cells=ignored)


def _roots(folder: Path) -> dict[str, Path]:
    """Find the folders of images and points: one per split, or the data folder itself under ''."""
    split = {name: folder / name for name in SPLITS if (folder / name).is_dir()}
    return split or {"": folder}


def _require_known_folders(folder: Path, roots: Mapping[str, Path]) -> None:
    """Refuse images beside the folders that are read: they would be left out silently."""
    beside = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    for path in beside:
        if path not in roots.values() and (path / "images").is_dir():
            raise UserError(
                f"{path / 'images'} is not read, because {folder} is divided into {', '.join(roots)}; "
                f"move it out, or into one of {', '.join(SPLITS)}"
            )


def _pairs(root: Path) -> list[tuple[Path, Path]]:
    """Pair images with their annotations."""
    annotations = by_stem(
        path for path in sorted((root / "points").glob("[!.]*")) if path.suffix.lower() in LISTERS
    )
    missing = f"{root / 'points'}/{{stem}}.csv, .json or .geojson (without cells: a CSV with x,y,class alone?)"
    return paired(images_in(root / "images"), annotations, missing)


def _list_cells(path: Path) -> Iterator[ListedCell]:
    return LISTERS[path.suffix.lower()](path)


def _found(folder: Path, annotations: list[list[ListedCell]]) -> dict[str, str]:
    """Name the classes found in the files."""
    values = ordered_values({cell.value for cells in annotations for cell in cells} - {""})
    return class_values(list(values.items()), str(folder))


def _drop_ignored(annotations: list[list[ListedCell]], named: Mapping[str, str]) -> dict[str, int]:
    """Remove cells of QuPath's ignored classes that no description names; returns their number by class."""
    dropped: Counter[str] = Counter()
    for cells in annotations:
        ignored = [is_ignored(cell.value) and cell.value not in named.values() for cell in cells]
        dropped.update(cell.value for cell, drop in zip(cells, ignored, strict=True) if drop)
        cells[:] = [cell for cell, drop in zip(cells, ignored, strict=True) if not drop]
    return dict(dropped)
