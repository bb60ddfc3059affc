"""The annotation of one image as a CSV with the columns x, y, class; other columns are ignored."""

import csv
from collections.abc import Iterator
from pathlib import Path

from finetune.datasets.cells import ListedCell, class_value
from shared.command_line import UserError

COLUMNS = {"x", "y", "class"}


def list_cells(path: Path) -> Iterator[ListedCell]:
    """The cells in a CSV file.

    Raises:
        UserError: it is not a CSV, or has no header with the columns.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            if not set(reader.fieldnames) >= COLUMNS:
                separator = "; separate them by commas" if ";" in "".join(reader.fieldnames) else ""
                raise UserError(f"{path} has no header with the columns x,y,class in its first line{separator}")
            for row in reader:
                value = class_value(row["class"] or "")
                yield ListedCell(f"{path}, line {reader.line_num}", row["x"], row["y"], value)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV text file ({error})") from error
