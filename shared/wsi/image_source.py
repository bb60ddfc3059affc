"""Sources of pixels: slides, and images (PNG, JPEG, plain TIFF) of a given resolution.

Positions are px of level 0 (of an image: its px), (0, 0) = outer corner of the first pixel.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import openslide
from PIL import Image

from shared.errors import UserError
from shared.files import printable
from shared.wsi.resolution import ANISOTROPY, MPP_RANGE, UNITS
from shared.wsi.rgb import open_rgb, to_rgb
from shared.wsi.slide import MOST_UPSAMPLING, Slide, SlideError
from shared.wsi.slide_files import find_slides

PICTURES = (".png", ".jpg", ".jpeg")
TIFFS = (".tif", ".tiff")


class ImageSource(Protocol):
    """Pixels of a known size; `shared.wsi.slide.Slide` is one implementation."""

    path: Path
    size: tuple[int, int]
    """Width and height in px of level 0."""

    @property
    def mpp(self) -> float:
        """um/px of level 0."""

    def read(self, x: float, y: float, width: int, height: int, mpp: float) -> Image.Image:
        """Read `width` x `height` px of `mpp` um from (`x`, `y`) px of level 0; white outside."""

    def overview(self, mpp: float) -> Image.Image:
        """Read everything at `mpp` um/px, or its own if that is coarser."""

    def close(self) -> None:
        """Close the file."""


class Picture:
    """An image in memory."""

    def __init__(self, image: Image.Image, mpp: float, path: Path = Path("image")) -> None:
        """Convert the image to RGB, transparent px to white as on slides.

        Raises:
            SlideError: its pixels do not have 8 bits.
        """
        try:
            self._image = to_rgb(image)
        except ValueError as error:
            raise SlideError(f"{path} has {error}; write it as an 8-bit RGB image") from error
        self.path = path
        self.mpp = mpp
        self.size: tuple[int, int] = image.size

    @classmethod
    def open(cls, path: Path, slide_mpp: float | None, default_mpp: float | None = None) -> "Picture":
        """Read a file.

        Args:
            path: The file.
            slide_mpp: um/px, whatever the file states.
            default_mpp: um/px of a file that states none.

        Raises:
            SlideError: it is not an image, is too large, its pixels do not have 8 bits, or its resolution is not
                given.
        """
        try:
            image = open_rgb(path)
        except UserError as error:
            raise SlideError(str(error)) from error
        with Image.open(path) as header:
            mpp = slide_mpp or stated_mpp(header) or default_mpp
        if mpp is None:
            raise SlideError(f"{path} does not state its resolution; give um/px with --slide-mpp")
        return cls(image, mpp, path)

    @classmethod
    def of_array(cls, image_HWC: np.ndarray, mpp: float) -> "Picture":
        """Wrap uint8 RGB (H, W, 3)."""
        if image_HWC.shape[2:] != (3,) or not image_HWC.size or image_HWC.dtype != np.uint8:
            raise UserError(
                f"an image is an array of uint8 RGB (height, width, 3), not {image_HWC.dtype} {image_HWC.shape}"
            )
        return cls(Image.fromarray(image_HWC), mpp)

    def read(self, x: float, y: float, width: int, height: int, mpp: float) -> Image.Image:
        """See `ImageSource`; reduction is antialiased, enlargement by more than 1.25 refused.

        Px at the edges are not blended with white.
        """
        factor = mpp / self.mpp
        require_fine(self, mpp)
        canvas = Image.new("RGB", (width, height), "white")
        if factor == 1 and float(x).is_integer() and float(y).is_integer():
            canvas.paste(self._image, (-int(x), -int(y)))
            return canvas
        columns = _inside(x, width, factor, self.size[0])
        rows = _inside(y, height, factor, self.size[1])
        if columns and rows:
            box = (x + columns.start * factor, y + rows.start * factor)
            part = self._resampled((*box, x + columns.stop * factor, y + rows.stop * factor), columns, rows)
            canvas.paste(part, (columns.start, rows.start))
        return canvas

    def overview(self, mpp: float) -> Image.Image:
        """See `ImageSource`."""
        mpp = max(mpp, self.mpp)
        width, height = (math.ceil(side * self.mpp / mpp) for side in self.size)
        return self.read(0, 0, width, height, mpp)

    def close(self) -> None:
        """Do nothing."""

    def _resampled(self, box: tuple[float, float, float, float], columns: range, rows: range) -> Image.Image:
        """Resample a part, which extends by less than a px of the result beyond the image."""
        margin = math.ceil(2 * max(1.0, (box[2] - box[0]) / len(columns)))  # reach of the bicubic filter
        left, top = (max(0, math.floor(start) - margin) for start in box[:2])
        right, bottom = (min(side, math.ceil(end) + margin) for end, side in zip(box[2:], self.size, strict=True))
        part = self._image.crop((left, top, right, bottom))
        before = (max(0, math.ceil(top - box[1])), max(0, math.ceil(left - box[0])))
        after = (max(0, math.ceil(box[3] - bottom)), max(0, math.ceil(box[2] - right)))
        if any(before + after):
            widths = ((before[0], after[0]), (before[1], after[1]), (0, 0))
            part = Image.fromarray(np.pad(np.asarray(part), widths, mode="edge"))
        x, y = before[1] - left, before[0] - top
        inside = (box[0] + x, box[1] + y, box[2] + x, box[3] + y)
        return part.resize((len(columns), len(rows)), Image.Resampling.BICUBIC, inside)


def _inside(start: float, count: int, factor: float, side: int) -> range:
    """Return which of `count` px, each `factor` px of an image wide, from `start` on overlap its `side` px."""
    first, end = (round(edge / factor, 6) for edge in (-start, side - start))
    return range(max(0, math.floor(first)), min(count, math.ceil(end)))


def open_source(path: Path, slide_mpp: float | None = None, default_mpp: float | None = None) -> ImageSource:
    """Open a slide or an image.

    Args:
        path: The file.
        slide_mpp: um/px of level 0, whatever the file states.
        default_mpp: um/px of a picture that states none.

    Raises:
        SlideError: it is neither, or has no resolution.
    """
    suffix = path.suffix.lower()
    if suffix in PICTURES or (suffix in TIFFS and path.is_file() and not openslide.OpenSlide.detect_format(path)):
        return Picture.open(path, slide_mpp, default_mpp)
    return Slide(path, slide_mpp)


def stated_mpp(image: Image.Image) -> float | None:
    """um/px that a picture states as dots per inch; None for none, or for those of screens and prints."""
    try:
        x, y = (UNITS["inch"] / float(dots) for dots in image.info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    mpp = (x + y) / 2
    return mpp if MPP_RANGE[0] <= mpp <= MPP_RANGE[1] and abs(x - y) <= ANISOTROPY * mpp else None


def require_fine(source: ImageSource, mpp: float) -> None:
    """Refuse a source whose px would have to be enlarged by more than 1.25.

    Raises:
        SlideError: it is too coarse.
    """
    if source.mpp > mpp * MOST_UPSAMPLING:
        raise SlideError(
            f"{source.path} has {source.mpp:.3g} um/px and cannot be read at {mpp:.3g} um/px; take a finer one"
        )


def size_at(source: ImageSource, mpp: float) -> tuple[float, float]:
    """Return width and height in px of `mpp` um, rounded to 6 decimals."""
    width, height = (round(side * source.mpp / mpp, 6) for side in source.size)
    return width, height


def is_slide(source: ImageSource) -> bool:
    """Return whether a source may show glass beside tissue."""
    return isinstance(source, Slide)


def bounds_corner(source: ImageSource) -> tuple[int, int]:
    """Return QuPath's origin in px of level 0: the corner of the scanned area, if the slide states it."""
    if not isinstance(source, Slide):
        return (0, 0)
    with openslide.OpenSlide(source.path) as handle:
        x, y = (handle.properties.get(f"openslide.bounds-{axis}", "0") for axis in "xy")
    return int(x), int(y)


def find_sources(paths: Sequence[Path], is_drawn: Callable[[Path], bool]) -> dict[Path, Path]:
    """Find the slides and images given, and those below the folders given; map each to its name without suffix.

    Below a folder the name is the path from there on, so that no two files share one.

    Args:
        paths: Files and folders.
        is_drawn: Recognises images drawn by a prediction, which are left out.

    Raises:
        UserError: a path does not exist, a folder holds nothing, two files would have one name.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.exists():
            raise UserError(printable(f"there is no slide, image or folder {path}; check the path"))
        below = _in_folder(path) if path.is_dir() else [path]
        if not below:
            raise UserError(printable(f"{path} holds neither slides nor images; check the path"))
        found.update(
            {
                file: file.relative_to(path) if path.is_dir() else Path(file.name)
                for file in below
                if not is_drawn(file)
            }
        )
    if paths and not found:
        raise UserError(printable(f"{paths[0]} holds only images drawn by a prediction; give slides or images"))
    return _named(found)


def _in_folder(folder: Path) -> list[Path]:
    pictures = (path for path in visible_files(folder) if path.suffix.lower() in PICTURES)
    return sorted([*find_slides(folder), *pictures])


def visible_files(folder: Path) -> list[Path]:
    """Return the files below a folder, sorted, without hidden ones and those in hidden folders."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if not any(p.startswith(".") for p in path.relative_to(folder).parts))


def _named(found: dict[Path, Path]) -> dict[Path, Path]:
    """Map paths to names without suffix; with suffix where two files differ in nothing else."""
    stems = [name.with_suffix("") for name in found.values()]
    names = {
        path: name if stems.count(name.with_suffix("")) > 1 else name.with_suffix("")
        for path, name in found.items()
    }
    for path, name in names.items():
        others = [other for other in names if names[other] == name and other != path]
        if others:
            raise UserError(printable(f"{path} and {others[0]} share one name; give them one --out each"))
    return names
