"""Decode images and cut random crops in uint8, on the CPU, one image at a time."""

import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from shared.shards.tar_reader import EncodedImage, damaged
from shared.wsi.rgb import to_rgb

# Aspect ratios of random resized crops, as in torchvision and all five official codes.
RATIO = (3 / 4, 4 / 3)
# First bytes of a PNG file, and the marker that ends a JPEG file.
PNG, END_OF_JPEG = b"\x89PNG", b"\xff\xd9"


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


class CropBatch(NamedTuple):
    """Crops of a batch of images."""

    crops: list[Tensor]
    """One uint8 tensor (batch, 3, size, size) for each crop."""
    undecodable: list[str]
    """Names of the images in whose place a neighbour was cut."""


class UndecodableError(ValueError):
    """An image that is no whole JPEG or PNG."""


def decode(image: EncodedImage) -> Tensor:
    """Decode an image to (3, H, W) in uint8; a JPEG may lack its end marker, and transparent pixels become white.

    In memory the channels are last, as JPEGs are decoded and crops resized fastest.

    Raises:
        UndecodableError: it is no whole JPEG or PNG.
    """
    if image.content.startswith(PNG):
        return _decode_png(image.content)
    try:
        return _from_array(simplejpeg.decode_jpeg(image.content, "RGB"))
    except ValueError:
        return _decode_without_end(image.content)


def _from_array(image_HWC: np.ndarray) -> Tensor:
    return torch.from_numpy(image_HWC).permute(2, 0, 1)


def decode_all(images: Iterable[EncodedImage], shards: Iterable[Path], undecodable: list[str]) -> Iterator[Tensor]:
    """Decode a batch one by one to (3, H, W) in uint8.

    In place of an image that cannot be decoded comes the one before, or behind it, and its name is added to
    `undecodable`.

    Raises:
        UserError: none of the images can be decoded.
    """
    last, owed = None, 0
    for image, shard in zip(images, shards, strict=True):
        owed += 1
        try:
            last = decode(image)
        except UndecodableError:
            undecodable.append(f"{shard.name}: {image.key}")
        if last is not None:
            yield from [last] * owed
            owed = 0
    if owed:
        raise damaged(shard, f"{image.key} and the images before it are no JPEG or PNG that can be decoded")


def _decode_without_end(content: bytes) -> Tensor:
    """Decode a JPEG to which only the end marker is added; one that lacks more is refused."""
    try:
        return _from_array(simplejpeg.decode_jpeg(content + END_OF_JPEG, "RGB", strict=True))
    except ValueError as error:
        raise UndecodableError(str(error)) from error


def _decode_png(content: bytes) -> Tensor:
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            picture = to_rgb(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UndecodableError(str(error)) from error
    return _from_array(np.array(picture))


def cut(image_CHW: Tensor, crops: tuple[Crop, ...], random: np.random.Generator) -> list[Tensor]:
    """Cut the crops of one image, each (3, size, size) in uint8."""
    kinds = each_crop(crops)
    height, width = image_CHW.shape[-2:]
    boxes = random_boxes(height, width, kinds, random)
    return [_cut_one(image_CHW, crop, box) for crop, box in zip(kinds, boxes, strict=True)]


def cut_batch(images: Iterable[Tensor], seeds: Iterable[tuple[int, ...]], crops: tuple[Crop, ...]) -> list[Tensor]:
    """Cut images (3, H, W), with a seed for each: a uint8 tensor (batch, 3, size, size) for each crop."""
    cuts = [
        cut(image_CHW, crops, np.random.default_rng(seed)) for image_CHW, seed in zip(images, seeds, strict=True)
    ]
    return [torch.stack(views) for views in zip(*cuts, strict=True)]


def each_crop(crops: Iterable[Crop]) -> list[Crop]:
    """Yield the kind of every crop of an image."""
    return [crop for crop in crops for _ in range(crop.count)]


def random_boxes(
    height: int, width: int, kinds: Iterable[Crop], random: np.random.Generator
) -> list[tuple[int, int, int, int]]:
    """Draw a `random_box` for every crop of an image."""
    return [random_box(height, width, crop.scale, random) for crop in kinds]


def random_box(
    height: int, width: int, scale: tuple[float, float], random: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height, width (px) of a random resized crop: Inception's, as torchvision draws it.

    Ten tries for a box of a random share of the area and a random aspect ratio that fits into the image;
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


def _cut_one(image_CHW: Tensor, crop: Crop, box: tuple[int, int, int, int]) -> Tensor:
    mode = InterpolationMode(crop.interpolation)
    cut_CHW: Tensor = TF.resized_crop(image_CHW, *box, [crop.size, crop.size], interpolation=mode, antialias=True)
    return cut_CHW
