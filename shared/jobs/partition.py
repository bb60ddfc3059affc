"""Share of the slides for one of several tasks that write to one output folder.

The parts divide the sorted list of slides in turn, so that every task knows its own slides without
asking the others.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from shared.errors import UserError

Slide = TypeVar("Slide")


@dataclass(frozen=True)
class Part:
    """A share of the slides."""

    number: int  # from 1
    of: int

    @classmethod
    def of_text(cls, text: str) -> "Part":
        """Read `3/16`.

        Raises:
            UserError: it is not that.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"--part {text} is not a part; give its number and how many there are, as 3/16")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def share(self, slides: Sequence[Slide]) -> list[Slide]:
        """Select this part's slides from a list that is the same in all parts."""
        return list(slides[self.number - 1 :: self.of])
