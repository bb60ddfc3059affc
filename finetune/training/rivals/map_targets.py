"""Maps that networks learn, made of annotated cells; places are the centres of a map's cells."""

import numpy as np
from scipy.spatial import KDTree

FIDT_LEAST = 0.01  # public code: lower values are set to 0
FIDT_REACH = 31.0  # px, beyond which all are: 1 / (1 + 30.1 ** (0.02 * 30.1 + 0.75)) is 0.01
# MCSpatNet's public code, at 0.5 um/px: squares of up to 9 px, smaller where the next cell is near.
SQUARE_MPP, MOST_HALF_SIDE = 0.5, 4


def distances(
    cells_M2: np.ndarray, labels_M: np.ndarray, shape: tuple[int, int, int], stride: int, most: float
) -> np.ndarray:
    """Distance in px from each place of a map to the nearest cell of each class, (C, H, W); inf beyond `most`.

    Args:
        cells_M2: px, also outside of the image.
        labels_M: Classes.
        shape: Classes, rows and columns of the map.
        stride: px of the image per cell of the map.
        most: px.
    """
    y_H, x_W = ((np.arange(side) + 0.5) * stride for side in shape[1:])
    places_N2 = np.stack(np.meshgrid(x_W, y_H), axis=-1).reshape(-1, 2)
    distances_CHW = np.full(shape, np.inf)
    for label in np.unique(labels_M):
        nearest_N, _ = KDTree(cells_M2[labels_M == label]).query(places_N2, distance_upper_bound=most)
        distances_CHW[label] = np.reshape(nearest_N, shape[1:])
    return distances_CHW


def disc_labels(distances_CHW: np.ndarray, radius: float) -> np.ndarray:
    """Class of the nearest cell within a radius (px), else C for background, (H, W)."""
    nearest_HW = distances_CHW.argmin(0)
    return np.where(distances_CHW.min(0) <= radius, nearest_HW, len(distances_CHW))


def gaussians(distances_CHW: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussians of 1 at each cell, of which the largest counts, not the sum."""
    return np.exp(-0.5 * (distances_CHW / sigma) ** 2)


def fidt(distances_CHW: np.ndarray) -> np.ndarray:
    """Focal inverse distance transform, 1 / (1 + d ** (0.02 d + 0.75))."""
    near = distances_CHW < FIDT_REACH  # further away the power overflows
    d = distances_CHW[near]
    heights_CHW = np.zeros_like(distances_CHW)
    heights_CHW[near] = 1 / (1 + d ** (0.02 * d + 0.75))
    heights_CHW[heights_CHW < FIDT_LEAST] = 0
    return heights_CHW


def half_sides(cells_M2: np.ndarray, mpp: float) -> np.ndarray:
    """Half sides k of MCSpatNet's squares, 2 k + 1 px of 0.5 um/px, by the distance to the nearest other cell."""
    if len(cells_M2) < 2:
        return np.full(len(cells_M2), MOST_HALF_SIDE)
    nearest_M = np.asarray(KDTree(cells_M2).query(cells_M2, k=2)[0])[:, 1] * mpp / SQUARE_MPP
    return np.minimum(MOST_HALF_SIDE, np.floor(nearest_M / 4 + 0.5)).astype(int)


def square_owners(cells_M2: np.ndarray, size: tuple[int, int], mpp: float) -> np.ndarray:
    """Index of the cell whose square covers each px, -1 for none, (H, W); the last cell's counts."""
    owners_HW = np.full(size, -1)
    halves_M = np.rint(half_sides(cells_M2, mpp) * SQUARE_MPP / mpp).astype(int)
    for index, ((x, y), half) in enumerate(zip(np.floor(cells_M2).astype(int), halves_M, strict=True)):
        rows, columns = (slice(max(at - half, 0), max(at + half + 1, 0)) for at in (y, x))
        owners_HW[rows, columns] = index
    return owners_HW
