"""The annotation of one image as a CSV with the columns x, y, class; other columns are ignored."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared.command_line import UserError

COLUMNS = {"x", "y", "class"}


def read_cells(
    path: Path, size: tuple[int, int], values: Mapping[str, str], offset: float
) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 2), px from the outer corner of the first pixel, and labels (N,) of an image's cells.

    Args:
        path: The CSV.
        size: Width and height of the image in px.
        values: Class name -> its value in the file; the order gives the labels.
        offset: Added to the coordinates in the file.

    Raises:
        UserError: names the line that cannot be used, and why.
    """
    label_of = {value: label for label, value in enumerate(values.values())}
    cells = [_cell(f"{path}, line {line}", row, label_of, values, size, offset) for line, row in _rows(path)]
    xy_N2 = np.array([cell[:2] for cell in cells], np.float32).reshape(-1, 2)
    return xy_N2, np.array([cell[2] for cell in cells], np.int64)


def values_in(paths: Sequence[Path]) -> dict[str, str]:
    """Classes as found in the files, numbers in numeric order: name -> value."""
    found = {row["class"].strip() for path in paths for _, row in _rows(path) if row["class"]}
    ordered = sorted(found, key=lambda value: (not value.isdigit(), int(value) if value.isdigit() else 0, value))
    return {f"class {value}" if value.isdigit() else value: value for value in ordered}


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number in the file and fields of every row."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            if not set(reader.fieldnames) >= COLUMNS:
                separator = "; separate them by commas" if ";" in "".join(reader.fieldnames) else ""
                raise UserError(f"{path} has no header with the columns x,y,class in its first line{separator}")
            for row in reader:
                yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV text file ({error})") from error


def _cell(
    where: str,
    row: dict[str, Any],
    label_of: Mapping[str, int],
    values: Mapping[str, str],
    size: tuple[int, int],
    offset: float,
) -> tuple[float, float, int]:
    try:
        x, y = float(row["x"]) + offset, float(row["y"]) + offset
    except (TypeError, ValueError):
        raise UserError(f"{where}: x={row['x']!r}, y={row['y']!r} are not two numbers") from None
    if not (0 <= x <= size[0] and 0 <= y <= size[1]):
        raise UserError(
            f"{where}: the point ({x - offset:g}, {y - offset:g}) lies outside its image of {size[0]}x{size[1]} px"
        )
    value = (row["class"] or "").strip()
    if value not in label_of:
        known = ", ".join(f"{value} ({name})" for name, value in values.items())
        raise UserError(f"{where}: class {value!r} is none of {known}")
    return x, y, label_of[value]
