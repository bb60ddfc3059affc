"""Tissue mask: colour relative to the glass of the slide itself, not to white.

Glass of real slides is grey (215-245), tinted and stitched from tiles, carries pen marks and dust, and may be
missing from a region that was cut out of a slide.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from shared.wsi.slide import Slide
from shared.wsi.stains import optical_density

MASK_MPP = 8.0  # um/px of the mask: a biopsy 0.5 mm wide has 60 px
MAX_SIDE = 2048  # px; the mask of a larger slide is coarser: 20 um/px for 40 mm
SMOOTHING_UM = 8.0  # closes pale tissue between its nuclei
# Bounds of the threshold on `colour`. Stitched glass reaches 0.02. The upper bound keeps pale tissue, which has
# 0.04 (the CD34 biopsy among the real slides), where an overview has no glass or very dark tissue.
THRESHOLDS = (0.02, 0.05)
# Darker values are clipped before Otsu's method. A stroke of a red pen, which looks like blood, would otherwise
# separate ink from all the rest (the CD34 biopsy lost 23 % of its tissue, now 1 %).
DARKEST = 0.3
MIN_PIECE_MM2 = 0.02  # about a patch of 128 um; dust is smaller
MAX_HOLE_MM2 = 0.05  # lumina and fat belong to tissue, the glass inside a ring of tissue does not
MIN_PEN_MM2 = 0.005
# Grey levels that separate dark and grey slides from stained ones, the palest of which has a range of 32.
DARK, MIN_CONTRAST, MAX_GREY_RANGE = 80, 30, 10
GREY_CHROMA = 0.045  # maximum chroma of glass, in optical density; yellowish glass has 0.03


@dataclass(frozen=True)
class Tissue:
    """Tissue mask of a slide.

    Attributes:
        mask: Boolean, [height, width], True on tissue.
        mpp: um/px of the mask.
        overview: The image that it was derived from, of the same size.
    """

    mask: np.ndarray
    mpp: float
    overview: Image.Image

    @property
    def area_mm2(self) -> float:
        """Area of the tissue in mm2."""
        return float(self.mask.sum()) * self.mpp**2 * 1e-6


def find_tissue(slide: Slide) -> Tissue:
    """Compute the tissue mask of a slide, at 8 um/px, or coarser for large or coarse slides.

    Raises:
        SlideError: no part of the slide can be read.
    """
    mpp = max(MASK_MPP, max(slide.size) * slide.mpp / MAX_SIDE, slide.mpp)
    overview = slide.overview(mpp)
    return Tissue(tissue_mask(np.asarray(overview), mpp), mpp, overview)


def tissue_mask(image: np.ndarray, mpp: float) -> np.ndarray:
    """Return the tissue of `image`, uint8 RGB of `mpp` um/px, as a boolean array of its height and width."""
    density = optical_density(image, glass_colour(image))
    density = ndimage.gaussian_filter(density, (SMOOTHING_UM / mpp, SMOOTHING_UM / mpp, 0))
    chroma, mean = _range(density), _mean(density)
    colour = mean + chroma
    pen = _pen(density, chroma, mean, mpp)
    # Of square roots: glass has one value and tissue many, and Otsu would otherwise split the tissue.
    threshold = otsu(np.sqrt(np.minimum(colour[~pen], DARKEST))) ** 2
    tissue = colour > np.clip(threshold, *THRESHOLDS)
    tissue &= ~pen
    px_per_mm2 = 1e6 / mpp**2
    tissue = ~_without_small(~tissue, MAX_HOLE_MM2 * px_per_mm2)
    return _without_small(tissue, MIN_PIECE_MM2 * px_per_mm2)


def unusable_colours(image_HW3: np.ndarray) -> str:
    """Explain why an overview cannot be that of a stained section in bright field; empty if it can."""
    if np.median(image_HW3.max(axis=2)) < DARK:
        return "the slide is dark where glass would be bright, as in fluorescence"
    contrast = np.ptp(np.percentile(image_HW3.mean(axis=2), (0.5, 99.5)))
    if contrast > MIN_CONTRAST and np.percentile(_range(image_HW3), 99.5) < MAX_GREY_RANGE:
        return "the slide is grey"
    return ""


def glass_colour(image: np.ndarray) -> np.ndarray:
    """Return the RGB of the glass: the median of the brightest grey px, without pure white outside the scan."""
    pixels = image.reshape(-1, 3)
    darkest = np.minimum(np.minimum(pixels[:, 0], pixels[:, 1]), pixels[:, 2])
    pixels = pixels.take(np.flatnonzero(darkest < 254), axis=0)  # a boolean index takes twice as long
    if not len(pixels):
        return np.full(3, 255.0)
    logarithms = np.log10(np.maximum(np.arange(256, dtype=np.float32), 1))
    grey = pixels.take(np.flatnonzero(_range(logarithms.take(pixels)) < GREY_CHROMA), axis=0).astype(np.float32)
    if len(grey) < 0.001 * len(pixels):  # no glass
        return np.full(3, float(np.percentile(pixels.max(axis=1), 99)))
    brightness = _mean(grey)
    return np.median(grey.take(np.flatnonzero(brightness > np.percentile(brightness, 98) - 12), axis=0), axis=0)


def _range(colours: np.ndarray) -> np.ndarray:
    """Return the range of three channels; `np.ptp` takes ten times as long."""
    first, second, third = (colours[..., channel] for channel in range(3))
    range_HW: np.ndarray = np.maximum(np.maximum(first, second), third) - np.minimum(
        np.minimum(first, second), third
    )
    return range_HW


def _mean(colours: np.ndarray) -> np.ndarray:
    """Return the mean of three channels; `np.mean` takes ten times as long."""
    mean_HW: np.ndarray = (colours[..., 0] + colours[..., 1] + colours[..., 2]) / 3
    return mean_HW


def otsu(values: np.ndarray, bins: int = 256) -> float:
    """Return the threshold that best separates two classes of values (Otsu 1979); 0 if all are equal."""
    if not values.size or values.min() == values.max():
        return 0.0
    counts, edges = np.histogram(values, bins=bins)
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * middles)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(middles[int(np.nanargmax(np.where(above > 0, between, np.nan)))]) if above[0] else 0.0


def _pen(density: np.ndarray, chroma: np.ndarray, mean: np.ndarray, mpp: float) -> np.ndarray:
    """Mask marks of black, green and blue pens and dark ink, with a margin; no stain of tissue resembles them.

    Haematoxylin, eosin and DAB absorb at least about as much green as red, and none absorbs green least.
    """
    red, green, blue = np.moveaxis(density, 2, 0)
    black = (mean > 0.5) & (chroma < 0.2 * mean) | (mean > 0.9)
    green_pen = green < np.minimum(red, blue) - 0.05
    blue_pen = (red - green > 0.12) & (red - green > 0.3 * mean)
    pen = _without_small(black | green_pen | blue_pen, MIN_PEN_MM2 * 1e6 / mpp**2)
    return ndimage.binary_dilation(pen, iterations=round(32 / mpp)) if pen.any() and mpp <= 32 else pen


def _without_small(mask: np.ndarray, min_px: float) -> np.ndarray:
    """Return the mask without pieces of fewer than `min_px` px."""
    if not mask.any():
        return mask
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    keep = sizes >= min_px
    keep[0] = False
    return keep[labels]
