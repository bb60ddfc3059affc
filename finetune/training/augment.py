"""Random scaling, shifting, flipping and staining of an image, its wider views and its points together."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from finetune.training.stain_augment import restain


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """The paper names scaling, shifting and flipping and gives no ranges."""

    crop: int = 448
    """Side of the square training crop, px; a smaller image is padded with white."""
    scale: tuple[float, float] = (0.8, 1.25)
    """Range of the random magnification (log-uniform); the crop covers crop / scale px of the image."""
    flip: float = 0.5
    """Probability of a horizontal flip, and of a vertical one."""
    stain: float = 0.0
    """How far colours and amounts of the stains change at random: 0.05 light, 0.2 strong, 0 not at all."""
    brown: float = 0.0
    """Probability of making an H&E image look like immunohistochemistry, for detectors that meet both."""


def augment(
    config: AugmentConfig,
    views_KHWC: np.ndarray,
    points_N2: np.ndarray,
    labels_N: np.ndarray,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A random crop of an annotated image, and of wider views around the same place.

    Args:
        config: Crop side and ranges.
        views_KHWC: uint8 RGB, the annotated image last; view k shows 2^(K-k) times the width.
        points_N2: px, corner origin.
        labels_N: Class of every point.
        random: Source of all random numbers.

    Returns:
        K images of crop x crop px, and the points that fall on the last with their labels.
    """
    magnification = np.exp(random.uniform(*np.log(config.scale)))
    window = max(1, round(config.crop / magnification))
    height, width = views_KHWC.shape[1:3]
    left, top = (_offset(length, window, random) for length in (width, height))
    doublings = range(len(views_KHWC) - 1, -1, -1)
    crops = [
        _crop(view, (left, top), window, 2**n, config.crop) for view, n in zip(views_KHWC, doublings, strict=True)
    ]
    cut_KHWC = np.stack(crops)
    # The window is whole px, so the exact magnification is crop / window, not the number drawn.
    xy_N2 = (points_N2 - np.array([left, top])) * (config.crop / window)
    if random.random() < config.flip:
        cut_KHWC, xy_N2[:, 0] = cut_KHWC[:, :, ::-1], config.crop - xy_N2[:, 0]
    if random.random() < config.flip:
        cut_KHWC, xy_N2[:, 1] = cut_KHWC[:, ::-1], config.crop - xy_N2[:, 1]
    if config.stain or config.brown:
        cut_KHWC = restain(cut_KHWC, config.stain, config.brown, random)
    inside = ((xy_N2 >= 0) & (xy_N2 < config.crop)).all(axis=1)
    return np.ascontiguousarray(cut_KHWC), xy_N2[inside].astype(np.float32), labels_N[inside]


def _offset(length: int, window: int, random: np.random.Generator) -> int:
    """Where the window begins: anywhere inside the image, or around an image smaller than it."""
    slack = length - window
    return int(random.integers(min(slack, 0), max(slack, 0) + 1))


def _crop(image_HWC: np.ndarray, corner: tuple[int, int], window: int, factor: int, side: int) -> np.ndarray:
    """What a view shows of `factor` times the width of a square window, around the window's centre.

    Args:
        image_HWC: The view, which shows `factor` times the width of the annotated image around its centre.
        corner: Left and top of the window, px of the annotated image.
        window: Its side, which is also the side of the crop in px of the view.
        factor: 2^(K-k).
        side: Px of the result, antialiased, edges on edges.
    """
    sides = (image_HWC.shape[1], image_HWC.shape[0])
    left, top = (
        length / 2 + (begin + window / 2 - length / 2) / factor - window / 2
        for begin, length in zip(corner, sides, strict=True)
    )
    x, y = math.floor(left), math.floor(top)
    cut_HWC = _window(image_HWC, x, y, math.ceil(left + window) - x, math.ceil(top + window) - y)
    if (window, left, top) == (side, x, y):
        return cut_HWC
    box = (left - x, top - y, left - x + window, top - y + window)
    return np.asarray(Image.fromarray(cut_HWC).resize((side, side), Image.Resampling.BILINEAR, box))


def _window(image_HWC: np.ndarray, left: int, top: int, width: int, height: int) -> np.ndarray:
    """A cut-out; white, like glass, where it reaches beyond the image."""
    cut = image_HWC[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
    if cut.shape[:2] == (height, width):
        return cut
    canvas = np.full((height, width, 3), 255, np.uint8)
    y, x = max(-top, 0), max(-left, 0)
    canvas[y : y + cut.shape[0], x : x + cut.shape[1]] = cut
    return canvas
