"""Random crops of an image, its wider views and its points together: geometry, colours, mixing of tiles."""

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from PIL import Image

from finetune.training.degradation import degrade, jitter_colours
from finetune.training.stain_augment import restain
from shared.cli import Range

BLOCKS = 4  # along each side, of GridShuffle (authors' public code)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation of training tiles; the paper names scaling, shifting and flipping and gives no ranges."""

    crop: Annotated[int, Range(32)] = 256
    """Side of the square training crop, px; a smaller image is padded with white (ours; published: 448)."""
    scale: Annotated[tuple[float, float], Range(0.1, 10)] = (0.8, 1.25)
    """Range of the random magnification (log-uniform); the crop covers crop / scale px of the image."""
    flip: Annotated[float, Range(0, 1)] = 0.5
    """Probability of a horizontal flip, and of a vertical one."""
    quarter_turns: bool = True
    """Rotate by a random multiple of 90 degrees (authors' later public code)."""
    colour: Annotated[float, Range(0, 1)] = 0.0
    """Largest change of brightness, contrast and saturation (authors' public code: 0.2); hue a quarter of it."""
    degrade: Annotated[float, Range(0, 1)] = 0.0
    """Probability of blur, noise or JPEG artefacts."""
    shuffle: Annotated[float, Range(0, 1)] = 0.0
    """Probability of shuffling 4 x 4 blocks (GridShuffle; authors' public code: 0.5); one view only."""
    mix: Annotated[float, Range(0, 1)] = 0.0
    """Probability of replacing part of the crop by that of another tile's crop; one view only."""
    stain: Annotated[float, Range(0, 1)] = 0.05
    """Strength of random changes of the stains' colours and amounts: 0 none, 0.05 light, 0.2 strong."""
    brown: Annotated[float, Range(0, 1)] = 0.0
    """Probability of making an H&E image look like immunohistochemistry, for detectors of both."""


@dataclass(frozen=True, kw_only=True)
class ReachingAugment(AugmentConfig):
    """Augmentation that keeps cells beyond the crop as well: they colour the maps that a network learns."""

    reach: float
    """px."""


def augment(
    config: AugmentConfig,
    views_KHWC: np.ndarray,
    points_N2: np.ndarray,
    labels_N: np.ndarray,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Crop an annotated image at random, and wider views around the same place.

    Args:
        config: Crop side and ranges.
        views_KHWC: uint8 RGB, the annotated image last; view k shows 2^(K-k) times the width.
        points_N2: px, corner origin.
        labels_N: Class of every point.
        random: Source of all random numbers.

    Returns:
        K images of crop x crop px, and the points that fall on the last with their labels.
    """
    crops_KHWC, xy_N2 = _random_crops(config, views_KHWC, points_N2, random)
    if random.random() < config.flip:
        crops_KHWC, xy_N2[:, 0] = crops_KHWC[:, :, ::-1], config.crop - xy_N2[:, 0]
    if random.random() < config.flip:
        crops_KHWC, xy_N2[:, 1] = crops_KHWC[:, ::-1], config.crop - xy_N2[:, 1]
    if config.quarter_turns:
        crops_KHWC, xy_N2 = _turned(crops_KHWC, xy_N2, int(random.integers(4)))
    crops_KHWC = _recoloured(config, crops_KHWC, random)
    reach = config.reach if isinstance(config, ReachingAugment) else 0.0
    inside = ((xy_N2 >= -reach) & (xy_N2 < config.crop + reach)).all(axis=1)
    xy_N2, labels_N = xy_N2[inside], labels_N[inside]
    if len(crops_KHWC) == 1 and config.shuffle and random.random() < config.shuffle:
        crops_KHWC, xy_N2 = _shuffled(crops_KHWC, xy_N2, random)
    return np.ascontiguousarray(crops_KHWC), xy_N2.astype(np.float32), labels_N


def mix(
    sample: tuple[np.ndarray, np.ndarray, np.ndarray],
    other: tuple[np.ndarray, np.ndarray, np.ndarray],
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Replace one side of an augmented sample with that of another, along a line between its quarters.

    Args:
        sample: A single view (1, H, W, 3) with points and labels, as `augment` returns them.
        other: Another one of the same size.
        random: Source of all random numbers.
    """
    views_KHWC, axis = sample[0].copy(), int(random.integers(2))  # 0: cut across x
    side = views_KHWC.shape[2 - axis]
    line = int(random.integers(side // 4, side - side // 4 + 1))
    part = (slice(None),) * (2 - axis) + (slice(line, None),)
    views_KHWC[part] = other[0][part]
    kept_N, added_M = sample[1][:, axis] < line, other[1][:, axis] >= line
    return (
        views_KHWC,
        np.concatenate([sample[1][kept_N], other[1][added_M]]),
        np.concatenate([sample[2][kept_N], other[2][added_M]]),
    )


def _random_crops(
    config: AugmentConfig, views_KHWC: np.ndarray, points_N2: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Crop all views around one random place at one random magnification; all points in px of the crop."""
    magnification = np.exp(random.uniform(*np.log(config.scale)))
    window = max(1, round(config.crop / magnification))
    height, width = views_KHWC.shape[1:3]
    left, top = (_offset(length, window, random) for length in (width, height))
    doublings = range(len(views_KHWC) - 1, -1, -1)
    crops = [
        _crop(view, (left, top), window, 2**n, config.crop) for view, n in zip(views_KHWC, doublings, strict=True)
    ]
    # The window is whole px, so the exact magnification is crop / window, not the number drawn.
    return np.stack(crops), (points_N2 - np.array([left, top])) * (config.crop / window)


def _recoloured(config: AugmentConfig, crops_KHWC: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Change stains and colours of the crops and degrade them, as configured."""
    if config.stain or config.brown:
        crops_KHWC = restain(crops_KHWC, config.stain, config.brown, random)
    if config.colour:
        crops_KHWC = jitter_colours(crops_KHWC, config.colour, random)
    # A random number is drawn only where it is needed: runs without the option keep their crops.
    if config.degrade and random.random() < config.degrade:
        crops_KHWC = degrade(crops_KHWC, random)
    return crops_KHWC


def _turned(views_KHWC: np.ndarray, xy_N2: np.ndarray, quarters: int) -> tuple[np.ndarray, np.ndarray]:
    """Rotate square views and their points counter-clockwise by quarter turns."""
    side = views_KHWC.shape[1]
    for _ in range(quarters):
        xy_N2 = np.stack([xy_N2[:, 1], side - xy_N2[:, 0]], axis=1)
    return np.rot90(views_KHWC, quarters, axes=(1, 2)), xy_N2


def _shuffled(
    views_KHWC: np.ndarray, xy_N2: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Shuffle the blocks of a square view with the points on them; px beyond the last whole block stay."""
    block = views_KHWC.shape[1] // BLOCKS
    order = random.permutation(BLOCKS**2)
    shuffled_KHWC, moved_N2 = views_KHWC.copy(), xy_N2.copy()
    on_N = ((xy_N2 >= 0) & (xy_N2 < block * BLOCKS)).all(axis=1)
    block_N = np.where(on_N, xy_N2[:, 1] // block * BLOCKS + xy_N2[:, 0] // block, -1).astype(int)
    for source, target in enumerate(order):
        (y, x), (to_y, to_x) = (np.multiply(divmod(int(place), BLOCKS), block) for place in (source, target))
        shuffled_KHWC[:, to_y : to_y + block, to_x : to_x + block] = views_KHWC[:, y : y + block, x : x + block]
        moved_N2[block_N == source] += (to_x - x, to_y - y)
    return shuffled_KHWC, moved_N2


def _offset(length: int, window: int, random: np.random.Generator) -> int:
    """Draw the start of a window: anywhere inside the image, or around an image smaller than it."""
    slack = length - window
    return int(random.integers(min(slack, 0), max(slack, 0) + 1))


def _crop(image_HWC: np.ndarray, corner: tuple[int, int], window: int, factor: int, side: int) -> np.ndarray:
    """Crop from a view `factor` times the width of a square window, around the window's centre.

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
    """Cut out a window; white, like glass, beyond the image."""
    cut = image_HWC[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
    if cut.shape[:2] == (height, width):
        return cut
    canvas = np.full((height, width, 3), 255, np.uint8)
    y, x = max(-top, 0), max(-left, 0)
    canvas[y : y + cut.shape[0], x : x + cut.shape[1]] = cut
    return canvas
