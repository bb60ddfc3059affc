"""Areas that somebody has drawn."""

import math
from dataclasses import dataclass

import numpy as np

Ring = np.ndarray
"""Corners (N, 2) of a closed line."""


@dataclass(frozen=True)
class Polygon:
    """A line around an area, and lines around the holes in it."""

    rings: tuple[Ring, ...]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        low, high = self.rings[0].min(axis=0), self.rings[0].max(axis=0)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])

    def contains(self, points_N2: np.ndarray) -> np.ndarray:
        """Which points lie inside (even-odd rule over all rings)."""
        left, top, right, bottom = self.box
        x_N, y_N = points_N2.T
        inside_N = (x_N >= left) & (x_N < right) & (y_N >= top) & (y_N < bottom)
        candidates = np.flatnonzero(inside_N)
        inside_N[candidates] = self._odd(points_N2[candidates])
        return inside_N

    def _odd(self, points_N2: np.ndarray) -> np.ndarray:
        """Whether a ray to the left crosses the rings an odd number of times."""
        odd_N = np.zeros(len(points_N2), bool)
        for ring in self.rings:
            for (x1, y1), (x2, y2) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
                if y1 == y2:
                    continue
                crosses = (points_N2[:, 1] >= min(y1, y2)) & (points_N2[:, 1] < max(y1, y2))
                odd_N ^= crosses & (points_N2[:, 0] >= x1 + (points_N2[:, 1] - y1) * (x2 - x1) / (y2 - y1))
        return odd_N

    @property
    def centroid(self) -> tuple[float, float]:
        """Centre of gravity of what the first ring encloses; the mean corner of a ring that encloses nothing."""
        ring = self.rings[0]
        from_mean = ring - ring.mean(axis=0)  # large coordinates would cost digits
        after = np.roll(from_mean, -1, axis=0)
        cross = from_mean[:, 0] * after[:, 1] - after[:, 0] * from_mean[:, 1]
        area = cross.sum() / 2
        shift = ((from_mean + after) * cross[:, None]).sum(axis=0) / (6 * area) if area else np.zeros(2)
        x, y = ring.mean(axis=0) + shift
        return float(x), float(y)

    def shifted(self, x: float, y: float) -> "Polygon":
        """The same elsewhere."""
        return Polygon(tuple(ring + np.array([x, y]) for ring in self.rings))

    def mask(self, corner: np.ndarray, px: float | np.ndarray, height: int, width: int) -> np.ndarray:
        """A raster from `corner` on: True where the centre of a place lies inside.

        Args:
            corner: x and y.
            px: Side of a place, or its width and height.
            height: Of the raster, places.
            width: As `height`.
        """
        mask_HW = np.zeros((height, width), bool)
        for row, crossings in self._crossings(corner, px, height).items():
            for start, end in zip(crossings[::2], crossings[1::2], strict=True):
                mask_HW[row, max(0, math.ceil(start - 0.5)) : max(0, math.ceil(end - 0.5))] = True
        return mask_HW

    def _crossings(self, corner: np.ndarray, px: float | np.ndarray, rows: int) -> dict[int, list[float]]:
        """Where the rings cross the middle of each row of a raster, in px of it, sorted."""
        found: dict[int, list[float]] = {}
        for ring in self.rings:
            scaled = (ring - corner) / px
            for (x1, y1), (x2, y2) in zip(scaled, np.roll(scaled, -1, axis=0), strict=True):
                low, high = min(y1, y2), max(y1, y2)
                for row in range(max(0, math.ceil(low - 0.5)), min(rows, math.ceil(high - 0.5))):
                    found.setdefault(row, []).append(x1 + (row + 0.5 - y1) * (x2 - x1) / (y2 - y1))
        return {row: sorted(crossings) for row, crossings in found.items()}
