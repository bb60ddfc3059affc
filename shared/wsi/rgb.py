"""RGB of images of any kind, by one rule for training, prediction and harvest."""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from shared.errors import UserError

# Pillow's modes that become RGB without clipping; of 16-bit grey levels all above 255 would turn white.
EIGHT_BIT = ("RGB", "RGBA", "L", "LA", "P", "PA", "1", "CMYK", "YCbCr")


def open_rgb(path: Path) -> Image.Image:
    """Read an image file as RGB.

    Raises:
        UserError: the file is not an image, is damaged or too large, or holds other than 8-bit pixels.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{path} is too large for a plain image; write it as a tiled TIFF with a pyramid, as a slide"
        ) from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise UserError(f"{path} cannot be opened as an image; remove it or write it again") from error
    except ValueError as error:
        raise UserError(f"{path} has {error}; write it as an 8-bit RGB image") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB; transparent pixels show white behind them, as glass on slides.

    Raises:
        ValueError: it holds other than 8-bit pixels.
    """
    if image.mode not in EIGHT_BIT:
        raise ValueError(f"pixels of mode {image.mode}")
    if image.has_transparency_data:
        return Image.fromarray(on_white(np.asarray(image.convert("RGBA"))))
    return image.convert("RGB")


def on_white(pixels_HW4: np.ndarray) -> np.ndarray:
    """Blend RGBA pixels (uint8) with white: uint8 (H, W, 3)."""
    if (pixels_HW4[..., 3] == 255).all():
        pixels_HW3 = np.empty((*pixels_HW4.shape[:2], 3), np.uint8)
        for channel in range(3):  # one by one: a seventh of the time of all three in one go
            pixels_HW3[..., channel] = pixels_HW4[..., channel]
        return pixels_HW3
    region = Image.fromarray(pixels_HW4)
    white = Image.new("RGB", region.size, "white")
    white.paste(region, mask=region.getchannel("A"))
    return np.asarray(white)
