"""Search areas and their size: tissue, annotated regions, or the whole image. Coordinates are px of level 0."""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import shapely
from scipy import ndimage

from finetune.predict.search.tiling import Tiling
from shared.annotations.polygons import Polygon, PolygonIndex, areas_of, merge, subtract
from shared.wsi.image_source import ImageSource
from shared.wsi.slide import Slide, SlideError
from shared.wsi.tissue import find_tissue


class Area(Protocol):
    """Part of an image in which cells are searched."""

    kind: str
    mm2: float

    def touches(self, left: float, top: float, right: float, bottom: float) -> bool:
        """Test if a box may overlap it."""

    def contains(self, points_N2: np.ndarray) -> np.ndarray:
        """Test which points are inside: (N,) of points (N, 2)."""


class Everywhere:
    """Area of the whole image."""

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
    """Tissue, dilated by one px of its mask (8 um), so that cells on its border are inside."""

    kind = "tissue"

    def __init__(self, slide: Slide) -> None:
        """Find the tissue.

        Raises:
            SlideError: the slide cannot be read, or shows no tissue.
        """
        tissue = find_tissue(slide)
        if not tissue.mask.any():
            raise SlideError(f"{slide.path} shows no tissue; search all of it with --everywhere")
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
        inside_N: np.ndarray = self.mask[cells_N2[:, 1].clip(0, height - 1), cells_N2[:, 0].clip(0, width - 1)]
        return inside_N


def default_area(source: ImageSource) -> Area:
    """Tissue of a slide, the whole of a picture.

    Raises:
        SlideError: the slide cannot be read, or shows no tissue.
    """
    return TissueArea(source) if isinstance(source, Slide) else Everywhere(source)


def inside(cells: np.ndarray, area: Area, scale: float) -> np.ndarray:
    """Select the records in the area, so that the result does not depend on which tiles were read."""
    points_N2 = np.stack([cells["x"], cells["y"]], axis=1) * scale
    selected: np.ndarray = cells[area.contains(points_N2)]
    return selected


def touched(tiling: Tiling, area: Area, scale: float) -> list[int]:
    """Tiles whose cores may overlap the area; cells can be up to a step beyond the core of their tile."""
    reach = tiling.step
    found = []
    for index in range(len(tiling)):
        left, top, right, bottom = tiling.core_of(index)
        box = ((left - reach) * scale, (top - reach) * scale, (right + reach) * scale, (bottom + reach) * scale)
        if area.touches(*box):
            found.append(index)
    return found


class Regions:
    """Annotated polygons without those of ignored classes; overlaps count once."""

    kind = "regions"

    def __init__(self, polygons: Sequence[Polygon], source: ImageSource, ignored: Sequence[Polygon] = ()) -> None:
        """Merge the polygons, and clip them to the source.

        Args:
            polygons: In px of level 0.
            source: The image that they were drawn on.
            ignored: Polygons to subtract.

        Raises:
            SlideError: there is no polygon, or one is outside the source.
        """
        image = shapely.box(0, 0, *source.size)
        drawn = [polygon for polygon in polygons if polygon.area]
        if not drawn or shapely.disjoint(drawn, image).any():
            raise SlideError(
                f"a region is outside {source.path} ({source.size[0]}x{source.size[1]} px), or there is none; "
                "give the regions of this slide"
            )
        clipped = [areas_of(each) for each in shapely.intersection(subtract(merge(drawn), ignored), image)]
        self._index = PolygonIndex(clipped)
        self.mm2 = float(shapely.area(clipped).sum()) * source.mpp**2 * 1e-6

    def touches(self, left: float, top: float, right: float, bottom: float) -> bool:
        """See `Area`."""
        return self._index.touches(left, top, right, bottom)

    def contains(self, points_N2: np.ndarray) -> np.ndarray:
        """See `Area`."""
        return self._index.contains(points_N2)

    def mask(self, corner: tuple[float, float], px: float, height: int, width: int) -> np.ndarray:
        """Rasterise from `corner` on, in pixels of `px` px of level 0: True if the centre is inside."""
        return self._index.mask(np.array(corner), px, height, width)
