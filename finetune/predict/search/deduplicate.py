"""Seams between tiles, where two tiles may disagree: a cell that both found is one cell, and none is lost.

Each proposal is asked by one tile, its owner. Beside its own cells a tile reports those of proposals close to
its core, as a witness. Two tiles may disagree on which of two proposals, one on each side of the seam, holds a
cell. If each names its own, the cell is there twice; if each names the other's, it is nowhere.
"""

import numpy as np
from scipy.spatial import KDTree

# Cells of two tiles that are closer are one, unless the tiles themselves see two. In CoNSeP 1 % of annotated
# cells are closer than 1.6 um to another.
SAME_CELL_UM = 1.5
# Reports of two tiles within so many px are reports of one proposal.
SAME_PLACE = 1.0
# Where a cell's proposal stands: in its tile's core, there but close to its border, or outside but close to it.
INNER, BORDER, WITNESS = 0, 1, 2
# How close, px: points and proposals are less far apart.
BAND = 32


def without_seams(cells: np.ndarray, mpp: float) -> np.ndarray:
    """Indices of the cells to keep: those of the owners but for what is mended. In order.

    Symmetric: nothing depends on the order of cells or tiles. Of two reports of one cell the more probable one
    counts (of equal ones the upper, then the left one), and the closest reports are judged first.

    Args:
        cells: Of dtype `windows.CELL`, with those that tiles report as witnesses.
        mpp: um/px of their coordinates.
    """
    near = np.flatnonzero(cells["zone"] != INNER)
    kept = cells["zone"] != WITNESS
    if len(near):
        kept[near] = _mended(cells[near], kept[near], SAME_CELL_UM / mpp)
    return np.flatnonzero(kept)


def _mended(cells: np.ndarray, kept: np.ndarray, reach: float) -> np.ndarray:
    """Which of the reports near seams to keep, given those of the owners."""
    points_N2 = np.stack([cells["x"], cells["y"]], axis=1)
    tree = KDTree(points_N2)
    pairs_M2 = tree.query_pairs(reach, output_type="ndarray")
    pairs_M2 = pairs_M2[cells["tile"][pairs_M2[:, 0]] != cells["tile"][pairs_M2[:, 1]]]
    distance_M = np.linalg.norm(points_N2[pairs_M2[:, 0]] - points_N2[pairs_M2[:, 1]], axis=1)
    pairs_M2 = pairs_M2[np.argsort(distance_M, kind="stable")]
    owned_M2 = kept[pairs_M2]
    for one, two in pairs_M2[owned_M2.all(axis=1)].tolist():
        if kept[one] and kept[two] and not _both_seen(cells["tile"], points_N2, tree, one, two):
            kept[min(one, two, key=lambda index: _rank(cells, index))] = False
    tiles_M2, owners_M2 = cells["tile"][pairs_M2], cells["owner"][pairs_M2]
    for one, two in pairs_M2[~owned_M2.any(axis=1) & (tiles_M2 == owners_M2[:, ::-1]).all(axis=1)].tolist():
        around = tree.query_ball_point(points_N2[[one, two]], reach)
        if not any(kept[each].any() for each in around):
            kept[max(one, two, key=lambda index: _rank(cells, index))] = True
    return kept


def _both_seen(tile_N: np.ndarray, points_N2: np.ndarray, tree: KDTree, one: int, two: int) -> bool:
    """Whether each of the two tiles reports the other's cell at its place, too: then there are two cells."""
    for own, other in ((one, two), (two, one)):
        there = tree.query_ball_point(points_N2[other], SAME_PLACE)
        if not any(tile_N[index] == tile_N[own] and index != own for index in there):
            return False
    return True


def _rank(cells: np.ndarray, index: int) -> tuple[float, float, float]:
    return float(cells["probability"][index]), -float(cells["y"][index]), -float(cells["x"][index])
