"""JPEGs decoded and cropped on the training device, where loader workers are too few to do it.

The workers only read, shuffle and draw the boxes of crops then. Crops come from the same boxes as on the CPU;
their pixels differ by a grey level here and there, because a GPU decodes and resizes with other rounding.
"""

import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
import torchvision
from torch import Tensor

from shared.errors import UserError
from shared.shards.tar_reader import EncodedImage, damaged
from ssl_pretrain.data.batch_crops import BatchCropper
from ssl_pretrain.data.crops import Crop, CropBatch, UndecodableError, decode, each_crop, random_boxes

# Colours that nvJPEG converts to RGB.
CONVERTED = ("YCbCr", "RGB", "Gray")
# torchvision wraps nvJPEG's errors about an image; CUDA's errors have other causes.
OF_AN_IMAGE = re.compile(r"jpeg", re.IGNORECASE)
OF_THE_GPU = re.compile(r"CUDA|cuda|out of memory|not compiled")


class Drawn(NamedTuple):
    """An image of a batch, before it is decoded."""

    image: EncodedImage
    shard: Path
    seed: tuple[int, ...]
    """Seed of its crops."""


class Header(NamedTuple):
    """Header of an image; None for one that is no JPEG."""

    size: tuple[int, int] = (0, 0)
    """Height and width in px."""
    colours: str = ""


class Packed(NamedTuple):
    """The images of a batch for the way to another process: one tensor, because each takes a file handle."""

    content_N: Tensor
    """The bytes of all files, one after another."""
    lengths: list[int]
    keys: list[str]
    shards: list[str]
    seeds: list[tuple[int, ...]]
    headers: list[Header]
    box_BK4: Tensor
    """Boxes of the crops of each image whose header is known: top, left, height, width in px."""


def pack(batch: list[Drawn], crops: tuple[Crop, ...]) -> Packed:
    """Put the files of a batch one after another, and draw their crops."""
    files, kinds = [drawn.image.content for drawn in batch], each_crop(crops)
    headers = [_header(file) for file in files]
    boxes = [_boxes(header.size, kinds, drawn.seed) for drawn, header in zip(batch, headers, strict=True)]
    return Packed(
        torch.from_numpy(np.frombuffer(bytearray(b"".join(files)), dtype=np.uint8)),
        lengths=[len(file) for file in files],
        keys=[drawn.image.key for drawn in batch],
        shards=[str(drawn.shard) for drawn in batch],
        seeds=[drawn.seed for drawn in batch],
        headers=headers,
        box_BK4=torch.tensor(boxes),
    )


def _header(content: bytes) -> Header:
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        return Header()
    return Header((height, width), colours)


def _boxes(size: tuple[int, int], kinds: list[Crop], seed: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    return random_boxes(*size, kinds, np.random.default_rng(seed))


def require_gpu_decoder(device: torch.device) -> None:
    """Refuse a machine that cannot decode on its GPU, with a UserError."""
    if device.type != "cuda":
        raise UserError("--loader.decode gpu needs a GPU that torch can use; leave it out, and workers decode")
    if not hasattr(torchvision.io, "decode_jpeg"):  # deprecated since 0.24
        raise UserError(
            f"--loader.decode gpu needs nvJPEG, which torchvision {torchvision.__version__} no longer has; "
            "leave it out, and workers decode"
        )


class GpuDecoder:
    """Decode and cut batches on a device; a note is printed once if some images can only be decoded on the CPU."""

    def __init__(self, crops: tuple[Crop, ...], device: torch.device) -> None:
        self._kinds, self._device = each_crop(crops), device
        self._cut = BatchCropper(crops, device)
        self._has_said = False

    def __call__(self, packed: Packed) -> CropBatch:
        """Decode and crop a batch on the device; neighbours take the place of images that cannot be decoded.

        Raises:
            UserError: none of the images can be decoded.
        """
        images, undecodable = self._images(packed)
        for number, image_CHW in enumerate(images):
            height, width = image_CHW.shape[1:]
            if (height, width) != packed.headers[number].size:
                packed.box_BK4[number] = torch.tensor(_boxes((height, width), self._kinds, packed.seeds[number]))
        box_BK4 = packed.box_BK4.to(self._device, non_blocking=True)
        return CropBatch(self._cut(images, box_BK4), undecodable)

    def _images(self, packed: Packed) -> tuple[list[Tensor], list[str]]:
        """As `crops.decode_all`."""
        files = packed.content_N.split(packed.lengths)
        images, undecodable = self._by_gpu(files, packed), []
        for number in sorted(set(range(len(files))) - images.keys()):
            try:
                image_CHW = decode(EncodedImage(packed.keys[number], files[number].numpy().tobytes()))
                images[number] = image_CHW.to(self._device, non_blocking=True)
            except UndecodableError:
                undecodable.append(f"{Path(packed.shards[number]).name}: {packed.keys[number]}")
        if not images:
            reason = f"{packed.keys[-1]} and the images before it are no JPEG or PNG that can be decoded"
            raise damaged(Path(packed.shards[-1]), reason)
        first = min(images)
        before = [max((n for n in images if n <= number), default=first) for number in range(len(files))]
        return [images[number] for number in before], undecodable

    def _by_gpu(self, files: tuple[Tensor, ...], packed: Packed) -> dict[int, Tensor]:
        """Decode the images of kinds that nvJPEG knows, by number; none, if one of them is damaged."""
        known = [number for number, header in enumerate(packed.headers) if header.colours in CONVERTED]
        if unknown := sorted(set(range(len(files))) - set(known)):
            self._say(f"{packed.keys[unknown[0]]} in {packed.shards[unknown[0]]}")
        try:
            decoded = _nvjpeg([files[number] for number in known], self._device)
        except RuntimeError as error:
            if OF_THE_GPU.search(str(error)) or not OF_AN_IMAGE.search(str(error)):
                raise
            return {}
        return dict(zip(known, decoded, strict=True))

    def _say(self, what: str) -> None:
        if not self._has_said:
            print(f"note: {what} and images like it are decoded by the CPU: the GPU cannot", file=sys.stderr)
        self._has_said = True


def _nvjpeg(files: list[Tensor], device: torch.device) -> list[Tensor]:
    mode = torchvision.io.ImageReadMode.RGB
    return torchvision.io.decode_jpeg(files, mode=mode, device=device) if files else []
