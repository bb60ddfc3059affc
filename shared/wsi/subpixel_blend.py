"""Tiles put together at a fraction of a px, as OpenSlide does it where a level is smaller by no whole number.

OpenSlide takes positions in px of level 0, which then lie between px of the level, and has cairo move each tile
there: bilinear interpolation in single precision, tiles drawn from the last to the first, each adding what the
canvas still lacks in coverage (the operator "saturate"), and eight bits a channel in between. Done here in the
same order of operations, the px are the same bits.
"""

import numpy as np

from shared.wsi.rgb import on_white

FRACTIONS = 65536  # positions have 16 bits after the point
ONE, LEVELS, BRIGHTEST = np.float32(1), np.float32(256), np.float32(255)
PER_GREY = np.float32(1 / 255)
ROWS = 32  # done at a time: what is in between stays in the processor's cache
Range = tuple[int, int]  # from, to before


class Canvas:
    """A picture of `size` (width, height) px with coverage, on which tiles are painted."""

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
        """What was painted, on white: uint8 RGB."""
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
        """Paint px that lie between rows and columns `part` of the tile and the next ones.

        Args:
            tile_HW3: The tile.
            corner: In x and y, the tile's px left of the canvas's first one, and how far it is from there.
            part: Rows and columns; those next to the tile are empty.
            whole: All of `part` and the next ones is tile, so that it is covered, and by nothing else.
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
    """Paint an empty part of the canvas with what covers it all."""
    weights = _between(np.ones((2, 2, 1), np.float32), right, low)  # 1, or off by its last bit
    colours_HW3 *= np.minimum(ONE / weights, ONE)
    canvas_HW4[..., :3] = _grey(colours_HW3)
    canvas_HW4[..., 3] = 255


def _saturate(canvas_HW4: np.ndarray, added_HW4: np.ndarray) -> None:
    """Add as much as the canvas lacks in coverage."""
    there_HW4 = canvas_HW4 * PER_GREY
    empty_HW1 = added_HW4[..., 3:] == 0
    lacking_HW1 = (ONE - there_HW4[..., 3:]) / np.where(empty_HW1, ONE, added_HW4[..., 3:])
    share_HW1 = np.where(empty_HW1, ONE, np.clip(lacking_HW1, 0, ONE))
    canvas_HW4[...] = _grey(np.minimum(added_HW4 * share_HW1 + there_HW4, ONE))


def _place(distance: float) -> tuple[int, np.float32]:
    """A tile's px left of (or above) the canvas's first one, and the weight of the next px there."""
    fixed = round(-distance * FRACTIONS)
    return fixed // FRACTIONS, np.float32(fixed % FRACTIONS / FRACTIONS)


def _between(source_HWC: np.ndarray, right: np.float32, low: np.float32) -> np.ndarray:
    """Values between px, each of four; the order of sums and products decides the last bit."""
    result = source_HWC[:-1, :-1] * ((ONE - right) * (ONE - low))
    result += source_HWC[:-1, 1:] * (right * (ONE - low))
    result += source_HWC[1:, :-1] * ((ONE - right) * low)
    result += source_HWC[1:, 1:] * (right * low)
    return result


def _grey(values: np.ndarray) -> np.ndarray:
    """0..1 as 0..255 in pixman's way: 256 equal steps, the last of which is 1 alone."""
    return np.minimum(values * LEVELS, BRIGHTEST).astype(np.uint8)


def _with_coverage(tile_HW3: np.ndarray, rows: Range, columns: Range) -> np.ndarray:
    """A part of a tile and of the emptiness around it as 0..1 with alpha."""
    padded_HW4 = np.zeros((rows[1] - rows[0], columns[1] - columns[0], 4), np.float32)
    top, left = max(rows[0], 0), max(columns[0], 0)
    part_HW3 = tile_HW3[top : rows[1], left : columns[1]]
    inside = padded_HW4[top - rows[0] :, left - columns[0] :][: part_HW3.shape[0], : part_HW3.shape[1]]
    inside[..., :3] = part_HW3 * PER_GREY
    inside[..., 3] = 1
    return padded_HW4
