"""Tiles composed at fractions of a px, bit-identical to OpenSlide on levels with a non-integer downsample.

OpenSlide takes positions in px of level 0, which fall between px of such a level, and has cairo shift each tile:
bilinear interpolation in single precision, tiles drawn from the last to the first, each filling the coverage that
the canvas still lacks (the operator "saturate"), and eight bits a channel in between. The order of operations here
is the same.
"""

import numpy as np

from shared.wsi.rgb import on_white

FRACTIONS = 65536  # positions have 16 fractional bits
ONE, LEVELS, BRIGHTEST = np.float32(1), np.float32(256), np.float32(255)
PER_GREY = np.float32(1 / 255)
ROWS = 32  # at a time: intermediate values stay in the processor's cache
Range = tuple[int, int]  # from, to before


class Canvas:
    """An RGBA image of `size` (width, height) px on which tiles are painted."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size
        self._pixels_HW4 = np.zeros((size[1], size[0], 4), np.uint8)

    def paint(self, tile_HW3: np.ndarray, x: float, y: float) -> None:
        """Add a tile whose corner lies at (`x`, `y`) px of the canvas."""
        height, width = tile_HW3.shape[:2]
        inside = ((0, height - 1), (0, width - 1))
        corner = (_place(x), _place(y))
        self._paint(tile_HW3, corner, inside, whole=True)
        for rows in ((-1, 0), (height - 1, height)):
            self._paint(tile_HW3, corner, (rows, (-1, width)), whole=False)
        for columns in ((-1, 0), (width - 1, width)):
            self._paint(tile_HW3, corner, (inside[0], columns), whole=False)

    def pixels(self) -> np.ndarray:
        """Return the painted px on white: uint8 RGB."""
        alpha_HW = self._pixels_HW4[..., 3]
        partly_HW = (alpha_HW > 0) & (alpha_HW < 255)
        part_N4 = self._pixels_HW4[partly_HW].astype(np.uint16)
        self._pixels_HW4[partly_HW, :3] = np.minimum(255 * part_N4[:, :3] // part_N4[:, 3:], 255)
        return on_white(self._pixels_HW4)

    def _paint(
        self,
        tile_HW3: np.ndarray,
        corner: tuple[tuple[int, np.float32], tuple[int, np.float32]],
        part: tuple[Range, Range],
        whole: bool,
    ) -> None:
        """Paint px between rows and columns `part` of the tile and the next ones.

        Args:
            tile_HW3: The tile.
            corner: In x and y, the tile's px before the canvas's first one, and the weight of the next px.
            part: Rows and columns; those outside of the tile are empty.
            whole: `part` and the next rows and columns lie inside of the tile, which alone covers them.
        """
        (left, right_weight), (top, low_weight) = corner
        (row, row_end), (column, column_end) = part
        row, row_end = max(row, top), min(row_end, top + self._size[1])
        column, column_end = max(column, left), min(column_end, left + self._size[0])
        if row >= row_end or column >= column_end:
            return
        canvas_HW4 = self._pixels_HW4[row - top : row_end - top, column - left : column_end - left]
        if whole:
            for first in range(0, row_end - row, ROWS):
                end = min(first + ROWS, row_end - row)
                source_HW3 = tile_HW3[row + first : row + end + 1, column : column_end + 1] * PER_GREY
                between_HW3 = _between(source_HW3, right_weight, low_weight)
                _cover(canvas_HW4[first:end], between_HW3, right_weight, low_weight)
        else:
            source_HW4 = _with_coverage(tile_HW3, (row, row_end + 1), (column, column_end + 1))
            _saturate(canvas_HW4, _between(source_HW4, right_weight, low_weight))


def _cover(canvas_HW4: np.ndarray, colours_HW3: np.ndarray, right: np.float32, low: np.float32) -> None:
    """Paint an empty part of the canvas with px that cover it completely."""
    weights = _between(np.ones((2, 2, 1), np.float32), right, low)  # 1, or off by its last bit
    colours_HW3 *= np.minimum(ONE / weights, ONE)
    canvas_HW4[..., :3] = _grey(colours_HW3)
    canvas_HW4[..., 3] = 255


def _saturate(canvas_HW4: np.ndarray, added_HW4: np.ndarray) -> None:
    """Add px as far as the canvas lacks coverage."""
    there_HW4 = canvas_HW4 * PER_GREY
    empty_HW1 = added_HW4[..., 3:] == 0
    lacking_HW1 = (ONE - there_HW4[..., 3:]) / np.where(empty_HW1, ONE, added_HW4[..., 3:])
    share_HW1 = np.where(empty_HW1, ONE, np.clip(lacking_HW1, 0, ONE))
    canvas_HW4[...] = _grey(np.minimum(added_HW4 * share_HW1 + there_HW4, ONE))


def _place(distance: float) -> tuple[int, np.float32]:
    """Return the tile's px before the canvas's first one, and the weight of the next px."""
    fixed = round(-distance * FRACTIONS)
    return fixed // FRACTIONS, np.float32(fixed % FRACTIONS / FRACTIONS)


def _between(source_HWC: np.ndarray, right: np.float32, low: np.float32) -> np.ndarray:
    """Interpolate between four px; the order of sums and products decides the last bit."""
    result = source_HWC[:-1, :-1] * ((ONE - right) * (ONE - low))
    result += source_HWC[:-1, 1:] * (right * (ONE - low))
    result += source_HWC[1:, :-1] * ((ONE - right) * low)
    result += source_HWC[1:, 1:] * (right * low)
    return result


def _grey(values: np.ndarray) -> np.ndarray:
    """Convert 0..1 to 0..255 like pixman: 256 equal steps, the last of which is 1 alone."""
    return np.minimum(values * LEVELS, BRIGHTEST).astype(np.uint8)


def _with_coverage(tile_HW3: np.ndarray, rows: Range, columns: Range) -> np.ndarray:
    """Return a part of a tile and of its empty surroundings as 0..1 with alpha."""
    padded_HW4 = np.zeros((rows[1] - rows[0], columns[1] - columns[0], 4), np.float32)
    top, left = max(rows[0], 0), max(columns[0], 0)
    part_HW3 = tile_HW3[top : rows[1], left : columns[1]]
    inside = padded_HW4[top - rows[0] :, left - columns[0] :][: part_HW3.shape[0], : part_HW3.shape[1]]
    inside[..., :3] = part_HW3 * PER_GREY
    inside[..., 3] = 1
    return padded_HW4
