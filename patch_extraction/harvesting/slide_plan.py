"""Plan of an open slide: reading, screening and describing its patches; statistics of its harvest."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from patch_extraction.config import HarvestConfig, SlideEntry
from patch_extraction.counters.base import CellCounter, HaematoxylinCounter
from patch_extraction.harvesting.candidates import Grid, screen
from patch_extraction.harvesting.near_misses import NearMisses
from patch_extraction.slide_store.slide_record import BIN
from shared.wsi.slide import Slide, SlideError

# Fraction of the first candidates with enough cells above which the classical counter is not preceded by the
# screen: the screen costs a third of an exact count and would skip next to none.
DENSE = 0.9


@dataclass(frozen=True)
class SlidePlan:
    """An open slide with its grid of candidates."""

    slide: Slide
    entry: SlideEntry
    config: HarvestConfig
    counter: CellCounter
    grid: Grid
    tissue_RC: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))  # share of every grid cell, once known

    @classmethod
    def of(cls, slide: Slide, entry: SlideEntry, config: HarvestConfig, counter: CellCounter) -> "SlidePlan":
        """Lay the grid over an open slide."""
        return cls(slide, entry, config, counter, Grid.over(slide, config.patch_size * config.patch_mpp))

    @property
    def mpp(self) -> float:
        """um/px of the stored patches: those requested, up to the rounding of a patch to whole px of level 0."""
        return self.grid.side * self.slide.mpp / self.config.patch_size

    def read(self, x: int, y: int) -> np.ndarray:
        """Read the patch with its corner at (`x`, `y`) px of level 0: uint8 RGB."""
        size = self.config.patch_size
        return self.slide.read_pixels(x, y, size, size, self.mpp, allow_upsampling=True)

    def screened(self, cells_N2: np.ndarray, dense_fraction: float) -> np.ndarray:
        """Return the grid cells worth an exact count, judged by the classical counter on a coarse level.

        Args:
            cells_N2: Grid cells (column, row).
            dense_fraction: Fraction of the candidates counted so far that hold enough cells.
        """
        cheap = isinstance(self.counter, HaematoxylinCounter)  # all others cost far more than the screen
        if not self.config.screen or (cheap and dense_fraction >= DENSE):
            return cells_N2
        judge = HaematoxylinCounter()
        return cells_N2[screen(self.slide, self.grid, cells_N2, judge, self.config.min_cells)]

    def sample_fields(self, corner: tuple[int, int], points_N2: np.ndarray, sharpness: float) -> dict[str, Any]:
        """Return the content of a patch's `KEY.json`, the fields of `shared.shards.format`."""
        window = self.slide.window(self.mpp, allow_upsampling=True)
        x, y = corner
        tissue_share = float(self.tissue_RC[y // self.grid.side, x // self.grid.side])
        return {
            "slide": self.entry.name,
            "biomarker": self.entry.biomarker,
            "columns": dict(self.entry.columns),
            **{"x": x, "y": y, "width": self.grid.side, "height": self.grid.side},
            "mpp": round(self.mpp, 6),
            "slide_mpp": round(self.slide.mpp, 6),
            "mpp_source": self.slide.resolution.source,
            **{"level": window.level, "factor": round(window.factor, 6)},
            **{"tissue": round(tissue_share, 4), "focus": round(sharpness, 4)},
            **{"cells": len(points_N2), "points": np.round(points_N2, 1).tolist()},
        }


@dataclass
class HarvestStats:
    """Statistics over the candidates of a slide."""

    screened: int = 0
    counted: int = 0
    errors: list[SlideError] = field(default_factory=list)  # of candidates that could not be read
    corners: list[tuple[int, int]] = field(default_factory=list)  # of the patches kept, px of level 0
    cells: list[int] = field(default_factory=list)  # in each of them
    sharpness: list[float] = field(default_factory=list)  # of the candidates with enough cells
    histogram: list[int] = field(default_factory=list)  # candidates by cells, BIN per bar
    near_misses: NearMisses = field(default_factory=NearMisses)

    def add_to_histogram(self, cells: int) -> None:
        """Count a candidate with this number of cells."""
        self.histogram += [0] * (cells // BIN + 1 - len(self.histogram))
        self.histogram[cells // BIN] += 1
