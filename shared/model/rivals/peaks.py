"""Points in maps: local maxima and connected components; (x, y) of the centres of their cells, corner origin."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

NEIGHBOURS = np.ones((3, 3), bool)  # of a cell of a map: eight


def maxima(map_HW: Tensor, among_HW: Tensor, window: int = 3) -> np.ndarray:
    """Rows and columns of local maxima, (N, 2), in the order of rows.

    Cells of equal height that touch are one maximum, at the middle one of them in the order of rows.

    Args:
        map_HW: Heights.
        among_HW: Mask of the cells that may be maxima; the others still count as neighbours.
        window: Side of the square within which a maximum is the highest, cells.
    """
    highest_HW = F.max_pool2d(map_HW[None, None], window, stride=1, padding=window // 2)[0, 0]
    plateaus_HW, count = ndimage.label(((map_HW == highest_HW) & among_HW).cpu().numpy(), NEIGHBOURS)
    return _middles(plateaus_HW, count)


def components(mask_HW: np.ndarray, least: int) -> np.ndarray:
    """Rows and columns of the cells nearest to the centroids of connected components, (N, 2).

    Args:
        mask_HW: Cells that belong to a component.
        least: Cells that a component has at least.
    """
    labels_HW, count = ndimage.label(mask_HW, NEIGHBOURS)
    sizes = np.bincount(labels_HW.ravel(), minlength=count + 1)
    kept = [number for number in range(1, count + 1) if sizes[number] >= least]
    centroids = ndimage.center_of_mass(mask_HW, labels_HW, kept) if kept else []
    rows_columns: np.ndarray = np.rint(np.array(centroids).reshape(-1, 2)).astype(int)
    return rows_columns


def blurred(map_HW: Tensor, sigma: float) -> Tensor:
    """Convolve a map with a Gaussian of `sigma` cells; beyond its border the map is taken to go on as it ends."""
    reach = max(1, round(3 * sigma))
    offset_K = torch.arange(-reach, reach + 1, device=map_HW.device)
    weight_K = torch.exp(-0.5 * (offset_K / sigma) ** 2)
    weight_K = weight_K / weight_K.sum()
    padded = F.pad(map_HW[None, None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, weight_K.view(1, 1, -1, 1)), weight_K.view(1, 1, 1, -1))[0, 0]


def _middles(labels_HW: np.ndarray, count: int) -> np.ndarray:
    """Rows and columns of the middle cell of each label."""
    flat = np.flatnonzero(labels_HW)
    order = flat[np.argsort(labels_HW.ravel()[flat], kind="stable")]
    sizes = np.bincount(labels_HW.ravel()[flat], minlength=count + 1)[1:]
    middles = order[np.cumsum(sizes) - sizes + sizes // 2]
    rows_columns = np.stack(np.divmod(middles, labels_HW.shape[1]), axis=1)
    return rows_columns[np.lexsort(rows_columns.T[::-1])]
