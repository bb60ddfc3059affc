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

from shared.shards.tar_reader import JpegSample
from ssl_pretrain.data.crops import Crop, cut_batch, decode


class Drawn(NamedTuple):
    """An image of a batch, before it is decoded."""

    image: JpegSample
    shard: Path
    seed: tuple[int, ...]
    """Of its crops."""


class Packed(NamedTuple):
    """The images of a batch for the way to another process: one tensor, because each takes a file handle."""

    jpeg_N: Tensor
    """The bytes of all files, one after another."""
    lengths: list[int]
    keys: list[str]
    shards: list[str]
    seeds: list[tuple[int, ...]]


def pack(batch: list[Drawn]) -> Packed:
    """Put the files of a batch one after another."""
    files = [drawn.image.jpeg for drawn in batch]
    return Packed(
        torch.from_numpy(np.frombuffer(bytearray(b"".join(files)), dtype=np.uint8)),
        lengths=[len(file) for file in files],
        keys=[drawn.image.key for drawn in batch],
        shards=[str(drawn.shard) for drawn in batch],
        seeds=[drawn.seed for drawn in batch],
    )


def decode_and_cut(packed: Packed, crops: tuple[Crop, ...], device: torch.device) -> list[Tensor]:
    """A uint8 tensor (batch, 3, size, size) on the device for each crop.

    Raises:
        UserError: an image is no whole JPEG.
    """
    return cut_batch(_decoded(packed, device), packed.seeds, crops)


def _decoded(packed: Packed, device: torch.device) -> list[Tensor]:
    files = list(packed.jpeg_N.split(packed.lengths))
    try:
        images: list[Tensor] = decode_jpeg(files, mode=ImageReadMode.RGB, device=device)
    except (RuntimeError, ValueError):  # one that is damaged, or of a kind that only the CPU's decoder knows
        names = zip(files, packed.keys, packed.shards, strict=True)
        return [
            decode(JpegSample(key, file.numpy().tobytes()), Path(shard)).to(device) for file, key, shard in names
        ]
    return images
