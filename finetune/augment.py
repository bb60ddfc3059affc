"""Random scaling, shifting and flipping of an image and its points together."""

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Config:
    """The paper names scaling, shifting and flipping and gives no ranges."""

    crop: int = 448
    """Side of the square training crop, px; a smaller image is padded with white."""
    scale: tuple[float, float] = (0.8, 1.25)
    """Range of the random magnification (log-uniform); the crop covers crop / scale px of the image."""
    flip: float = 0.5
    """Probability of a horizontal flip, and of a vertical one."""


def augment(
    config: Config,
    image_HWC: np.ndarray,
    points_N2: np.ndarray,
    labels_N: np.ndarray,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One random view of an annotated image.

    Args:
        config: Crop side and ranges.
        image_HWC: uint8 RGB.
        points_N2: px, corner origin.
        labels_N: Class of every point.
        random: Source of all random numbers.

    Returns:
        Image of crop x crop px, and the points that fall on it with their labels.
    """
    magnification = np.exp(random.uniform(*np.log(config.scale)))
    window = max(1, round(config.crop / magnification))
    left, top = (_offset(length, window, random) for length in (image_HWC.shape[1], image_HWC.shape[0]))
    view_HWC = _resize(_window(image_HWC, left, top, window), config.crop)
    # The window is whole px, so the exact magnification is crop / window, not the number drawn.
    xy_N2 = (points_N2 - np.array([left, top])) * (config.crop / window)
    if random.random() < config.flip:
        view_HWC, xy_N2[:, 0] = view_HWC[:, ::-1], config.crop - xy_N2[:, 0]
    if random.random() < config.flip:
        view_HWC, xy_N2[:, 1] = view_HWC[::-1], config.crop - xy_N2[:, 1]
    inside = ((xy_N2 >= 0) & (xy_N2 < config.crop)).all(axis=1)
    return np.ascontiguousarray(view_HWC), xy_N2[inside].astype(np.float32), labels_N[inside]


def _offset(length: int, window: int, random: np.random.Generator) -> int:
    """Where the window begins: anywhere inside the image, or around an image smaller than it."""
    slack = length - window
    return int(random.integers(min(slack, 0), max(slack, 0) + 1))


def _window(image_HWC: np.ndarray, left: int, top: int, side: int) -> np.ndarray:
    """A square cut-out; white, like glass, where it reaches beyond the image."""
    cut = image_HWC[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)]
    if cut.shape[:2] == (side, side):
        return cut
    canvas = np.full((side, side, 3), 255, np.uint8)
    y, x = max(-top, 0), max(-left, 0)
    canvas[y : y + cut.shape[0], x : x + cut.shape[1]] = cut
    return canvas


def _resize(image_HWC: np.ndarray, side: int) -> np.ndarray:
    """Antialiased bilinear resize with corner-aligned geometry: px edges map to px edges."""
    if image_HWC.shape[0] == side:
        return image_HWC
    return np.asarray(Image.fromarray(image_HWC).resize((side, side), Image.Resampling.BILINEAR))
