"""Candidates for patches: a grid over the tissue, a cheap screen, and a spatially spread random order."""

import math
from dataclasses import dataclass

import numpy as np

from patch_extraction.counters.base import CellCounter
from shared.wsi.slide import Slide, SlideError
from shared.wsi.tissue import Tissue

# Levels between these um/px serve for screening: nuclei are visible, and there are few pixels.
SCREEN_MPPS = (0.6, 1.3)
# Fraction of the required cells that the screen must find; so low that it rejects next to none that the exact
# count accepts (measured on real slides in the tests).
SCREEN_FRACTION = 0.6
SCREEN_BLOCK = 512  # px of the level read at once, or fewer where the tissue ends
SCREEN_MARGIN_UM = 16.0  # read around a block, so that the counter's filters see across its edge


@dataclass(frozen=True)
class Grid:
    """Adjacent whole squares of `side` px of level 0 from the slide's corner on."""

    side: int
    columns: int
    rows: int

    @classmethod
    def over(cls, slide: Slide, patch_um: float) -> "Grid":
        """Lay out patches of `patch_um` um; of 1 px if the slide is coarser than a patch."""
        side = max(1, round(patch_um / slide.mpp))
        return cls(side, slide.size[0] // side, slide.size[1] // side)


def tissue_shares(grid: Grid, tissue: Tissue, slide_mpp: float) -> np.ndarray:
    """Return the fraction of every grid cell that is covered by tissue: [rows, columns]."""
    total = np.pad(tissue.mask, ((1, 0), (1, 0))).cumsum(0, dtype=np.int64).cumsum(1)
    scale = grid.side * slide_mpp / tissue.mpp
    x = np.minimum(np.round(np.arange(grid.columns + 1) * scale).astype(int), tissue.mask.shape[1])
    y = np.minimum(np.round(np.arange(grid.rows + 1) * scale).astype(int), tissue.mask.shape[0])
    corner = total[y][:, x]
    covered = corner[1:, 1:] - corner[1:, :-1] - corner[:-1, 1:] + corner[:-1, :-1]
    area = np.diff(y)[:, None] * np.diff(x)[None]
    return covered / np.maximum(area, 1)


def on_tissue(shares_RC: np.ndarray, min_fraction: float) -> np.ndarray:
    """Return the grid cells (column, row: [N, 2]) covered by some tissue, and to at least `min_fraction`."""
    rows, columns = np.nonzero((shares_RC >= min_fraction) & (shares_RC > 0))
    return np.stack([columns, rows], axis=1)


def screen(slide: Slide, grid: Grid, cells_N2: np.ndarray, counter: CellCounter, min_cells: int) -> np.ndarray:
    """Return a mask over `cells_N2` of the grid cells that may hold `min_cells`, judged on a coarse level.

    All grid cells pass if the slide has no level of about 1 um/px, and those where the level cannot be read.
    """
    levels = [mpp for mpp in slide.level_mpps if SCREEN_MPPS[0] <= mpp <= SCREEN_MPPS[1]]
    if not levels or not len(cells_N2):
        return np.ones(len(cells_N2), bool)
    mpp = levels[-1]
    counts = np.zeros((grid.rows, grid.columns), np.int64)
    step = max(1, int(SCREEN_BLOCK * mpp / slide.mpp / grid.side))  # grid cells per block in each direction
    for block_2 in np.unique(cells_N2 // step, axis=0):
        inside_N2 = cells_N2[(cells_N2 // step == block_2).all(axis=1)]
        first_2, end_2 = block_22 = np.stack([inside_N2.min(axis=0), inside_N2.max(axis=0) + 1])
        place = slice(first_2[1], end_2[1]), slice(first_2[0], end_2[0])
        counts[place] = _count_block(slide, block_22, grid.side * slide.mpp / mpp, mpp, counter)
    return counts[cells_N2[:, 1], cells_N2[:, 0]] >= SCREEN_FRACTION * min_cells


def spread_order(cells_N2: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random order of grid cells (indices), every prefix of which is spread over all of them.

    Cells are sorted along a Z-order curve, which keeps neighbours together; the curve is halved recursively, and
    the halves alternate."""
    if not len(cells_N2):
        return np.zeros(0, int)
    shifted_N2 = cells_N2 + rng.integers(0, 1 << 16, 2)  # random position of the cuts
    return _alternate(np.argsort(_z_order(shifted_N2), kind="stable"), rng)


def z_ordered(cells_N2: np.ndarray) -> np.ndarray:
    """Sort grid cells along a Z-order curve, so that tiles shared by neighbours are decoded once."""
    return cells_N2[np.argsort(_z_order(cells_N2), kind="stable")]


def _count_block(slide: Slide, block_22: np.ndarray, side: float, mpp: float, counter: CellCounter) -> np.ndarray:
    """Count cells at `mpp` um/px in grid cells of `side` px from (column, row) `block_22[0]` to before `[1]`."""
    first_2, end_2 = block_22
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
    """Return the position on the Z-order curve: the interleaved bits of column and row."""
    code = np.zeros(len(cells_N2), np.int64)
    for bit in range(18):
        code |= ((cells_N2[:, 0] >> bit) & 1) << (2 * bit)
        code |= ((cells_N2[:, 1] >> bit) & 1) << (2 * bit + 1)
    return code


def _alternate(items: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Order both halves recursively and alternate between them, starting with a random one."""
    if len(items) < 2:
        return items
    middle = (len(items) + int(rng.integers(2)) * (len(items) % 2)) // 2
    first, second = _alternate(items[:middle], rng), _alternate(items[middle:], rng)
    if len(first) < len(second) or (len(first) == len(second) and rng.random() < 0.5):
        first, second = second, first
    merged = np.empty(len(items), items.dtype)
    merged[0::2], merged[1::2] = first, second
    return merged
