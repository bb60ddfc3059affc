"""Read the cells of one image from a CSV with the columns x, y, class; other columns are ignored."""

from collections.abc import Iterator
from pathlib import Path

from finetune.datasets.annotations.listed_cells import ListedCell
from shared.annotations.bounded_files import read_table
from shared.annotations.features import class_value

COLUMNS = ("x", "y", "class")


def list_cells(path: Path) -> Iterator[ListedCell]:
    """List the cells of a CSV file.

    Raises:
        UserError: the file is not a CSV, or has no header with the columns.
    """
    for line, row in read_table(path, COLUMNS):
        yield ListedCell(f"{path}, line {line}", row["x"], row["y"], class_value(row["class"]))
