"""Resampling of images, bicubic with antialiasing or by area averages, in a fifth of Pillow's time.

Same filters and order as Pillow (one axis, rounding, the other axis), with SIMD instructions and 16-bit
coefficients: about one value in a hundred differs by one or two grey levels, identically on every processor; area
averages differ where a px lies half in each of two. Pillow takes over on platforms without the package (Linux on
ARM).
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
    """Return the resampler of this machine, part of a harvest's settings because grey levels depend on it."""
    return "Pillow" if fast is None else "cykooz"


def resample(pixels_HW3: np.ndarray, size: tuple[int, int], box: Box) -> np.ndarray:
    """Resample the part `box` (px, fractions allowed) of an RGB image to `size` (width, height) px, rows first."""
    if fast is None:
        picture = Image.fromarray(pixels_HW3)
        return np.asarray(picture.resize(size, Image.Resampling.BICUBIC, box, reducing_gap=2.0))
    left, top, right, bottom = box
    height, catmull_rom = len(pixels_HW3), fast.FilterType.catmull_rom
    rows = _convolved(_picture(pixels_HW3), (size[0], height), (left, 0, right, height), catmull_rom)
    return _pixels(_convolved(rows, size, (0, top, size[0], bottom), catmull_rom))


def shrink(pixels_HW3: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Reduce an RGB image to `size` (width, height) px, each the average of the area that it covers.

    Columns first, as rows take longer and then have fewer px.
    """
    height, width = pixels_HW3.shape[:2]
    if fast is None:
        columns = Image.fromarray(pixels_HW3).resize((width, size[1]), Image.Resampling.BOX)
        return np.asarray(columns.resize(size, Image.Resampling.BOX))
    return _pixels(_convolved(_picture(pixels_HW3), size, (0, 0, width, height), fast.FilterType.box))


def _picture(pixels_HW3: np.ndarray) -> Any:
    """Convert px to a `cykooz_resizer.ImageData`."""
    assert fast is not None
    height, width = pixels_HW3.shape[:2]
    return fast.ImageData(width, height, fast.PixelType.U8x3, pixels_HW3.tobytes())


def _pixels(picture: Any) -> np.ndarray:
    """Convert a `cykooz_resizer.ImageData` to px."""
    return np.frombuffer(picture.get_buffer(), np.uint8).reshape(picture.height, picture.width, 3)


def _convolved(picture: Any, size: tuple[int, int], box: Box, filter_type: object) -> Any:
    """Crop a `cykooz_resizer.ImageData` to a box and resample it to `size` (width, height), columns first."""
    assert fast is not None
    left, top, right, bottom = box
    options = fast.ResizeOptions(
        resize_alg=fast.ResizeAlg.convolution(filter_type),
        crop_box=fast.CropBox(left, top, right - left, bottom - top),
    )
    result = fast.ImageData(*size, fast.PixelType.U8x3)
    fast.Resizer().resize(picture, result, options)
    return result
