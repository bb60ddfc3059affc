"""Tables for the terminal."""

from collections.abc import Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns aligned: words to the left, columns of numbers (and of nothing, "") to the right."""
    lines = [[str(value) for value in row] for row in (header, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    numeric = [all(isinstance(row[i], int | float) or row[i] == "" for row in rows) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            value.rjust(width) if right else value.ljust(width)
            for value, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )
