"""Resampling of pictures, bicubic and antialiased or by averages of areas, at a fifth of Pillow's time.

The same filters in the same order as Pillow (one way, then the other, rounded in between), by SIMD instructions
and with coefficients of 16 bits: about one value in a hundred comes out one or two grey levels apart, alike on
every processor; averages of areas differ where a px lies half in each of two. Where the package is not to be had
(Linux on ARM), Pillow does it.
"""

from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

fast: ModuleType | None
try:
    import cykooz_resizer

    fast = cykooz_resizer
except ImportError:
    fast = None

Box = tuple[float, float, float, float]  # left, top, right, bottom


def resampler() -> str:
    """Who resamples on this machine; the other one would give other grey levels here and there."""
    return "Pillow" if fast is None else "cykooz"


def resample(pixels_HW3: np.ndarray, size: tuple[int, int], box: Box) -> np.ndarray:
    """The part `box` of an RGB picture, in px and fractions of them, as `size` (width, height) px; rows first."""
    if fast is None:
        picture = Image.fromarray(pixels_HW3)
        return np.asarray(picture.resize(size, Image.Resampling.BICUBIC, box, reducing_gap=2.0))
    left, top, right, bottom = box
    height, catmull_rom = len(pixels_HW3), fast.FilterType.catmull_rom
    rows = _convolved(_picture(pixels_HW3), (size[0], height), (left, 0, right, height), catmull_rom)
    return _pixels(_convolved(rows, size, (0, top, size[0], bottom), catmull_rom))


def shrink(pixels_HW3: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An RGB picture as `size` (width, height) px, each the average of the area that it covers.

    Columns first: that leaves less to do for the rows, which take longer.
    """
    height, width = pixels_HW3.shape[:2]
    if fast is None:
        columns = Image.fromarray(pixels_HW3).resize((width, size[1]), Image.Resampling.BOX)
        return np.asarray(columns.resize(size, Image.Resampling.BOX))
    return _pixels(_convolved(_picture(pixels_HW3), size, (0, 0, width, height), fast.FilterType.box))


def _picture(pixels_HW3: np.ndarray) -> Any:
    """Px as a `cykooz_resizer.ImageData`."""
    assert fast is not None
    height, width = pixels_HW3.shape[:2]
    return fast.ImageData(width, height, fast.PixelType.U8x3, pixels_HW3.tobytes())


def _pixels(picture: Any) -> np.ndarray:
    """The reverse."""
    return np.frombuffer(picture.get_buffer(), np.uint8).reshape(picture.height, picture.width, 3)


def _convolved(picture: Any, size: tuple[int, int], box: Box, filter_type: object) -> Any:
    """A `cykooz_resizer.ImageData`, cut to a box and resampled to `size` (width, height), columns first."""
    assert fast is not None
    left, top, right, bottom = box
    options = fast.ResizeOptions(
        resize_alg=fast.ResizeAlg.convolution(filter_type),
        crop_box=fast.CropBox(left, top, right - left, bottom - top),
    )
    result = fast.ImageData(*size, fast.PixelType.U8x3)
    fast.Resizer().resize(picture, result, options)
    return result
