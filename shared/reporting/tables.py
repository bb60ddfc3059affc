"""Tables for the terminal."""

import re
from collections.abc import Sequence
from typing import Any

NUMBER = re.compile(r"-?|nan|[+-]?[\d.,]+(e[+-]?\d+)?( \+- [\d.]+)?")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Align columns: words to the left, numbers (also formatted ones, "-" and "") to the right."""
    lines = [[str(value) for value in row] for row in (header, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    numeric = [all(NUMBER.fullmatch(line[i]) for line in lines[1:]) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            value.rjust(width) if right else value.ljust(width)
            for value, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )
