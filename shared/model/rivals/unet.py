"""U-Net (Ronneberger et al. 2015) with batch norms and transposed convolutions, as OCELOT's example uses it."""

from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from shared.model.rivals.outputs import Maps

WIDTHS = (64, 128, 256, 512, 1024)


class UNet(nn.Module):
    """Image -> logits of the classes at every px; that of background is 0."""

    stride: ClassVar = 1
    divisor: ClassVar = 16  # of the sides of its input
    trunk: ClassVar = ""
    decoders: ClassVar = ("discs",)

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first = _block(3, WIDTHS[0])
        self.down = nn.ModuleList(_block(*widths) for widths in pairwise(WIDTHS))
        rising = list(pairwise(WIDTHS[::-1]))
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(*widths, 2, stride=2) for widths in rising)
        self.up = nn.ModuleList(_block(*widths) for widths in rising)
        self.last = nn.Conv2d(WIDTHS[0], classes, 1)

    def trunks(self) -> list[nn.Module]:
        """None: it is trained from chance."""
        return []

    def forward(self, image_BCHW: Tensor) -> Maps:
        """Standardised image with sides divisible by 16 -> logits."""
        maps = [self.first(image_BCHW)]
        for block in self.down:
            maps.append(block(nn.functional.max_pool2d(maps[-1], 2)))
        map_BCHW = maps.pop()
        for enlarge, block in zip(self.enlarge, self.up, strict=True):
            map_BCHW = block(torch.cat([maps.pop(), enlarge(map_BCHW)], 1))
        return Maps(self.last(map_BCHW))


def _block(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with batch norm and ReLU."""
    layers = [
        (nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
        for width in (inputs, outputs)
    ]
    return nn.Sequential(*(each for layer in layers for each in layer))
