"""The annotation of one image as a CSV with the columns x, y, class; other columns are ignored."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from finetune.datasets.annotations.cells import ListedCell, class_value
from shared.errors import UserError

COLUMNS = ("x", "y", "class")


def list_cells(path: Path) -> Iterator[ListedCell]:
    """The cells in a CSV file.

    Raises:
        UserError: it is not a CSV, or has no header with the columns.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            if not set(COLUMNS) <= set(reader.fieldnames):
                raise UserError(_no_header(path, reader.fieldnames))
            for row in reader:
                value = class_value(row["class"] or "")
                yield ListedCell(f"{path}, line {reader.line_num}", row["x"], row["y"], value)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV text file ({error})") from error


def _no_header(path: Path, columns: Sequence[str]) -> str:
    """Which columns stand there, and what to do."""
    found, text = ", ".join(columns) or "empty", "".join(columns)
    separated = " and separate them by commas" if ";" in text or "\t" in text else ""
    return (
        f"{path} has no header with the columns {','.join(COLUMNS)} (its first line: {found}); "
        f"name them so in the first line{separated}"
    )
