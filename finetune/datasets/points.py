"""The plain layout: `{train,val,test}/{images,points}` or a flat `{images,points}`, one CSV an image.

`dataset.json` beside them says what pixels cannot: `mpp`, `classes` (name and value in the files, in order),
`origin` ("corner" or "pixel_index") and `slides` (image path -> slide key). What it leaves out comes from
the command line.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from finetune.datasets.annotated_data import SPLITS, AnnotatedData, Tile, image_size, split_by_slide
from shared.command_line import UserError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff"}
ORIGIN_OFFSETS = {"corner": 0.0, "pixel_index": 0.5}
# The paper's shares for data sets without published splits (Experimental Setup).
SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}


@dataclass(frozen=True)
class Description:
    """What a folder of images and points does not say itself."""

    mpp: float | None = None
    classes: Mapping[str, str] = field(default_factory=dict)
    """Class name -> its value in the files, in the order of the model's outputs; empty: from the files."""
    origin: str = "corner"
    slides: Mapping[str, str] = field(default_factory=dict)
    """Image path relative to the data folder -> slide key; an image that is not named is its own slide."""
    val: frozenset[str] = frozenset()
    """Stems of training images that form the validation split."""


def is_points(folder: Path) -> bool:
    """Whether the folder has this layout."""
    return any((root / "images").is_dir() and (root / "points").is_dir() for root in _roots(folder).values())


def describe(folder: Path) -> Description:
    """Read `dataset.json`, if there is one.

    Raises:
        UserError: it is not JSON, or a field in it has no usable value.
    """
    path = folder / "dataset.json"
    if not path.exists():
        return Description()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Description(
            mpp=None if content.get("mpp") is None else float(content["mpp"]),
            classes={str(entry["name"]): str(entry["value"]) for entry in content.get("classes", [])},
            origin=content.get("origin", "corner"),
            slides={str(image): str(key) for image, key in content.get("slides", {}).items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not a data set description ({error}); it holds e.g. "
            '{"mpp": 0.5, "classes": [{"name": "tumour", "value": 1}], "origin": "corner"}'
        ) from error


def load_points(folder: Path, description: Description) -> AnnotatedData:
    """Read every annotation; images are only opened for their size.

    Raises:
        UserError: no resolution; an image without annotation or the reverse; a bad row.
    """
    if description.mpp is None:
        raise UserError(
            f'{folder} does not say its resolution; write "mpp" into {folder / "dataset.json"} '
            "or give --slide-mpp (um/px of the images)"
        )
    if description.origin not in ORIGIN_OFFSETS:
        raise UserError(f"origin {description.origin!r} of {folder} is neither corner nor pixel_index")
    roots = {name: root for name, root in _roots(folder).items() if (root / "images").is_dir()}
    pairs = {name: _pairs(root) for name, root in roots.items()}
    values = description.classes or _values_in([points for each in pairs.values() for _, points in each])
    tiles = {
        name: [_read_tile(folder, image, points, values, description) for image, points in each]
        for name, each in pairs.items()
    }
    splits = _splits(tiles, description.val)
    ordered = {name: splits[name] for name in SPLITS if splits.get(name)}
    return AnnotatedData(folder, description.mpp, tuple(values), ordered)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV with columns x, y and class (others are ignored); row numbers are file lines.

    Raises:
        UserError: not UTF-8 text, or a column is missing.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if rows.fieldnames is None or not {"x", "y", "class"} <= set(rows.fieldnames):
                raise UserError(f"{path} has no header with the columns x,y,class in its first line")
            return list(rows)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV text file ({error})") from error


def _roots(folder: Path) -> dict[str, Path]:
    """Folders that hold images and points: one per split, or the data folder itself under ''."""
    split = {name: folder / name for name in SPLITS if (folder / name).is_dir()}
    return split or {"": folder}


def _pairs(root: Path) -> list[tuple[Path, Path]]:
    images = {path.stem: path for path in sorted((root / "images").iterdir()) if _is_image(path)}
    points = {path.stem: path for path in sorted((root / "points").glob("*.csv"))}
    for stem in sorted(images.keys() ^ points.keys()):
        if stem in images:
            raise UserError(
                f"{images[stem]} has no annotation {root / 'points' / stem}.csv (empty but for x,y,class?)"
            )
        raise UserError(f"{points[stem]} belongs to no image in {root / 'images'}")
    if not images:
        raise UserError(f"{root / 'images'} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return [(images[stem], points[stem]) for stem in images]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _values_in(paths: Sequence[Path]) -> dict[str, str]:
    """Classes as found in the files, numbers in numeric order: name -> value."""
    found = {row["class"].strip() for path in paths for row in read_csv(path) if row["class"]}
    ordered = sorted(found, key=lambda value: (not value.isdigit(), int(value) if value.isdigit() else 0, value))
    return {f"class {value}" if value.isdigit() else value: value for value in ordered}


def _read_tile(
    folder: Path, image: Path, points: Path, values: Mapping[str, str], description: Description
) -> Tile:
    size = image_size(image)
    label_of = {value: label for label, value in enumerate(values.values())}
    cells = [
        _cell(f"{points}, line {line}", row, label_of, values, size)
        for line, row in enumerate(read_csv(points), start=2)
    ]
    xy_N2 = np.array([cell[:2] for cell in cells], np.float32).reshape(-1, 2)
    return Tile(
        image=image,
        slide=description.slides.get(image.relative_to(folder).as_posix(), image.stem),
        points_N2=xy_N2 + np.float32(ORIGIN_OFFSETS[description.origin]),
        labels_N=np.array([cell[2] for cell in cells], np.int64),
    )


def _cell(
    where: str,
    row: dict[str, Any],
    label_of: Mapping[str, int],
    values: Mapping[str, str],
    size: tuple[int, int],
) -> tuple[float, float, int]:
    try:
        x, y = float(row["x"]), float(row["y"])
    except (TypeError, ValueError):
        raise UserError(f"{where}: x={row['x']!r}, y={row['y']!r} are not two numbers") from None
    if not (0 <= x <= size[0] and 0 <= y <= size[1]):
        raise UserError(f"{where}: the point ({x:g}, {y:g}) lies outside its image of {size[0]}x{size[1]} px")
    value = (row["class"] or "").strip()
    if value not in label_of:
        known = ", ".join(f"{value} ({name})" for name, value in values.items())
        raise UserError(f"{where}: class {value!r} is none of {known}")
    return x, y, label_of[value]


def _splits(tiles: dict[str, list[Tile]], val: frozenset[str]) -> dict[str, list[Tile]]:
    """Published or given splits as they are; else whole slides dealt out 6:2:2, or a fifth of train as val."""
    if "" in tiles:
        return split_by_slide(tiles[""], SHARES)
    train = tiles.get("train", [])
    if val:
        chosen = [tile for tile in train if tile.image.stem in val]
        rest = [tile for tile in train if tile.image.stem not in val]
        return {**tiles, "train": rest, "val": chosen}
    if train and "val" not in tiles:
        return {**tiles, **split_by_slide(train, {"train": 0.8, "val": 0.2})}
    return tiles
