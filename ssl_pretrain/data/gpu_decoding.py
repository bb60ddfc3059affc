"""JPEGs decoded and cropped on the training device, where loader workers are too few to do it.

The workers only read and shuffle then. Crops come from the same boxes as on the CPU; their pixels differ by a grey
level here and there, because a GPU decodes and resizes with other rounding.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from shared.shards.tar_reader import EncodedImage
from ssl_pretrain.data.crops import Crop, CropBatch, cut_batch, decode_all


class Drawn(NamedTuple):
    """An image of a batch, before it is decoded."""

    image: EncodedImage
    shard: Path
    seed: tuple[int, ...]
    """Of its crops."""


class Packed(NamedTuple):
    """The images of a batch for the way to another process: one tensor, because each takes a file handle."""

    content_N: Tensor
    """The bytes of all files, one after another."""
    lengths: list[int]
    keys: list[str]
    shards: list[str]
    seeds: list[tuple[int, ...]]


def pack(batch: list[Drawn]) -> Packed:
    """Put the files of a batch one after another."""
    files = [drawn.image.content for drawn in batch]
    return Packed(
        torch.from_numpy(np.frombuffer(bytearray(b"".join(files)), dtype=np.uint8)),
        lengths=[len(file) for file in files],
        keys=[drawn.image.key for drawn in batch],
        shards=[str(drawn.shard) for drawn in batch],
        seeds=[drawn.seed for drawn in batch],
    )


def decode_and_cut(packed: Packed, crops: tuple[Crop, ...], device: torch.device) -> CropBatch:
    """Decode and crop a batch on the device.

    Raises:
        UserError: none of the images can be decoded.
    """
    images, undecodable = _decoded(packed, device)
    return CropBatch(cut_batch(images, packed.seeds, crops), undecodable)


def _decoded(packed: Packed, device: torch.device) -> tuple[list[Tensor], list[str]]:
    files = list(packed.content_N.split(packed.lengths))
    try:
        images: list[Tensor] = decode_jpeg(files, mode=ImageReadMode.RGB, device=device)
    except (RuntimeError, ValueError):  # one that is damaged, or of a kind that only the CPU's decoder knows
        named = zip(packed.keys, files, strict=True)
        encoded = (EncodedImage(key, file.numpy().tobytes()) for key, file in named)
        undecodable: list[str] = []
        decoded = decode_all(encoded, map(Path, packed.shards), undecodable)
        return [image_CHW.to(device) for image_CHW in decoded], undecodable
    return images, []
