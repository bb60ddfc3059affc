"""Histograms of cells per patch: geometry of the drawings in `templates/histogram.svg.j2`."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from patch_extraction.slide_store.slide_record import BIN

MAX_CELLS = 300  # higher counts go into the last bar


@dataclass(frozen=True)
class Bar:
    """One bar, in px of the drawing."""

    x: float
    y: float
    width: float
    height: float
    kept: bool


@dataclass(frozen=True)
class Histogram:
    """Candidates by cells, BIN per bar, with a threshold."""

    title: str
    counts: Sequence[int]
    min_cells: int
    # px of the drawing
    width: ClassVar[int] = 360
    height: ClassVar[int] = 190
    left: ClassVar[int] = 44
    right: ClassVar[int] = 350
    top: ClassVar[int] = 24
    base: ClassVar[int] = 156

    @property
    def total(self) -> int:
        """Number of candidates."""
        return sum(self.counts)

    @property
    def highest(self) -> int:
        """Highest bar."""
        return max(self.counts)

    @property
    def step(self) -> float:
        """Distance of bars."""
        return (self.right - self.left) / len(self.counts)

    @property
    def bars(self) -> list[Bar]:
        """The bars; a bar is kept if some of its counts reach the threshold."""
        scale, width = (self.base - self.top) / self.highest, max(self.step - 1, 1)
        return [
            Bar(
                self.left + i * self.step,
                self.base - count * scale,
                width,
                count * scale,
                (i + 1) * BIN > self.min_cells,
            )
            for i, count in enumerate(self.counts)
        ]

    @property
    def threshold(self) -> float:
        """Position of the threshold."""
        return self.left + min(self.min_cells / BIN, len(self.counts)) * self.step

    @property
    def ticks(self) -> list[tuple[float, int]]:
        """Positions and values of at most about eight ticks."""
        gap = next(gap for gap in (1, 2, 5, 10) if len(self.counts) / gap <= 8 or gap == 10)
        return [(self.left + i * self.step, i * BIN) for i in range(0, len(self.counts) + 1, gap)]


def summed(histograms: Sequence[Sequence[int]]) -> list[int]:
    """Add histograms bar by bar; the last bar holds all counts beyond MAX_CELLS."""
    counts = [sum(column) for column in itertools.zip_longest(*histograms, fillvalue=0)]
    limit = MAX_CELLS // BIN
    return counts if len(counts) <= limit else [*counts[:limit], sum(counts[limit:])]
