"""Cells as a file lists them, and their conversion to points and labels."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.errors import UserError


@dataclass(frozen=True, slots=True)
class ListedCell:
    """Cell as written in a file, not checked yet."""

    where: str
    """File and row, for error messages."""
    x: Any
    y: Any
    value: str
    """Its class as the file writes it."""


def place_cells(
    cells: Iterable[ListedCell], size: tuple[int, int], values: Mapping[str, str], offset: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return points (N, 2), px from the outer corner of the first pixel, and labels (N,) of an image's cells.

    Args:
        cells: As listed in the file.
        size: Width and height in px of the image that the coordinates are meant for.
        values: Class name -> its value in the file; the order gives the labels.
        offset: Added to the coordinates in the file.

    Raises:
        UserError: a row is malformed, outside its image, or of an unknown class.
    """
    label_of = {value: label for label, value in enumerate(values.values())}
    placed = [(*_point(cell, size, offset), _label(cell, label_of, values)) for cell in cells]
    xy_N2 = np.array([cell[:2] for cell in placed], np.float32).reshape(-1, 2)
    return xy_N2, np.array([cell[2] for cell in placed], np.int64)


def ordered_values(found: Collection[str]) -> dict[str, str]:
    """Name the classes found in files, numbers in numeric order: name -> value.

    Raises:
        UserError: a number and a word would get the same name.
    """
    numbers = {value: int(value) for value in found if value.isdecimal()}
    name_of = {value: f"class {value}" for value in sorted(numbers, key=lambda value: (numbers[value], value))}
    words = sorted(set(found) - numbers.keys())
    for number, name in name_of.items():
        if name in words:
            raise UserError(
                f"some annotations have class {number!r}, others {name!r}; write one of them everywhere, "
                "or name both classes with --classes NAME=VALUE ..."
            )
    return {name: value for value, name in name_of.items()} | {word: word for word in words}


def _point(cell: ListedCell, size: tuple[int, int], offset: float) -> tuple[float, float]:
    try:
        x, y = float(cell.x) + offset, float(cell.y) + offset
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{cell.where}: x={cell.x!r}, y={cell.y!r} are not two numbers") from None
    if not (0 <= x <= size[0] and 0 <= y <= size[1]):
        point = f"({x - offset:g}, {y - offset:g})"
        raise UserError(f"{cell.where}: the point {point} is outside its image of {size[0]}x{size[1]} px")
    return x, y


def _label(cell: ListedCell, label_of: Mapping[str, int], values: Mapping[str, str]) -> int:
    if not cell.value:
        raise UserError(f"{cell.where}: the cell has no class; give it one, or remove the row")
    if cell.value not in label_of:
        known = ", ".join(f"{value} ({name})" if value != name else value for name, value in values.items())
        raise UserError(f"{cell.where}: class {cell.value!r} is none of {known}")
    return label_of[cell.value]
