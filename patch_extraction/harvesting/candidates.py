"""Which places of a slide are worth a closer look: a grid over the tissue, screened cheaply, well spread."""

import math
from dataclasses import dataclass

import numpy as np

from patch_extraction.counters.base import CellCounter
from shared.wsi.slide import Slide, SlideError
from shared.wsi.tissue import Tissue

# A level between these um/px serves for screening: nuclei are visible, and there are few pixels.
SCREEN_MPPS = (0.6, 1.3)
# Share of the cells wanted that the screen must see; so low that it refuses next to none that the exact count
# accepts (measured on the real slides, see tests).
SCREEN_SHARE = 0.6
SCREEN_BLOCK = 512  # px of the level looked at together, or fewer where the tissue ends
SCREEN_MARGIN_UM = 16.0  # around a block: what its edge hides from the counter's filters does not count


@dataclass(frozen=True)
class Grid:
    """Squares of `side` px of level 0, edge to edge from the slide's corner; only whole ones."""

    side: int
    columns: int
    rows: int

    @classmethod
    def over(cls, slide: Slide, patch_um: float) -> "Grid":
        """The grid of patches of `patch_um` um; of 1 px where the slide is coarser than a patch."""
        side = max(1, round(patch_um / slide.mpp))
        return cls(side, slide.size[0] // side, slide.size[1] // side)


def on_tissue(grid: Grid, tissue: Tissue, slide_mpp: float, least: float) -> np.ndarray:
    """Cells of the grid (column, row: [N, 2]) of which the tissue mask covers at least the share `least`."""
    total = np.pad(tissue.mask, ((1, 0), (1, 0))).cumsum(0, dtype=np.int64).cumsum(1)
    scale = grid.side * slide_mpp / tissue.mpp
    x = np.minimum(np.round(np.arange(grid.columns + 1) * scale).astype(int), tissue.mask.shape[1])
    y = np.minimum(np.round(np.arange(grid.rows + 1) * scale).astype(int), tissue.mask.shape[0])
    corner = total[y][:, x]
    covered = corner[1:, 1:] - corner[1:, :-1] - corner[:-1, 1:] + corner[:-1, :-1]
    area = np.diff(y)[:, None] * np.diff(x)[None]
    rows, columns = np.nonzero((covered >= least * area) & (covered > 0))
    return np.stack([columns, rows], axis=1)


def screen(slide: Slide, grid: Grid, cells_N2: np.ndarray, counter: CellCounter, min_cells: int) -> np.ndarray:
    """Which grid cells may hold `min_cells`, judged on a coarse level: a mask over `cells_N2`.

    All of them where the slide has no level of about 1 um/px. Where the level cannot be read the exact count
    decides.
    """
    levels = [mpp for mpp in slide.level_mpps if SCREEN_MPPS[0] <= mpp <= SCREEN_MPPS[1]]
    if not levels or not len(cells_N2):
        return np.ones(len(cells_N2), bool)
    mpp = levels[-1]
    counts = np.zeros((grid.rows, grid.columns), np.int64)
    step = max(1, int(SCREEN_BLOCK * mpp / slide.mpp / grid.side))  # grid cells a block holds in each direction
    for block_2 in np.unique(cells_N2 // step, axis=0):
        inside_N2 = cells_N2[(cells_N2 // step == block_2).all(axis=1)]
        first, end = inside_N2.min(axis=0), inside_N2.max(axis=0) + 1
        counts[first[1] : end[1], first[0] : end[0]] = _count_block(slide, grid, first, end, mpp, counter)
    return counts[cells_N2[:, 1], cells_N2[:, 0]] >= SCREEN_SHARE * min_cells


def spread_order(cells_N2: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random order of grid cells (indices) of which every beginning is spread over all of them.

    The cells are laid out along a Z-order curve, which keeps neighbours together; the curve is then halved
    again and again, and the halves are dealt out in turn.
    """
    if not len(cells_N2):
        return np.zeros(0, int)
    shifted_N2 = cells_N2 + rng.integers(0, 1 << 16, 2)  # where the curve is cut is random, too
    return _deal(np.argsort(_z_order(shifted_N2), kind="stable"), rng)


def neighbours_together(cells_N2: np.ndarray) -> np.ndarray:
    """The same grid cells along a Z-order curve: what neighbours share of a slide's tiles is then decoded once."""
    return cells_N2[np.argsort(_z_order(cells_N2), kind="stable")]


def _count_block(
    slide: Slide, grid: Grid, first_2: np.ndarray, end_2: np.ndarray, mpp: float, counter: CellCounter
) -> np.ndarray:
    """Cells counted in the grid's cells from `first_2` to before `end_2` (column, row), at `mpp` um/px."""
    side = grid.side * slide.mpp / mpp
    margin = math.ceil(SCREEN_MARGIN_UM / mpp)
    corner_2 = np.floor(first_2 * side).astype(int) - margin  # whole px of the level need no resampling
    width, height = (np.ceil(end_2 * side).astype(int) + margin - corner_2).tolist()
    x, y = (corner_2 * mpp / slide.mpp).tolist()
    try:
        image_HW3 = slide.read_pixels(x, y, width, height, mpp)
    except SlideError:
        columns, rows = end_2 - first_2
        return np.full((rows, columns), np.iinfo(np.int64).max)
    points_N2 = (counter.find(image_HW3, mpp) + corner_2) / side
    edges = [np.arange(first_2[axis], end_2[axis] + 1) for axis in (1, 0)]
    return np.histogram2d(points_N2[:, 1], points_N2[:, 0], bins=edges)[0].astype(np.int64)


def _z_order(cells_N2: np.ndarray) -> np.ndarray:
    """Position on the Z-order curve: the bits of column and row interleaved."""
    code = np.zeros(len(cells_N2), np.int64)
    for bit in range(18):
        code |= ((cells_N2[:, 0] >> bit) & 1) << (2 * bit)
        code |= ((cells_N2[:, 1] >> bit) & 1) << (2 * bit + 1)
    return code


def _deal(items: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Halve, order each half likewise, and take from both in turn; which one starts is random."""
    if len(items) < 2:
        return items
    middle = (len(items) + int(rng.integers(2)) * (len(items) % 2)) // 2
    first, second = _deal(items[:middle], rng), _deal(items[middle:], rng)
    if len(first) < len(second) or (len(first) == len(second) and rng.random() < 0.5):
        first, second = second, first
    dealt = np.empty(len(items), items.dtype)
    dealt[0::2], dealt[1::2] = first, second
    return dealt
