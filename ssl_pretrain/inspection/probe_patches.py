"""Fixed patches for pictures and measurements, with their metadata."""

import math
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from shared.shards.tar_reader import damaged, read_images, read_with_metadata
from ssl_pretrain.data.crops import Crop, UndecodableError, decode
from ssl_pretrain.data.shard_set import ShardSet

# Shards that labelled patches are taken from. Shards are shuffled when they are packed, so that the beginnings of
# a few are as good a sample as single patches of all, which would mean to read through 100 MB for each.
SHARDS = 16


@dataclass(frozen=True)
class Sample:
    """Patches and where they come from."""

    patch_BCHW: Tensor
    """Centres of the patches, uint8."""
    slides: list[str]
    """The slide of each; empty where the shards do not say."""
    biomarkers: list[str]
    """The stain or label of each; empty where the shards do not say."""


def labelled_patches(shard_set: ShardSet, crop: Crop, most: int) -> Sample:
    """Up to `most` patches from the beginnings of `SHARDS` shards, shown as `crop` would show its largest centre.

    Raises:
        UserError: a shard is damaged.
    """
    numbers = _spread_numbers(len(shard_set.shards), SHARDS)
    patches: list[Tensor] = []
    slides: list[str] = []
    biomarkers: list[str] = []
    for place, number in enumerate(numbers):
        share = (most - len(patches)) // (len(numbers) - place)  # what a short shard lacks, later ones give
        for image, metadata in read_with_metadata(shard_set.path(number), share) if share else ():
            with suppress(UndecodableError):
                patches.append(centre(decode(image), crop))
                slides.append(_text(metadata.get("slide")))
                biomarkers.append(_text(metadata.get("biomarker")))
    if not patches:
        raise damaged(shard_set.path(numbers[0]), "it begins with no JPEG or PNG that can be decoded")
    return Sample(torch.stack(patches), slides, biomarkers)


def sample_patches(shard_set: ShardSet, crop: Crop, count: int) -> Tensor:
    """Centres (count, 3, size, size) in uint8, as large as a crop can be, of patches from all over the shards."""
    return torch.stack([centre(image_CHW, crop) for image_CHW in whole_patches(shard_set, count)])


def whole_patches(shard_set: ShardSet, count: int) -> list[Tensor]:
    """Images (3, H, W) in uint8 from all over the shards."""
    return [_image_at(shard_set, number * shard_set.samples // count) for number in range(count)]


def centre(image_CHW: Tensor, crop: Crop) -> Tensor:
    """Crop the middle of an image (3, H, W), as large as a crop can be, in the crop's size."""
    side = round(math.sqrt(crop.scale[1]) * min(image_CHW.shape[-2:]))
    mode = InterpolationMode(crop.interpolation)
    centre_CHW = TF.center_crop(image_CHW, [side, side])
    resized_CHW: Tensor = TF.resize(centre_CHW, [crop.size, crop.size], interpolation=mode, antialias=True)
    return resized_CHW


def _image_at(shard_set: ShardSet, place: int) -> Tensor:
    """Read the image at a place in the sequence of all shards, or the next decodable one of its shard."""
    shard = 0
    while place >= shard_set.counts[shard]:
        place -= shard_set.counts[shard]
        shard += 1
    path, samples = shard_set.path(shard), shard_set.counts[shard]
    for _, image in read_images(path, place, samples, samples):
        with suppress(UndecodableError):
            return decode(image)
    raise damaged(path, f"no image from number {place} on is a JPEG or PNG that can be decoded")


def _spread_numbers(total: int, most: int) -> list[int]:
    count = min(total, most)
    return [number * total // count for number in range(count)]


def _text(fact: object) -> str:
    return fact if isinstance(fact, str) else ""
