"""Where cells are looked for, and how large that is: tissue, drawn regions, or everywhere. Px of level 0."""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from scipy import ndimage

from finetune.polygons import Polygon
from finetune.sources import Source
from shared.slides import Slide, SlideError
from shared.tissue import find_tissue

# Most px along a side of the raster that the area of drawn regions is counted on.
RASTER = 4096


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

    def __init__(self, source: Source) -> None:
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

    def __init__(self, polygons: Sequence[Polygon], source: Source) -> None:
        self.polygons = [polygon for polygon in polygons if len(polygon.rings[0]) > 2]
        boxes = np.array([polygon.box for polygon in self.polygons]).reshape(-1, 4)
        inside = (boxes[:, :2] < source.size).all() and (boxes[:, 2:] > 0).all()
        if not len(boxes) or not inside:
            raise SlideError(
                f"a region lies outside {source.path} ({source.size[0]}x{source.size[1]} px), or there is none; "
                "give the regions of this slide"
            )
        low, high = boxes[:, :2].min(axis=0).clip(0), np.minimum(boxes[:, 2:].max(axis=0), source.size)
        self.px = max(1.0, float((high - low).max()) / RASTER)
        self.corner = low
        self.mask = self._raster(high)
        self.mm2 = float(self.mask.sum()) * (self.px * source.mpp) ** 2 * 1e-6

    def touches(self, left: float, top: float, right: float, bottom: float) -> bool:
        """See `Area`."""
        x0, x1 = ((side - self.corner[0]) / self.px for side in (left, right))
        y0, y1 = ((side - self.corner[1]) / self.px for side in (top, bottom))
        rows, columns = slice(max(0, math.floor(y0)), math.ceil(max(y1, 0))), slice(max(0, math.floor(x0)), None)
        return bool(self.mask[rows, columns][:, : math.ceil(max(x1, 0)) - columns.start].any())

    def contains(self, points_N2: np.ndarray) -> np.ndarray:
        """See `Area`."""
        return np.logical_or.reduce([polygon.contains(points_N2) for polygon in self.polygons])

    def _raster(self, high: np.ndarray) -> np.ndarray:
        """Which px, of `self.px` px of level 0, have their centre in a region."""
        width, height = (max(1, math.ceil(side / self.px)) for side in high - self.corner)
        masks = [polygon.mask(self.corner, self.px, height, width) for polygon in self.polygons]
        return np.logical_or.reduce(masks)
