"""Pictures of the cells of a slide: density of each class, and regions with their cells."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageColor
from scipy import ndimage

from finetune.predict.outputs.cell_files import Rows, colour_of
from finetune.predict.search.area import Area, Regions
from shared.model.cells import Cells
from shared.reporting.pictures import RIM, contact_sheet, draw_points
from shared.wsi.image_source import ImageSource
from shared.wsi.slide import SlideError

# Longest side of the slide in a density picture, px.
DENSITY_SIDE = 640
CAPTION_WIDTH = 320
# Standard deviation of the blur that makes a density of points, um; limited to 2 to 32 px of the picture.
BLUR_UM = 50.0
# Width of a region, um: about a field of view at 40x.
REGION_UM = 256.0
REGION_SIDE = 448
REGIONS = 6
# Width of the border of annotated regions, px: dark with white beside it, visible on any tissue.
OUTLINE = 2

Chunks = Callable[[], Iterable[Rows]]


@dataclass(frozen=True)
class Painter:
    """Draws the pictures of one slide or image."""

    source: ImageSource
    chunks: Chunks
    """Yields the cells in px as written."""
    offset: tuple[int, int]
    """Offset from the cells' px to px of level 0."""
    classes: Sequence[str]
    area: Area
    """Searched area; borders of annotated regions are drawn."""

    def density_sheet(self) -> Image.Image:
        """Draw the slide, and for each class the slide in grey with the class's density in its colour."""
        source = self.source
        overview = source.overview(max(source.size) * source.mpp / DENSITY_SIDE)
        scale = overview.width / source.size[0]
        counts_CHW = self._counts(overview.height, overview.width, scale)
        px_um = source.mpp / scale
        blur = min(max(BLUR_UM / px_um, 2.0), DENSITY_SIDE / 20)
        grey = np.asarray(overview.convert("L").convert("RGB"), np.float32) * 0.5 + 127
        panels, captions = (
            [overview],
            [f"{source.path.name}: {int(counts_CHW.sum()):,} cells on {self.area.mm2:.3g} mm2 ({self.area.kind})"],
        )
        for label, counts_HW in enumerate(counts_CHW):
            density_HW = ndimage.gaussian_filter(counts_HW, blur, mode="constant") / (px_um**2 * 1e-6)
            peak = float(density_HW.max())
            weight_HW1 = (density_HW / peak if peak else density_HW)[..., None] ** 0.7  # low ones show, too
            painted = grey * (1 - weight_HW1) + _dark(label) * weight_HW1
            panels.append(Image.fromarray(painted.astype(np.uint8)))
            captions.append(f"{self.classes[label]}: {int(counts_HW.sum()):,}, at most {peak:,.0f} per mm2")
        panels = [self._outlined(panel, (0, 0), 1 / scale) for panel in panels]
        columns = 2 if overview.width > overview.height else min(4, len(panels))
        side = (max(overview.width, CAPTION_WIDTH), overview.height)
        return contact_sheet(panels, columns, captions, side=side, title="cell density per class")

    def region_sheet(self, annotated: Cells | None = None) -> Image.Image | None:
        """Draw regions with predicted cells beside annotated ones (the paper's Figure 4) or beside the bare image.

        Args:
            annotated: Cells in px of level 0; the regions with most of them are drawn.

        Returns:
            None if there are no cells.
        """
        panels, captions = [], []
        for left, top in self._corners(annotated):
            try:
                picture, zoom = self._region(left, top)
            except SlideError:  # its tile is among the unreadable ones, which are reported
                continue
            predicted = self._inside(left, top)
            beside, caption = picture, f"x {left:.0f}, y {top:.0f}"
            if annotated is not None:
                true = _within(annotated, left, top, self._side)
                beside, caption = _drawn(picture, true, zoom), f"{caption}: {len(true.labels_N)} annotated"
            panels += [beside, _drawn(picture, predicted, zoom)]
            captions += [caption, f"{len(predicted.labels_N)} predicted"]
        if not panels:
            return None
        title = f"{'image' if annotated is None else 'annotated'} | predicted, {self._um:.0f} um wide"
        columns = min(4, len(panels))
        return contact_sheet(panels, columns, captions, side=REGION_SIDE, title=title, legend=self.classes)

    @property
    def _side(self) -> float:
        """Side of a region, px of level 0."""
        return min(REGION_UM / self.source.mpp, *map(float, self.source.size))

    @property
    def _um(self) -> float:
        return self._side * self.source.mpp

    def _region(self, left: float, top: float) -> tuple[Image.Image, float]:
        """Read a region; returns it and the number of its px in one of level 0."""
        mpp = max(self._um / REGION_SIDE, self.source.mpp)
        px = max(1, round(self._um / mpp))
        picture = self.source.read(left, top, px, px, mpp)
        picture = picture.resize((REGION_SIDE, REGION_SIDE), Image.Resampling.BICUBIC)
        return self._outlined(picture, (left, top), self._side / REGION_SIDE), REGION_SIDE / self._side

    def _outlined(self, picture: Image.Image, corner: tuple[float, float], px: float) -> Image.Image:
        """Draw the border of annotated regions on a picture from `corner` on with px of `px` px of level 0."""
        if not isinstance(self.area, Regions):
            return picture
        inside_HW = self.area.mask(corner, px, picture.height, picture.width)
        # Places beyond the picture count as inside, else its edges would be lines.
        inner_HW, innermost_HW = (
            ndimage.binary_erosion(inside_HW, iterations=deep, border_value=1) for deep in (OUTLINE, 2 * OUTLINE)
        )
        pixels_HW3 = np.array(picture)
        pixels_HW3[inside_HW & ~inner_HW] = ImageColor.getrgb(RIM)
        pixels_HW3[inner_HW & ~innermost_HW] = 255
        return Image.fromarray(pixels_HW3)

    def _counts(self, height: int, width: int, scale: float) -> np.ndarray:
        """Count the cells of each class in each px of a picture of the source: (C, height, width)."""
        counts = np.zeros(len(self.classes) * height * width, np.float32)
        for rows in self.chunks():
            x_N, y_N = ((rows.points_N2 + self.offset) * scale).astype(np.int64).T
            place_N = (rows.labels_N * height + y_N.clip(0, height - 1)) * width + x_N.clip(0, width - 1)
            counts += np.bincount(place_N, minlength=len(counts)).astype(np.float32)
        return counts.reshape(len(self.classes), height, width)

    def _corners(self, annotated: Cells | None) -> list[tuple[float, float]]:
        """Corners of the regions to draw, px of level 0."""
        height, width = (math.ceil(side / self._side) for side in reversed(self.source.size))
        if annotated is None:
            counts_CP = self._counts(height, width, 1 / self._side).reshape(len(self.classes), -1)
            places = _most_populated(counts_CP)
        else:
            x_N, y_N = (annotated.points_N2 // self._side).astype(int).T
            inside_N = (x_N >= 0) & (x_N < width) & (y_N >= 0) & (y_N < height)
            counts_P = np.bincount((y_N * width + x_N)[inside_N], minlength=height * width)
            places = [int(place) for place in np.argsort(-counts_P, kind="stable")[:REGIONS] if counts_P[place]]
        # No region reaches beyond the source.
        last = [side - self._side for side in self.source.size]
        return [
            (min(place % width * self._side, last[0]), min(place // width * self._side, last[1]))
            for place in places
        ]

    def _inside(self, left: float, top: float) -> Cells:
        """Predicted cells of a region."""
        parts = [Cells(np.empty((0, 2)), np.empty(0, np.int64), np.empty(0))]  # there may be none at all
        for rows in self.chunks():
            cells = Cells(rows.points_N2 + self.offset, rows.labels_N, rows.probability_N)
            parts.append(_within(cells, left, top, self._side))
        return Cells(*(np.concatenate([getattr(part, name) for part in parts]) for name in Cells.__annotations__))


def _most_populated(counts_CP: np.ndarray) -> list[int]:
    """Places with most cells of each class in turn, and one with a median number of cells."""
    total_P = counts_CP.sum(axis=0)
    ranked_P = np.argsort(total_P, kind="stable")[(total_P == 0).sum() :]
    middling = [int(ranked_P[len(ranked_P) // 2])] if len(ranked_P) else []
    orders = [np.argsort(-counts_P, kind="stable")[: (counts_P > 0).sum()] for counts_P in counts_CP]
    turns = [int(order[turn]) for turn in range(REGIONS) for order in orders if turn < len(order)]
    return list(dict.fromkeys([*turns[: REGIONS - 1], *middling, *turns]))[:REGIONS]


def _within(cells: Cells, left: float, top: float, side: float) -> Cells:
    """Cells of a square, in px from its corner."""
    from_corner_N2 = cells.points_N2 - (left, top)
    inside_N = ((from_corner_N2 >= 0) & (from_corner_N2 < side)).all(axis=1)
    return Cells(from_corner_N2[inside_N], cells.labels_N[inside_N], cells.scores_N[inside_N])


def _drawn(picture: Image.Image, cells: Cells, zoom: float) -> Image.Image:
    return draw_points(picture, cells.points_N2 * zoom, cells.labels_N, radius=5)


def _dark(label: int) -> np.ndarray:
    """Darkened colour of a class, visible on light grey."""
    return np.array(colour_of(label), np.float32) * 0.75
