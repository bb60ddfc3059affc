"""`dataset.json`: facts that a folder of images and points does not state itself."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.datasets.dataset import SPLITS
from shared.annotations.bounded_files import read_json
from shared.annotations.features import class_value
from shared.errors import UserError
from shared.wsi.resolution import MPP_RANGE

NAME = "dataset.json"
ANY_CELL = "any cell"
FIELDS = ("format", "mpp", "classes", "origin", "splits", "slides", "patients")
FORMATS = ("points", "consep", "bcdata", "ocelot")
# Offset of coordinates in the files that makes (0, 0) the outer corner of the first pixel.
ORIGIN_OFFSETS = {"corner": 0.0, "pixel_index": 0.5}


@dataclass(frozen=True)
class Description:
    """Facts about a whole data set; None or empty: not stated."""

    format: str | None = None
    mpp: float | None = None
    classes: Mapping[str, str] = field(default_factory=dict)
    """Class name -> its value in the files, in the order of the model's outputs; empty: from the files."""
    origin: str = "corner"
    slides: Mapping[str, str] = field(default_factory=dict)
    """Image path relative to the data folder -> slide key; an image without an entry is its own slide."""
    patients: Mapping[str, str] = field(default_factory=dict)
    """Slide key -> patient; tiles of one patient stay in one split."""
    splits: Mapping[str, str] = field(default_factory=dict)
    """Image path relative to the data folder -> split; overrides the folder of the image."""
    val: frozenset[str] = frozenset()
    """Stems of training images that form the validation split."""


def describe(folder: Path, known: Description) -> Description:
    """Read `dataset.json`, if it exists; its entries override the facts known of a published data set.

    Raises:
        UserError: it is not JSON, or a field in it is unknown or has no usable value.
    """
    path = folder / NAME
    if not path.exists():
        return known
    try:
        return dataclasses.replace(known, **_given(read_json(path)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not a data set description ({error}); it holds e.g. "
            '{"mpp": 0.5, "classes": [{"name": "tumour", "value": 1}], "origin": "corner"}'
        ) from error


def checked(folder: Path, description: Description) -> float:
    """Validate a description; returns the resolution in um/px.

    Raises:
        UserError: no resolution or an impossible one, an unknown origin.
    """
    if description.mpp is None:
        raise UserError(
            f'{folder} does not state its resolution; write "mpp" into {folder / NAME} '
            "or give --slide-mpp (um/px of the images)"
        )
    if not MPP_RANGE[0] <= description.mpp <= MPP_RANGE[1]:
        raise UserError(f"{description.mpp:g} um/px is not a resolution of {folder}; give it with --slide-mpp")
    if description.origin not in ORIGIN_OFFSETS:
        raise UserError(f"origin {description.origin!r} of {folder} is neither corner nor pixel_index")
    return description.mpp


def class_values(pairs: list[tuple[str, str]], where: str) -> dict[str, str]:
    """Map class names to their values in the files.

    Raises:
        UserError: a name or a value occurs twice, or a name is reserved.
    """
    pairs = [(name, class_value(value)) for name, value in pairs]
    if ANY_CELL in (name for name, _ in pairs):
        raise UserError(f"{where} has a class {ANY_CELL!r}, the name of the scores of all classes; rename it")
    for words in ([name for name, _ in pairs], [value for _, value in pairs]):
        if repeated := sorted({word for word in words if words.count(word) > 1}):
            raise UserError(f"{where} has {repeated[0]!r} twice among its classes; give each its own")
    return dict(pairs)


def _given(content: dict[str, Any]) -> dict[str, Any]:
    """Parse the fields of a description in a file."""
    if unknown := sorted(content.keys() - set(FIELDS)):
        raise ValueError(f"it has an unknown field {unknown[0]!r}; known are {', '.join(FIELDS)}")
    if content.get("format", "points") not in FORMATS:
        raise ValueError(f"format {content['format']!r} is none of {', '.join(FORMATS)}")
    readers: dict[str, Callable[[Any], Any]] = {
        "format": str,
        "mpp": float,
        "classes": _classes,
        "origin": str,
        "slides": _texts,
        "patients": _texts,
        "splits": _split_of,
    }
    return {name: readers[name](value) for name, value in content.items() if value is not None}


def _classes(entries: list[dict[str, Any]]) -> dict[str, str]:
    return class_values([(str(entry["name"]), str(entry["value"])) for entry in entries], NAME)


def _texts(entries: dict[str, Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in entries.items()}


def _split_of(splits: dict[str, list[str]]) -> dict[str, str]:
    """Convert split -> images to image -> split."""
    if unknown := sorted(splits.keys() - set(SPLITS)):
        raise ValueError(f"split {unknown[0]!r} is none of {', '.join(SPLITS)}")
    pairs = [(str(image), name) for name, images in splits.items() for image in images]
    if len(dict(pairs)) < len(pairs):
        raise ValueError("an image is listed twice in the splits")
    return dict(pairs)
