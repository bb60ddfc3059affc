"""What cells are looked for in: slides, and pictures (PNG, JPEG, plain TIFF) whose resolution is given.

Positions are px of level 0 (of a picture: its px), (0, 0) = outer corner of the first pixel.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import openslide
from PIL import Image, UnidentifiedImageError

from finetune.predict.endings import drawn_by_prediction
from shared.command_line import UserError
from shared.slides import MOST_UPSAMPLING, Slide, SlideError, find_slides, printable

PICTURES = (".png", ".jpg", ".jpeg")
TIFFS = (".tif", ".tiff")
# Pillow's modes that become RGB without changing a colour.
EIGHT_BIT = ("RGB", "RGBA", "L", "P", "1", "CMYK", "YCbCr")


class Source(Protocol):
    """Something with pixels of a known size; `shared.slides.Slide` is one."""

    path: Path
    size: tuple[int, int]
    """Width and height in px of level 0."""

    @property
    def mpp(self) -> float:
        """um/px of level 0."""

    def read(self, x: float, y: float, width: int, height: int, mpp: float) -> Image.Image:
        """`width` x `height` px of `mpp` um from (`x`, `y`) px of level 0 on; white outside."""

    def overview(self, mpp: float) -> Image.Image:
        """The whole at `mpp` um/px, or its own where that is coarser."""

    def close(self) -> None:
        """Close the file."""


class Picture:
    """An image in memory."""

    def __init__(self, image: Image.Image, mpp: float, path: Path = Path("image")) -> None:
        self.path = path
        self.mpp = mpp
        self.size: tuple[int, int] = image.size
        self._image = image.convert("RGB")

    @classmethod
    def open(cls, path: Path, slide_mpp: float | None) -> "Picture":
        """Read a file.

        Raises:
            SlideError: it is no image, holds other than 8-bit pixels, or its resolution is not given.
        """
        if slide_mpp is None:
            raise SlideError(f"{path} does not say how large its pixels are; give their um with --slide-mpp")
        try:
            with Image.open(path) as image:
                mode = image.mode
                loaded = image.convert("RGB")
        except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise SlideError(f"{path} cannot be opened as an image; remove it or write it again") from error
        if mode not in EIGHT_BIT:
            raise SlideError(f"{path} has pixels of mode {mode}; write it as an 8-bit RGB image")
        return cls(loaded, slide_mpp, path)

    @classmethod
    def of_array(cls, image_HWC: np.ndarray, mpp: float) -> "Picture":
        """uint8 RGB (H, W, 3) as a source."""
        if image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or image_HWC.dtype != np.uint8:
            raise UserError(
                f"an image is an array of uint8 RGB (height, width, 3), not {image_HWC.dtype} {image_HWC.shape}"
            )
        return cls(Image.fromarray(image_HWC), mpp)

    def read(self, x: float, y: float, width: int, height: int, mpp: float) -> Image.Image:
        """See `Source`; shrinking is antialiased, enlarging by more than 1.25 refused."""
        factor = mpp / self.mpp
        require_fine(self, mpp)
        if factor == 1 and float(x).is_integer() and float(y).is_integer():
            return self._cut(int(x), int(y), width, height)
        margin = math.ceil(2 * max(1.0, factor))  # what the bicubic filter reaches beyond the box
        left, top = math.floor(x) - margin, math.floor(y) - margin
        right, bottom = math.ceil(x + width * factor) + margin, math.ceil(y + height * factor) + margin
        box = (x - left, y - top, x - left + width * factor, y - top + height * factor)
        part = self._cut(left, top, right - left, bottom - top)
        return part.resize((width, height), Image.Resampling.BICUBIC, box)

    def overview(self, mpp: float) -> Image.Image:
        """See `Source`."""
        mpp = max(mpp, self.mpp)
        width, height = (math.ceil(side * self.mpp / mpp) for side in self.size)
        return self.read(0, 0, width, height, mpp)

    def close(self) -> None:
        """Nothing to close."""

    def _cut(self, left: int, top: int, width: int, height: int) -> Image.Image:
        canvas = Image.new("RGB", (width, height), "white")
        canvas.paste(self._image, (-left, -top))
        return canvas


def open_source(path: Path, slide_mpp: float | None = None) -> Source:
    """Open a slide, or a picture.

    Raises:
        SlideError: it is neither, or its resolution is neither stated nor given.
    """
    suffix = path.suffix.lower()
    if suffix in PICTURES or (suffix in TIFFS and path.is_file() and not openslide.OpenSlide.detect_format(path)):
        return Picture.open(path, slide_mpp)
    return Slide(path, slide_mpp)


def require_fine(source: Source, mpp: float) -> None:
    """Refuse an image whose px would have to be enlarged by more than 1.25.

    Raises:
        SlideError: it is that coarse.
    """
    if source.mpp > mpp * MOST_UPSAMPLING:
        raise SlideError(
            f"{source.path} has {source.mpp:.3g} um/px and cannot be read at {mpp:.3g} um/px; take a finer one"
        )


def size_at(source: Source, mpp: float) -> tuple[float, float]:
    """Width and height in px of `mpp` um, which need not be whole; up to what floats cannot tell from whole."""
    width, height = (round(side * source.mpp / mpp, 6) for side in source.size)
    return width, height


def is_slide(source: Source) -> bool:
    """Whether it may show glass beside its tissue."""
    return isinstance(source, Slide)


def bounds_corner(source: Source) -> tuple[int, int]:
    """Where QuPath counts from, px of level 0: the corner of what was scanned, where the slide says it."""
    if not isinstance(source, Slide):
        return (0, 0)
    with openslide.OpenSlide(source.path) as handle:
        x, y = (handle.properties.get(f"openslide.bounds-{axis}", "0") for axis in "xy")
    return int(x), int(y)


def find_sources(paths: Sequence[Path]) -> dict[Path, Path]:
    """Slides and pictures: those given, and those below the folders given; each with its name without suffix.

    Below a folder the name is the path from there on, so that no two files share one. Pictures that a prediction
    has drawn are passed over, wherever they lie.

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
                if not drawn_by_prediction(file)
            }
        )
    if paths and not found:
        raise UserError(printable(f"{paths[0]} holds only what a prediction drew; give slides or images"))
    return _named(found)


def _in_folder(folder: Path) -> list[Path]:
    pictures = (path for path in visible_files(folder) if path.suffix.lower() in PICTURES)
    return sorted([*find_slides(folder), *pictures])


def visible_files(folder: Path) -> list[Path]:
    """Files below a folder, sorted, without hidden ones and those in hidden folders."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if not any(p.startswith(".") for p in path.relative_to(folder).parts))


def _named(found: dict[Path, Path]) -> dict[Path, Path]:
    """Names without suffix; with it, where two files differ in nothing else."""
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
