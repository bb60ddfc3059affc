"""Where cells are looked for, and how large that is: tissue, drawn regions, or everywhere. Px of level 0."""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from scipy import ndimage
from scipy.sparse.csgraph import connected_components

from shared.wsi.image_source import ImageSource
from shared.wsi.polygons import Polygon
from shared.wsi.slide import Slide, SlideError
from shared.wsi.tissue import find_tissue

# Places along a side of the raster that the area of a drawn region is counted on; where there are many, fewer, so
# that all need no more memory than one of this size, but not fewer than the second number.
RASTER, LEAST_RASTER = 4096, 128


class Area(Protocol):
    """A part of an image."""

    kind: str
    mm2: float

    def touches(self, left: float, top: float, right: float, bottom: float) -> bool:
        """Whether a box may hold some of it."""

    def contains(self, points_N2: np.ndarray) -> np.ndarray:
        """Which points lie in it."""


class Everywhere:
    """The whole image."""

    kind = "everywhere"

    def __init__(self, source: ImageSource) -> None:
        self.mm2 = source.size[0] * source.size[1] * source.mpp**2 * 1e-6

    def touches(self, left: float, top: float, right: float, bottom: float) -> bool:
        """See `Area`."""
        return True

    def contains(self, points_N2: np.ndarray) -> np.ndarray:
        """See `Area`."""
        return np.ones(len(points_N2), bool)


class TissueArea:
    """What is not glass, with a rim of one px of the mask (8 um), since cells lie on the border, too."""

    kind = "tissue"

    def __init__(self, slide: Slide) -> None:
        """Find the tissue.

        Raises:
            SlideError: the slide cannot be read, or shows none.
        """
        tissue = find_tissue(slide)
        if not tissue.mask.any():
            raise SlideError(f"{slide.path} shows no tissue; look for cells on all of it with --everywhere")
        self.mask = ndimage.binary_dilation(tissue.mask)
        self.px = tissue.mpp / slide.mpp
        self.mm2 = float(self.mask.sum()) * tissue.mpp**2 * 1e-6

    def touches(self, left: float, top: float, right: float, bottom: float) -> bool:
        """See `Area`."""
        rows = slice(max(0, math.floor(top / self.px)), math.ceil(bottom / self.px))
        return bool(self.mask[rows, max(0, math.floor(left / self.px)) : math.ceil(right / self.px)].any())

    def contains(self, points_N2: np.ndarray) -> np.ndarray:
        """See `Area`."""
        height, width = self.mask.shape
        cells_N2 = (points_N2 / self.px).astype(np.int64)
        return self.mask[cells_N2[:, 1].clip(0, height - 1), cells_N2[:, 0].clip(0, width - 1)]


class Regions:
    """Polygons that somebody has drawn; what several of them share counts once."""

    kind = "regions"

    def __init__(self, polygons: Sequence[Polygon], source: ImageSource) -> None:
        self.polygons = [polygon for polygon in polygons if len(polygon.rings[0]) > 2]
        boxes = np.array([polygon.box for polygon in self.polygons]).reshape(-1, 4)
        inside = (boxes[:, :2] < source.size).all() and (boxes[:, 2:] > 0).all()
        if not len(boxes) or not inside:
            raise SlideError(
                f"a region lies outside {source.path} ({source.size[0]}x{source.size[1]} px), or there is none; "
                "give the regions of this slide"
            )
        boxes = np.concatenate([boxes[:, :2].clip(0), np.minimum(boxes[:, 2:], source.size)], axis=1)
        clusters = _clusters(boxes)
        side = max(LEAST_RASTER, int(RASTER / len(clusters) ** 0.5))
        self._rasters = [
            _Raster([self.polygons[index] for index in cluster], boxes[cluster], side) for cluster in clusters
        ]
        self._low_N2 = np.array([raster.low_2 for raster in self._rasters])
        self._high_N2 = np.array([raster.high_2 for raster in self._rasters])
        self.mm2 = sum(raster.px2 for raster in self._rasters) * source.mpp**2 * 1e-6

    def touches(self, left: float, top: float, right: float, bottom: float) -> bool:
        """See `Area`."""
        near_N = (self._low_N2 <= (right, bottom)).all(axis=1) & (self._high_N2 >= (left, top)).all(axis=1)
        return any(self._rasters[index].touches(left, top, right, bottom) for index in np.flatnonzero(near_N))

    def contains(self, points_N2: np.ndarray) -> np.ndarray:
        """See `Area`."""
        return np.logical_or.reduce([polygon.contains(points_N2) for polygon in self.polygons])

    def mask(self, corner: tuple[float, float], px: float, height: int, width: int) -> np.ndarray:
        """Which px of a picture, each `px` px of level 0 wide, from `corner` on, have their centre in a region."""
        return _mask(self.polygons, np.array(corner), px, height, width)


class _Raster:
    """Some polygons, on as many places along either side of their common box: as exact for small as for large."""

    def __init__(self, polygons: Sequence[Polygon], boxes_N4: np.ndarray, side: int) -> None:
        self.low_2, self.high_2 = boxes_N4[:, :2].min(axis=0), boxes_N4[:, 2:].max(axis=0)
        self.place_2 = np.maximum(self.high_2 - self.low_2, 1e-6) / side
        self.mask = _mask(polygons, self.low_2, self.place_2, side, side)
        self.px2 = float(self.mask.sum() * self.place_2.prod())

    def touches(self, left: float, top: float, right: float, bottom: float) -> bool:
        """Whether a box that overlaps the polygons' common one may hold some of them."""
        first_2 = np.floor((np.array([left, top]) - self.low_2) / self.place_2).astype(int).clip(0)
        end_2 = np.ceil((np.array([right, bottom]) - self.low_2) / self.place_2).astype(int)
        return bool(self.mask[first_2[1] : end_2[1], first_2[0] : end_2[0]].any())


def _mask(
    polygons: Sequence[Polygon], corner: np.ndarray, px: float | np.ndarray, height: int, width: int
) -> np.ndarray:
    """Which places of a raster have their centre in one of the polygons."""
    mask_HW = np.zeros((height, width), bool)
    for polygon in polygons:
        mask_HW |= polygon.mask(corner, px, height, width)
    return mask_HW


def _clusters(boxes_N4: np.ndarray) -> list[np.ndarray]:
    """Indices of boxes that overlap, directly or by others in between."""
    low_N12, high_N12 = boxes_N4[:, None, :2], boxes_N4[:, None, 2:]
    overlap_NN = ((low_N12 < high_N12.swapaxes(0, 1)) & (high_N12 > low_N12.swapaxes(0, 1))).all(axis=-1)
    count, cluster_N = connected_components(np.asarray(overlap_NN), directed=False)
    return [np.flatnonzero(cluster_N == cluster) for cluster in range(count)]
