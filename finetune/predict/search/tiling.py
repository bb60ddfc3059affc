"""Tiles that cover an image: the window that each reads, and the proposals that it owns.

The window of a tile is its core and a margin around it. Cores cover the image without overlap, and a cell belongs
to the tile whose core contains its *proposal*. All proposals are on one grid over the whole image, since windows
begin at multiples of 64 px (the coarsest stride) and of the interval: every tiling has the same proposals, and
with enough margin they get the same result. Positions are px of the detector's um/px.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from shared.errors import UserError
from shared.model.cells import NetworkConfig

# Context of a point that matters to a ResNet-50. Of 8,663 cells that it finds in one piece of
# 4096 x 4096 px, 99.96 % are the same in tiles of 512 px with this margin, and 99.78 % with 64 px (seams.csv
# among the benchmarks); probabilities change by less than 0.01, and by 0.02 with 64 px.
MARGIN = 128
# Of 2,760 cells that the shipped detector finds in 2048 x 2048 px, 99.95 % are the same in tiles of 1024 px with
# this margin and 99.67 % in tiles of 512 px; with 128 px 99.53 and 98.71 %.
MARGINS = {"regnetx_002": 192}
# The context of a ViT is its whole tile; a wider margin is not worth its cost.
FIXED_MARGIN = 64
TILE = 1024
# Least side of a core where the margins are wide: an interval of 9 px meets the levels' grids every 576 px only.
CORE = 512

Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""


@dataclass(frozen=True)
class Tiling:
    """Tiles of one image, numbered row by row."""

    width: float
    """Width of the image, which need not be a whole number of px."""
    height: float
    tile: int
    """Longest side of a window, px."""
    margin: int
    step: int
    """Windows begin at multiples of this, px."""
    fixed: bool = False
    """All windows have `tile` px along both sides, even where they reach beyond the image."""

    @property
    def whole(self) -> bool:
        """True if the image is one window, of its own size unless the size is fixed."""
        return max(self.width, self.height) <= self.tile

    @property
    def core(self) -> int:
        """Side of a core."""
        return self.tile - 2 * self.margin

    @property
    def columns(self) -> int:
        """Tiles in a row."""
        return 1 if self.whole else math.ceil(self.width / self.core)

    @property
    def rows(self) -> int:
        """Rows of tiles."""
        return 1 if self.whole else math.ceil(self.height / self.core)

    def __len__(self) -> int:
        return self.rows * self.columns

    def core_of(self, index: int) -> Box:
        """Core of a tile; at the right and bottom it may reach beyond the image."""
        if self.whole:
            width, height = (self.tile if self.fixed else math.ceil(side) for side in (self.width, self.height))
            return (0, 0, width, height)
        row, column = divmod(index, self.columns)
        return (column * self.core, row * self.core, (column + 1) * self.core, (row + 1) * self.core)

    def owners(self, proposals_N2: np.ndarray) -> np.ndarray:
        """Tiles whose cores contain the proposals (N, 2); -1 beyond all cores."""
        if self.whole:
            return np.zeros(len(proposals_N2), np.int32)
        column_N, row_N = np.floor(proposals_N2 / self.core).astype(np.int32).T
        there_N = (column_N >= 0) & (column_N < self.columns) & (row_N >= 0) & (row_N < self.rows)
        return np.where(there_N, row_N * self.columns + column_N, -1)

    def window_of(self, index: int) -> Box:
        """Window of a tile."""
        left, top, right, bottom = self.core_of(index)
        if self.whole:
            return (left, top, right, bottom)
        window = (left - self.margin, top - self.margin, right + self.margin, bottom + self.margin)
        if self.fixed:
            return window
        # Nothing beyond the image is read except what completes the coarsest cells of every level.
        width, height = (math.ceil(side / self.step) * self.step for side in (self.width, self.height))
        return (max(window[0], 0), max(window[1], 0), min(window[2], width), min(window[3], height))

    def batches(self, tiles: Iterable[int], size: int) -> list[list[int]]:
        """Group tiles into batches of windows of one size, nearly in order."""
        done: list[list[int]] = []
        waiting: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index in tiles:
            left, top, right, bottom = self.window_of(index)
            batch = waiting[right - left, bottom - top]
            batch.append(index)
            if len(batch) == size:
                done.append(waiting.pop((right - left, bottom - top)))
        return [*done, *waiting.values()]


def margin_of(network: NetworkConfig) -> int:
    """Return the context in px that matters to a point's result, for detectors without a fixed tile."""
    return MARGINS.get(getattr(network, "arch", ""), MARGIN)


def note_on_margin(network: NetworkConfig, tiling: Tiling) -> str:
    """Return a sentence if more than 1 % of the cells depend on where the tiles are, else an empty one."""
    least = MARGINS.get(getattr(network, "arch", ""), FIXED_MARGIN)
    if tiling.fixed or tiling.margin >= least:
        return ""
    return f"with a margin below {least} px more than 1 % of the cells depend on the tiles; leave out --margin"


def tiling_of(
    size: tuple[float, float],
    network: NetworkConfig,
    trained_tile: int | None = None,
    tile: int | None = None,
    margin: int | None = None,
) -> Tiling:
    """Tiling of an image for a detector.

    Args:
        size: Width and height of the image, px of the detector's um/px.
        network: Config of the detector.
        trained_tile: Image size that the detector requires, from its metadata; None: any.
        tile: Side of a window, px; default `trained_tile`, or 1024, or more if the detector's grids coincide so
            rarely that the margins would leave nothing of it.
        margin: Overlap on each side, px; default 128, 192 for regnetx_002, or 64 with `trained_tile`.

    Raises:
        UserError: a size that the detector cannot have, or margins that leave nothing of the tile.
    """
    step = network.step
    if trained_tile is not None and tile not in (None, trained_tile):
        raise UserError(
            f"--tile {tile} does not fit the detector, which was trained on {trained_tile} px and gives "
            "other results on others; leave --tile out"
        )
    if margin is None:
        margin = math.ceil((margin_of(network) if trained_tile is None else FIXED_MARGIN) / step) * step
        if trained_tile is not None and trained_tile <= 2 * margin:
            margin = 0
    tile = tile or trained_tile or math.ceil(max(TILE, CORE + 2 * margin) / step) * step
    for option, value in (("tile", tile), ("margin", margin)):
        if value % step:
            raise UserError(f"--{option} {value} is no multiple of {step} px, on which the detector's grids meet")
    if tile <= 2 * margin:
        raise UserError(f"a margin of {margin} px on both sides leaves nothing of a tile of {tile} px; see --tile")
    return Tiling(*size, tile, margin, step, fixed=trained_tile is not None)
