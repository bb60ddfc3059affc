"""From JPEG bytes to random crops in uint8, on the CPU, one image at a time."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from shared.shards.tar_reader import JpegSample, damaged

# Aspect ratios of random resized crops, as in torchvision and all five official codes.
RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Crops of one kind: how many of each image, how large, and how they are resized."""

    size: int
    """Side of the result in px."""
    scale: tuple[float, float]
    """Smallest and largest share of the image's area."""
    count: int = 1
    """Crops of this kind from each image."""
    interpolation: str = "bicubic"
    """Resizing, with antialiasing: bicubic or bilinear."""
    blur: float = 0.0
    """Probability of a Gaussian blur, done later by `views.Views`."""
    solarise: float = 0.0
    """Probability that bright pixels are inverted, done later by `views.Views`."""


def decode(image: JpegSample, shard: Path) -> Tensor:
    """The image (3, H, W) in uint8.

    Raises:
        UserError: it is no whole JPEG; names it and the shard it comes from.
    """
    try:
        return decode_jpeg(torch.frombuffer(bytearray(image.jpeg), dtype=torch.uint8), mode=ImageReadMode.RGB)
    except (RuntimeError, ValueError) as error:  # ValueError: no bytes at all
        raise damaged(shard, f"{image.key} is no JPEG that can be read") from error


def cut(image_CHW: Tensor, crops: tuple[Crop, ...], random: np.random.Generator) -> list[Tensor]:
    """The crops of one image, each (3, size, size) in uint8."""
    return [_cut_one(image_CHW, crop, random) for crop in crops for _ in range(crop.count)]


def cut_batch(images: Iterable[Tensor], seeds: Iterable[tuple[int, ...]], crops: tuple[Crop, ...]) -> list[Tensor]:
    """A uint8 tensor (batch, 3, size, size) for each crop, from images (3, H, W) and a seed for each."""
    cuts = [
        cut(image_CHW, crops, np.random.default_rng(seed)) for image_CHW, seed in zip(images, seeds, strict=True)
    ]
    return [torch.stack(views) for views in zip(*cuts, strict=True)]


def random_box(
    height: int, width: int, scale: tuple[float, float], random: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height, width (px) of a random resized crop: Inception's, as torchvision draws it.

    Ten tries for a box of a random share of the area and a random aspect ratio that lies inside the image;
    then the largest central box whose aspect ratio is allowed.
    """
    for _ in range(10):
        area = height * width * random.uniform(*scale)
        ratio = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(random.integers(height - h + 1)), int(random.integers(width - w + 1)), h, w
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def _cut_one(image_CHW: Tensor, crop: Crop, random: np.random.Generator) -> Tensor:
    height, width = image_CHW.shape[-2:]
    top, left, height, width = random_box(height, width, crop.scale, random)
    mode = InterpolationMode(crop.interpolation)
    size = [crop.size, crop.size]
    return TF.resized_crop(image_CHW, top, left, height, width, size, interpolation=mode, antialias=True)
