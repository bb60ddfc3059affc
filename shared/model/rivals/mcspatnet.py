"""MCSpatNet (Abousamra et al. 2021): a VGG-16 U-Net of valid convolutions with four heads."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.model.rivals.outputs import SquareMaps
from shared.model.rivals.vgg import VGG, VGG16

FIRST_PADDING = 126  # of the first convolution: all others lose a px on each side
MARGIN = 2  # px that the output is larger than the image, on each side
DROPOUT = 0.2  # after each pool
SUBCLASSES, RADII = 5, 7  # for each class


class MCSpatNet(nn.Module):
    """Image in 0..1, not standardised -> maps of squares, classes, sub-classes and neighbours at every px."""

    stride: ClassVar = 1
    divisor: ClassVar = 16
    trunk: ClassVar = "vgg16"
    decoders: ClassVar = ("squares",)
    standardised: ClassVar = False  # although the encoder starts from VGG-16 (public code)

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.front = VGG(VGG16, padding=0, first_padding=FIRST_PADDING)
        self.enlarge = nn.ModuleList(
            nn.ConvTranspose2d(*widths, 2, stride=2) for widths in ((512, 512), (512, 256), (256, 128), (128, 96))
        )
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2 * width, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU())
            for width in (512, 256, 128)
        )
        outputs = (1, classes, SUBCLASSES * classes, RADII * classes)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Conv2d(96, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU()) for _ in outputs
        )
        self.last = nn.ModuleList(nn.Conv2d(64, number, 1) for number in outputs)

    def trunks(self) -> list[nn.Module]:
        """VGG-16."""
        return [self.front]

    def forward(self, image_BCHW: Tensor) -> SquareMaps:
        """Image with sides divisible by 16 -> maps of its size."""
        skips, map_BCHW = [], image_BCHW
        for index, layer in enumerate(self.front.features):
            map_BCHW = layer(map_BCHW)
            if isinstance(layer, nn.MaxPool2d):
                map_BCHW = F.dropout(map_BCHW, DROPOUT, self.training)
            if index in self.front.ends[:-1]:
                skips.append(map_BCHW)
        for enlarge, block in zip(self.enlarge[:-1], self.up, strict=True):  # the last has no skip
            map_BCHW = enlarge(map_BCHW)
            map_BCHW = block(torch.cat([map_BCHW, _centre(skips.pop(), map_BCHW.shape[-2:])], 1))
        map_BCHW = self.enlarge[-1](map_BCHW)
        features = [_centre(head(map_BCHW), image_BCHW.shape[-2:]) for head in self.heads]
        detection, classes, subclasses, neighbours = (
            last(each) for last, each in zip(self.last, features, strict=True)
        )
        return SquareMaps(detection, classes, subclasses, neighbours, torch.cat([features[3], features[2]], 1))


def _centre(map_BCHW: Tensor, size: torch.Size) -> Tensor:
    """Cut the centre out of a map."""
    top, left = ((have - want) // 2 for have, want in zip(map_BCHW.shape[-2:], size, strict=True))
    return map_BCHW[..., top : top + size[0], left : left + size[1]]
