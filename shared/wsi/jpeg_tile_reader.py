"""Reading the tiles of a TIFF of JPEGs straight from the file: OpenSlide's pixels at a fifth of its time.

OpenSlide spends most of a read putting tiles together; here they are decoded by the same library (libjpeg-turbo)
and copied into place. Whatever is out of the ordinary (other compressions and scanners, missing or damaged tiles)
is refused, and left to OpenSlide.
"""

import logging
import math
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
import tifffile

from shared.wsi.subpixel_blend import Canvas

# Scanners whose levels are plain grids of tiles: Aperio's, and the converters' that OpenSlide calls generic.
VENDORS = ("aperio", "generic-tiff")
JPEG, RGB, YCBCR, CONTIGUOUS = 7, 2, 6, 1  # values of TIFF tags
# Decoded tiles kept, for reads that overlap; 85 of 256 px. Fresh memory costs more than what a larger store saves.
CACHE_BYTES = 16 << 20
# OpenSlide takes a place as whole px if it is off by less (cairo rounds to 1/256), and blends px otherwise.
WHOLE, DOUBT = 1 / 512, 1e-5
SOI, EOI, SOS, APP0, APP14 = b"\xff\xd8", 0xD9, 0xDA, 0xE0, 0xEE  # JPEG markers
# Adobe's segment is what tells libjpeg the colours of a stream: 0 means RGB, 1 YCbCr.
ADOBE = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0"

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what it finds odd, OpenSlide reads


class NotReadError(Exception):
    """These pixels cannot be read directly; OpenSlide may be able to, or knows what is wrong with them."""


@dataclass(frozen=True)
class TileGrid:
    """One level: its size, its tiles row by row, and what every tile's JPEG stream has to begin with."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    offsets: Sequence[int]
    sizes: Sequence[int]
    beginning: bytes

    @property
    def columns(self) -> int:
        """Tiles in a row."""
        return -(-self.width // self.tile_width)


class TiledTiff:
    """The levels of an open slide that are grids of JPEG tiles."""

    def __init__(self, path: Path, properties: Mapping[str, str], sizes: Sequence[tuple[int, int]]) -> None:
        """Open `path`.

        Args:
            path: The file.
            properties: OpenSlide's properties.
            sizes: Width and height in px of OpenSlide's levels, finest first.

        Raises:
            NotReadError: it is no such file.
        """
        if properties.get("openslide.vendor") not in VENDORS:
            raise NotReadError(f"{path} is from a scanner with a format of its own")
        grids = _grids(path)
        self._grids = [grids.get(size) for size in sizes]
        if not any(self._grids):
            raise NotReadError(f"{path} holds no JPEG tiles")
        self._file = os.open(path, os.O_RDONLY)
        self._cache: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self.cached_bytes = 0

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
        self._cache.clear()

    def read(self, level: int, place: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
        """Px of a level, uint8 RGB, white outside of it; `place` (the corner) and `size` are in its px.

        Raises:
            NotReadError: a tile is missing or damaged, or the level is none of JPEG tiles.
        """
        grid = self._grids[level]
        if grid is None:
            raise NotReadError(f"level {level} holds no JPEG tiles")
        corner = (round(place[0]), round(place[1]))
        distance = max(abs(place[0] - corner[0]), abs(place[1] - corner[1]))
        if abs(distance - WHOLE) < DOUBT:
            raise NotReadError("too near to the limit up to which OpenSlide takes px as whole")
        if distance < WHOLE:
            return self._copied(level, grid, corner, size)
        return self._blended(level, grid, place, size)

    def _copied(self, level: int, grid: TileGrid, corner: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        """Px as they are in the tiles."""
        (left, top), (width, height) = corner, size
        pixels_HW3 = np.empty((height, width, 3), np.uint8)
        if left < 0 or top < 0 or left + width > grid.width or top + height > grid.height:
            pixels_HW3[:] = 255
        rows = list(_spans(max(top, 0), min(top + height, grid.height), grid.tile_height))
        columns = list(_spans(max(left, 0), min(left + width, grid.width), grid.tile_width))
        for row, y, end_y in rows:
            for column, x, end_x in columns:
                tile_HW3 = self._tile(level, grid, row * grid.columns + column)
                tile_y, tile_x = row * grid.tile_height, column * grid.tile_width
                part_HW3 = tile_HW3[y - tile_y : end_y - tile_y, x - tile_x : end_x - tile_x]
                pixels_HW3[y - top : end_y - top, x - left : end_x - left] = part_HW3
        return pixels_HW3

    def _blended(
        self, level: int, grid: TileGrid, place: tuple[float, float], size: tuple[int, int]
    ) -> np.ndarray:
        """Px between those of the tiles, painted from the last tile to the first as OpenSlide does."""
        canvas = Canvas(size)
        left, top = (math.floor(value) for value in place)
        # A tile reaches a px further than where it lies.
        rows = list(_spans(max(top - 1, 0), min(top + size[1] + 2, grid.height), grid.tile_height))
        columns = list(_spans(max(left - 1, 0), min(left + size[0] + 2, grid.width), grid.tile_width))
        for row, _, _ in reversed(rows):
            for column, _, _ in reversed(columns):
                tile_HW3 = self._tile(level, grid, row * grid.columns + column)
                x, y = column * grid.tile_width, row * grid.tile_height
                inside_HW3 = tile_HW3[: grid.height - y, : grid.width - x]
                canvas.paint(inside_HW3, x - place[0], y - place[1])
        return canvas.pixels()

    def _tile(self, level: int, grid: TileGrid, index: int) -> np.ndarray:
        """A decoded tile, from those kept if it is among them."""
        key = (level, index)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        stream = os.pread(self._file, grid.sizes[index], grid.offsets[index])
        tile_HW3 = _decode(stream, grid)
        self._cache[key] = tile_HW3
        self.cached_bytes += tile_HW3.nbytes
        while self.cached_bytes > CACHE_BYTES:
            self.cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return tile_HW3


def _grids(path: Path) -> dict[tuple[int, int], TileGrid | None]:
    """The directories of a TIFF that are JPEG tiles, by width and height; None where two are of one size."""
    grids: dict[tuple[int, int], TileGrid | None] = {}
    try:
        with tifffile.TiffFile(path) as tiff:
            for page in tiff.pages:
                if page.is_tiled:
                    size = (page.imagewidth, page.imagelength)
                    grids[size] = None if size in grids else _grid(page)
    except Exception as error:  # tifffile raises whatever a damaged file makes it stumble over
        raise NotReadError(f"{path} is no TIFF that tifffile reads") from error
    if any(grid and 0 in grid.sizes for grid in grids.values()):
        # OpenSlide may fill the gap from a finer level, and then does so on all coarser ones, too.
        raise NotReadError(f"{path} lacks tiles")
    return grids


def _grid(page: tifffile.TiffPage) -> TileGrid | None:
    """The tiles of a directory, if OpenSlide decodes them as JPEG, too."""
    ordinary = (
        page.compression == JPEG
        and page.photometric in (RGB, YCBCR)
        and page.planarconfig == CONTIGUOUS
        and page.samplesperpixel == 3
        and page.bitspersample == 8
    )
    if not ordinary:
        return None
    tables = b"".join(_segments(page.jpegtables)) if page.jpegtables else b""
    beginning = SOI + ADOBE + bytes([page.photometric == YCBCR]) + tables
    sides = (page.imagewidth, page.imagelength, page.tilewidth, page.tilelength)
    return TileGrid(*sides, page.dataoffsets, page.databytecounts, beginning)


def _spans(start: int, end: int, side: int) -> Iterator[tuple[int, int, int]]:
    """The tiles of `side` px between two px: index, and the first px and the end of what is wanted of it."""
    for index in range(start // side, -(-end // side) if start < end else 0):
        yield index, max(start, index * side), min(end, (index + 1) * side)


def _decode(stream: bytes, grid: TileGrid) -> np.ndarray:
    """A tile's px, uint8 RGB.

    Raises:
        NotReadError: the stream is damaged, or not of the tile's size.
    """
    try:
        whole = b"".join((grid.beginning, *_segments(stream)))
        tile_HW3 = simplejpeg.decode_jpeg(whole)
    except (IndexError, ValueError) as error:
        raise NotReadError("a tile is damaged") from error
    if tile_HW3.shape != (grid.tile_height, grid.tile_width, 3):
        raise NotReadError("a tile is not of its size")
    return tile_HW3


def _segments(stream: bytes) -> Iterator[bytes]:
    """The segments of a JPEG stream, the last with all that follows, without those that tell its colours.

    The TIFF's own word on the colours counts, as it does for OpenSlide.

    Raises:
        IndexError, ValueError: it is no JPEG stream.
    """
    if not stream.startswith(SOI):
        raise ValueError("not a JPEG stream")
    place = 2
    while stream[place + 1] not in (SOS, EOI):
        end = place + 2 + int.from_bytes(stream[place + 2 : place + 4], "big")
        if stream[place] != 0xFF:
            raise ValueError("not a JPEG stream")
        if stream[place + 1] not in (APP0, APP14):
            yield stream[place:end]
        place = end
    if stream[place + 1] == SOS:
        yield stream[place:]
