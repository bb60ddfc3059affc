"""Whole-slide images: opening them and reading them at a given um/px.

Positions are px of level 0, (0, 0) = outer corner of the first pixel. Sizes are px of the result. Every error is a
`SlideError` with the file and the reason, so that a bad slide costs only itself.
"""

import contextlib
import math
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import openslide
from PIL import Image

from shared.errors import UserError
from shared.files import printable
from shared.wsi.jpeg_tile_reader import TiledTiff
from shared.wsi.resampling import resample
from shared.wsi.resolution import Resolution, UnknownResolutionError, resolve
from shared.wsi.rgb import on_white
from shared.wsi.tiff_faults import MAGIC as TIFF_MAGIC
from shared.wsi.tiff_faults import fault_of

# Maximum enlargement of pixels: 0.293 um/px may serve for 0.25, 0.5 may not.
MOST_UPSAMPLING = 1.25
# A level is fine enough if it is coarser than requested by less than this factor; the difference is invisible.
LEVEL_TOLERANCE = 1.005
# OpenSlide reads more px than this in pieces and, on levels with a non-integer downsample, rounds the position of
# each.
OPENSLIDE_PIECE = 4096
BLOCK = 2048  # px of a level per read of an overview: 16 MB
MIN_BLOCK = 256  # px of a level, about a tile: unreadable blocks are divided down to this

# `auto` decodes plain JPEG tiles directly and everything else by OpenSlide; the pixels are the same.
Reader = Literal["auto", "openslide"]


class SlideError(UserError):
    """A slide that cannot be opened or read, or has no resolution; one sentence with the file and the fix."""

    def __init__(self, sentence: str) -> None:
        super().__init__(printable(sentence))


@dataclass(frozen=True)
class Window:
    """Level of a read, and the number of its px per px of the result (below 1: enlarged)."""

    level: int
    factor: float


class Slide:
    """An open slide.

    Attributes:
        path: The file.
        resolution: um/px of level 0 and its source.
        quickhash: OpenSlide's hash of the smallest level and the description; empty if it has none.
        size: Width and height in px of level 0.
        level_mpps: um/px of every level, finest first.
    """

    def __init__(
        self,
        path: Path,
        slide_mpp: float | None = None,
        trust_objective: bool = False,
        reader: Reader = "auto",
    ) -> None:
        """Open `path`.

        Args:
            path: The file.
            slide_mpp: um/px of level 0, overriding what the file states.
            trust_objective: Take the resolution from the objective's power if nothing better is stated.
            reader: The decoder.

        Raises:
            SlideError: the file is missing, not a slide or cut short, or has no usable resolution.
        """
        self.path = path
        self._handle = _open(path)
        self.resolution = self._resolve(slide_mpp, trust_objective)
        self.quickhash = self._handle.properties.get("openslide.quickhash-1", "")
        self.size: tuple[int, int] = self._handle.dimensions
        self._level_sizes: tuple[tuple[int, int], ...] = self._handle.level_dimensions
        self._downsamples: tuple[float, ...] = self._handle.level_downsamples
        self.level_mpps = tuple(self.mpp * downsample for downsample in self._downsamples)
        self._tiles = self._open_tiles() if reader == "auto" else None

    def __enter__(self) -> "Slide":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._handle.close()
        if self._tiles is not None:
            self._tiles.close()

    @property
    def mpp(self) -> float:
        """um/px of level 0."""
        return self.resolution.mpp

    def window(self, mpp: float, allow_upsampling: bool = False) -> Window:
        """Choose the coarsest level that is at least as fine as `mpp`; level 0 if none is.

        Raises:
            SlideError: level 0 would have to be enlarged by more than 1.25.
        """
        fine_enough = [i for i, level in enumerate(self.level_mpps) if level <= mpp * LEVEL_TOLERANCE]
        level = max(fine_enough, default=0)
        factor = mpp / self.level_mpps[level]
        if 1 / factor > MOST_UPSAMPLING and not allow_upsampling:
            raise SlideError(
                f"{self.path} was scanned at {self.mpp:.3g} um/px and cannot be read at {mpp:.3g} um/px; "
                "take a slide that was scanned finer"
            )
        return Window(level, factor)

    def read(self, x: float, y: float, width: int, height: int, mpp: float) -> Image.Image:
        """Return the result of `read_pixels` as an image."""
        return Image.fromarray(self.read_pixels(x, y, width, height, mpp))

    def read_pixels(  # noqa: PLR0913
        self, x: float, y: float, width: int, height: int, mpp: float, allow_upsampling: bool = False
    ) -> np.ndarray:
        """Read `width` x `height` px of `mpp` um with the outer corner at (`x`, `y`) px of level 0: uint8 RGB.

        Px outside the slide or outside the scanned area are white. Reduction is antialiased.

        Raises:
            SlideError: the pixels cannot be decoded (the slide stays usable); or as for `window`.
        """
        window = self.window(mpp, allow_upsampling)
        downsample, factor = self._downsamples[window.level], window.factor
        left, top = round(x / downsample, 6), round(y / downsample, 6)  # removes rounding errors of whole px
        right, bottom = left + width * factor, top + height * factor
        if abs(factor - 1) < 1e-9 and left.is_integer() and top.is_integer():
            return self._read_level(window.level, (int(left), int(top)), (width, height))
        margin = math.ceil(2 * max(1.0, factor))  # reach of the bicubic filter beyond the box
        columns, rows = self._level_sizes[window.level]
        first_x, end_x = _with_margin(left, right, margin, columns)
        first_y, end_y = _with_margin(top, bottom, margin, rows)
        pixels_HW3 = self._read_level(window.level, (first_x, first_y), (end_x - first_x, end_y - first_y))
        lacking = (max(0, math.ceil(bottom) - end_y), max(0, math.ceil(right) - end_x))
        if any(lacking):
            pixels_HW3 = np.pad(pixels_HW3, ((0, lacking[0]), (0, lacking[1]), (0, 0)), mode="edge")
        box = (left - first_x, top - first_y, right - first_x, bottom - first_y)
        return resample(pixels_HW3, (width, height), box)

    def overview(self, mpp: float) -> Image.Image:
        """Read the whole slide at `mpp` um/px, or its own if that is coarser; unreadable parts are white.

        Read block by block, so that memory does not depend on the slide's levels.

        Raises:
            SlideError: no part of it can be read.
        """
        mpp = max(mpp, self.mpp)
        width, height = (math.ceil(side * self.mpp / mpp) for side in self.size)
        block = max(64, int(BLOCK / self.window(mpp).factor))
        image = Image.new("RGB", (width, height), "white")
        boxes = [
            (left, top, min(left + block, width), min(top + block, height))
            for top in range(0, height, block)
            for left in range(0, width, block)
        ]
        errors: list[SlideError] = []
        readable = [self._paste_block(image, box, mpp, errors) for box in boxes]
        if not any(readable):
            raise errors[0]
        return image

    def _paste_block(
        self, image: Image.Image, box: tuple[int, int, int, int], mpp: float, errors: list[SlideError]
    ) -> bool:
        """Read a block of an overview, or its readable quarters; return whether anything was read."""
        left, top, right, bottom = box
        try:
            part = self.read(left * mpp / self.mpp, top * mpp / self.mpp, right - left, bottom - top, mpp)
        except SlideError as error:
            errors.append(error)
            if max(right - left, bottom - top) * self.window(mpp).factor < MIN_BLOCK:
                return False
            x, y = (left + right + 1) // 2, (top + bottom + 1) // 2
            quarters = [(left, top, x, y), (x, top, right, y), (left, y, x, bottom), (x, y, right, bottom)]
            filled = [quarter for quarter in quarters if quarter[0] < quarter[2] and quarter[1] < quarter[3]]
            readable = [self._paste_block(image, quarter, mpp, errors) for quarter in filled]
            return any(readable)
        image.paste(part, (left, top))
        return True

    def _read_level(self, level: int, corner: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        """Read px of a level, white outside the scanned area; `corner` is in px of the level too."""
        if min(corner) < 0:  # there OpenSlide shifts levels with a non-integer downsample
            left, top = (max(0, -place) for place in corner)
            pixels_HW3 = np.full((size[1], size[0], 3), 255, np.uint8)
            if left < size[0] and top < size[1]:
                inside = (size[0] - left, size[1] - top)
                pixels_HW3[top:, left:] = self._read_level(level, (corner[0] + left, corner[1] + top), inside)
            return pixels_HW3
        downsample = self._downsamples[level]
        at = (round(corner[0] * downsample), round(corner[1] * downsample))
        if self._tiles is not None and self._in_one_piece(level, size):
            # A refusal, or the result of a damaged file or a failing disk: OpenSlide reads it or names the fault.
            with contextlib.suppress(Exception):
                return self._tiles.read(level, (at[0] / downsample, at[1] / downsample), size)
        try:
            region = self._handle.read_region(at, level, size)
        except openslide.OpenSlideError as error:
            # After an error OpenSlide refuses all further reads of a handle.
            self._handle.close()
            self._handle = _open(self.path)
            raise SlideError(
                f"{self.path} has unreadable parts ({_reason(error, self.path)}); copy or scan it again"
            ) from error
        return on_white(np.asarray(region))

    def _in_one_piece(self, level: int, size: tuple[int, int]) -> bool:
        """Return whether OpenSlide reads px of a level as one piece, whose position it rounds only once."""
        return self._downsamples[level].is_integer() or max(size) <= OPENSLIDE_PIECE

    def _open_tiles(self) -> TiledTiff | None:
        try:
            return TiledTiff(self.path, self._handle.properties, self._level_sizes)
        except Exception:  # a refusal, or whatever a damaged file leads to
            return None

    def _resolve(self, slide_mpp: float | None, trust_objective: bool) -> Resolution:
        try:
            return resolve(self._handle.properties, slide_mpp, trust_objective)
        except UnknownResolutionError as error:
            self._handle.close()
            raise SlideError(f"{self.path} {error}; give its um/px with --slide-mpp") from error


def _with_margin(start: float, end: float, margin: int, side: int) -> tuple[int, int]:
    """Return the whole px around an interval of a level plus a margin, clipped to the level if it starts inside.

    Sides of levels are rounded, so that an interval inside the slide may extend up to a px beyond a coarser level.
    """
    first, last = math.floor(start) - margin, math.ceil(end) + margin
    return (max(first, 0) if start >= 0 else first), (min(last, side) if end < side + 1 else last)


def _open(path: Path) -> openslide.OpenSlide:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would block
            raise SlideError(f"{path} is not a regular file; remove it")
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise SlideError(f"{path} cannot be opened: {error.strerror}") from error
    if not magic:
        raise SlideError(f"{path} is empty; copy it again")
    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideError as error:
        if magic in TIFF_MAGIC:
            raise SlideError(f"{path} {fault_of(path) or _refusal(error, path)}") from error
        raise SlideError(f"{path} {_refusal(error, path)}") from error


def _refusal(error: openslide.OpenSlideError, path: Path) -> str:
    if isinstance(error, openslide.OpenSlideUnsupportedFormatError):
        return "is not a slide: OpenSlide cannot read it; copy it again or remove it"
    return f"cannot be read by OpenSlide ({_reason(error, path)}); copy it again or remove it"


def _reason(error: Exception, path: Path) -> str:
    """Return OpenSlide's message without the file's name."""
    return str(error).removeprefix(f"Reading {path}: ")
