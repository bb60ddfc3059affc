"""Deduplication at seams: a cell that two tiles found counts once, and no cell is lost.

Each proposal belongs to one tile, its owner. Tiles also report cells just outside their core as witnesses, so that
disagreements across a seam can be resolved: two tiles may assign one cell to two proposals, one on each side. If
each reports its own, the cell is there twice; if each reports the other's, it is missing.
"""

import numpy as np
from scipy.spatial import KDTree

from shared.model.distinct import distinct

# Cells of two tiles closer than this are one, unless both tiles report two. In CoNSeP 1 % of annotated cells are
# closer than 1.6 um to another.
SAME_CELL_UM = 1.5
# Reports of two tiles within this distance (px) are of one proposal.
SAME_PLACE = 1.0
# Zone of a cell's proposal: inside its tile's core, in its border, or outside of it but close.
INNER, BORDER, OVERLAP = 0, 1, 2
# Width of border and overlap, px: more than the distance of a point from its proposal.
BAND = 32


def without_seams(cells: np.ndarray, mpp: float) -> np.ndarray:
    """Find the indices of the cells to keep, in order: those of the owners, except where tiles disagree.

    The result does not depend on the order of cells or tiles. Of two reports of one cell the more probable one is
    kept (of equal ones the upper, then the left one); the closest reports are resolved first.

    Args:
        cells: Records of `inference.CELL`, witnesses included.
        mpp: um/px of their coordinates.
    """
    near = np.flatnonzero(cells["zone"] != INNER)
    kept = cells["zone"] != OVERLAP
    if len(near):
        kept[near] = _resolve(cells[near], kept[near], SAME_CELL_UM / mpp)
    return np.flatnonzero(kept)


def final_cells(cells: np.ndarray, mpp: float, min_distance_um: float = 0.0) -> np.ndarray:
    """Find the cells of a whole image, in order, by index: without seams, none closer to another than a distance.

    Of two cells that are too close the more probable one counts, of equal ones the upper, then the left one.

    Args:
        cells: Records of `inference.CELL`, witnesses included.
        mpp: um/px of their coordinates.
        min_distance_um: Least distance, um; 0: any.
    """
    kept = without_seams(cells, mpp)
    if not min_distance_um or not len(kept):
        return kept
    kept = kept[np.lexsort((cells["x"][kept], cells["y"][kept]))]  # of equal ones the first is kept
    points_N2 = np.stack([cells["x"][kept], cells["y"][kept]], axis=1)
    return np.sort(kept[distinct(points_N2, cells["probability"][kept], min_distance_um / mpp)])


def _resolve(cells: np.ndarray, kept: np.ndarray, reach: float) -> np.ndarray:
    """Mask of the reports near seams to keep, given those of the owners."""
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
    """Test if each of two tiles also reports the other's cell: then there are two cells."""
    for own, other in ((one, two), (two, one)):
        there = tree.query_ball_point(points_N2[other], SAME_PLACE)
        if not any(tile_N[index] == tile_N[own] and index != own for index in there):
            return False
    return True


def _rank(cells: np.ndarray, index: int) -> tuple[float, float, float]:
    return float(cells["probability"][index]), -float(cells["y"][index]), -float(cells["x"][index])
