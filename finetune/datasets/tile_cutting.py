"""Tiles cut from a slide: places that cover its annotated areas, with the pixels and cells of each."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from PIL import Image

from shared.annotations.polygons import Polygon, areas_of, mask, merge, subtract
from shared.annotations.qupath import Objects
from shared.errors import UserError
from shared.wsi.image_source import ImageSource

# Tiles with a smaller share of their area inside a region are left out.
MIN_INSIDE = 0.25
# Tiles with a larger share of their area inside a region are not painted: edges of a rectangle may cut pixels.
NEARLY_ALL = 0.99
# Margin around the outermost cells of a file without regions, um: a cell's own width.
RIM_UM = 10.0


@dataclass(frozen=True)
class TilePlace:
    """Tile: its corner in px of level 0, its size in px, and the part that is annotated (None: all of it)."""

    x: float
    y: float
    width: int
    height: int
    polygon: Polygon | None = None

    def box(self, scale: float) -> Polygon:
        """Return its outline in px of level 0, each `scale` px of the tile."""
        return shapely.box(self.x, self.y, self.x + self.width / scale, self.y + self.height / scale)


def annotated_areas(objects: Objects, classes: Sequence[str]) -> tuple[list[Polygon], list[Polygon], list[str]]:
    """Return disjoint areas to cut, areas of ignored classes, and warnings about overlaps and empty regions.

    Args:
        objects: Content of an annotation file.
        classes: Classes of the regions to cut; empty: all.
    """
    regions, ignored = objects.choose(classes)
    regions = [region for region in regions if region.polygon.area]
    merged = merge([region.polygon for region in regions])
    areas = subtract(merged, ignored)
    warnings = []
    if classes and not regions:
        names = ", ".join(sorted({region.name or "(no class)" for region in objects.regions})) or "none"
        warnings.append(f"warning: {objects.path} has no region of --region-class; its regions: {names}")
    if len(merged) < len(regions):
        names = ", ".join(sorted({region.name or "(no class)" for region in regions}))
        warnings.append(
            f"warning: some regions ({names}) overlap in {objects.path}; each place is cut once, and all of it "
            "counts as annotated. If only regions of some classes are annotated completely, choose them with "
            "--region-class"
        )
    if empty := len(areas) - _holding_cells(areas, objects.points_N2):
        warnings.append(
            f"warning: {empty} of {len(areas)} regions in {objects.path} have no cell and become background in "
            "training; if their cells are not annotated, delete them or leave them out with --region-class"
        )
    return areas, ignored, warnings


def _holding_cells(areas: Sequence[Polygon], points_N2: np.ndarray) -> int:
    """Count the areas that hold a point."""
    if not areas:
        return 0
    tree = shapely.STRtree([shapely.Point(point) for point in points_N2])
    return len(np.unique(tree.query(areas, predicate="intersects")[0]))


@dataclass(frozen=True)
class Cutter:
    """Cuts the tiles of one slide."""

    source: ImageSource
    mpp: float
    """um/px of the tiles."""
    side: int
    """Maximum side of a tile, px."""
    ignored: Sequence[Polygon] = ()
    """Areas that are not annotated, disjoint from those to cut."""

    @property
    def scale(self) -> float:
        """Px of a tile per px of level 0."""
        return self.source.mpp / self.mpp

    def in_area(self, area: Polygon) -> Iterator[TilePlace]:
        """Yield tiles that cover an area; those with little of it inside are left out.

        Raises:
            UserError: the area is outside the slide.
        """
        left, top, right, bottom = area.bounds
        width, height = self.source.size
        box = (max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height))
        if box[0] >= box[2] or box[1] >= box[3]:
            raise UserError(
                f"a region is outside {self.source.path}; give the slide it was drawn on, or try --no-bounds"
            )
        for place in self._grid(box):
            inside = self._mask(area, place).mean()
            if inside >= MIN_INSIDE:
                outline = place.box(self.scale)
                whole = inside > NEARLY_ALL and not self._is_ignored(outline)
                yield place if whole else dataclasses.replace(place, polygon=areas_of(area.intersection(outline)))

    def around(self, points_N2: np.ndarray) -> Iterator[TilePlace]:
        """Yield tiles that hold one of the points, px of level 0."""
        rim = RIM_UM / self.source.mpp
        low = (points_N2.min(axis=0) - rim).clip(0)
        high = np.minimum(points_N2.max(axis=0) + rim, self.source.size)
        for place in self._grid((*low, *high)):
            outline = place.box(self.scale)
            if self._is_ignored(outline):
                rest = subtract([outline], self.ignored)
                place = dataclasses.replace(place, polygon=rest[0] if rest else shapely.MultiPolygon())
            if self.within(place, points_N2)[1].any():
                yield place

    def within(self, place: TilePlace, points_N2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return points of level 0 in px of a tile (N, 2), and which of them are in its annotated part (N,)."""
        # Rounded, so that a cell on the line between two tiles is in exactly one of them.
        xy_N2 = np.round((points_N2 - (place.x, place.y)) * self.scale, 6)
        inside_N = np.all((xy_N2 >= 0) & (xy_N2 < (place.width, place.height)), axis=1)
        if place.polygon is not None:
            inside_N[inside_N] = shapely.intersects_xy(place.polygon, *points_N2[inside_N].T)
        return xy_N2, inside_N

    def read(self, place: TilePlace, factor: int = 1) -> Image.Image:
        """Read a tile, white outside its annotated part, or the view `factor` times as wide around it."""
        side_x, side_y = (side / self.scale for side in (place.width, place.height))
        x, y = place.x - side_x * (factor - 1) / 2, place.y - side_y * (factor - 1) / 2
        image = self.source.read(x, y, place.width, place.height, self.mpp * factor)
        if place.polygon is None or factor > 1:
            return image
        inside_HW = self._mask(place.polygon, place)
        return Image.composite(image, Image.new("RGB", image.size, "white"), Image.fromarray(inside_HW))

    def _is_ignored(self, outline: Polygon) -> bool:
        return bool(shapely.intersects(np.array(self.ignored, object), outline).any())

    def _mask(self, area: Polygon, place: TilePlace) -> np.ndarray:
        return mask([area], np.array([place.x, place.y]), 1 / self.scale, place.height, place.width)

    def _grid(self, box: tuple[float, float, float, float]) -> Iterator[TilePlace]:
        """Yield tiles of one size that cover a box in px of level 0; the last may reach beyond it."""
        left, top, right, bottom = box
        # A millionth of a px is a rounding error.
        sides = [max(1, math.ceil(side * self.scale - 1e-6)) for side in (right - left, bottom - top)]
        columns, rows = (math.ceil(side / self.side) for side in sides)
        width, height = (math.ceil(side / count) for side, count in zip(sides, (columns, rows), strict=True))
        for row in range(rows):
            for column in range(columns):
                yield TilePlace(left + column * width / self.scale, top + row * height / self.scale, width, height)
