"""Random changes of colour and sharpness, as between scanners: points stay where they are."""

import io

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

# Ranges at full strength; ours, below where nuclei of 0.5 um/px images are lost to the eye.
MAX_BLUR_PX = 1.5  # standard deviation
MAX_NOISE = 12.0  # standard deviation, grey levels
MIN_JPEG_QUALITY = 30
# Of a turn of the hue, per unit of strength: 0.05 at a strength of 0.2 (authors' public code).
HUE = 0.25


def jitter_colours(views_KHWC: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and hue, all views alike.

    Args:
        views_KHWC: uint8 RGB.
        strength: Largest change of each factor (authors' public code: 0.2 to 0.25).
        random: Source of all random numbers.
    """
    factors = 1 + strength * random.uniform(-1, 1, 3)
    shift = round(255 * HUE * strength * random.uniform(-1, 1))
    return np.stack([_recoloured(view_HWC, factors, shift) for view_HWC in views_KHWC])


def degrade(views_KHWC: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Blur, add noise to, or compress the views: one of the three, all views alike."""
    kind, amount, seed = int(random.integers(3)), random.random(), int(random.integers(2**32))
    return np.stack([_degraded(view_HWC, kind, amount, np.random.default_rng(seed)) for view_HWC in views_KHWC])


def _recoloured(image_HWC: np.ndarray, factors: np.ndarray, shift: int) -> np.ndarray:
    image = Image.fromarray(image_HWC)
    for enhance, factor in zip(
        (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), factors, strict=True
    ):
        image = enhance(image).enhance(factor)
    if shift:
        hsv = np.array(image.convert("HSV"))
        hsv[..., 0] += np.uint8(shift % 256)  # hue wraps around, as uint8 does
        image = Image.fromarray(hsv, "HSV").convert("RGB")
    return np.asarray(image)


def _degraded(image_HWC: np.ndarray, kind: int, amount: float, random: np.random.Generator) -> np.ndarray:
    if kind == 0:
        return np.asarray(Image.fromarray(image_HWC).filter(ImageFilter.GaussianBlur(MAX_BLUR_PX * amount)))
    if kind == 1:
        noise_HWC = random.normal(0, MAX_NOISE * amount, image_HWC.shape)
        return (image_HWC + noise_HWC).clip(0, 255).round().astype(np.uint8)
    packed = io.BytesIO()
    Image.fromarray(image_HWC).save(packed, "JPEG", quality=round(95 - (95 - MIN_JPEG_QUALITY) * amount))
    return np.asarray(Image.open(packed))
