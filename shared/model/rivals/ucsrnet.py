"""U-CSRNet (Huang et al. 2020), whose code is not public: the network that has the parameters the paper prints.

ResNet-50 up to C3 has the channels and the stride that CSRNet's dilated back end takes; the doubling is placed so
that the multiply-adds come out, too, as they would with a transposed convolution at the end.
"""

from itertools import pairwise
from typing import ClassVar

import timm
from torch import Tensor, nn

from shared.model.rivals.outputs import Maps

WIDTHS = (512, 512, 512, 512, 256, 128)  # of C3 and of CSRNet's back end


class UCSRNet(nn.Module):
    """Image -> heights of peaks at stride 4."""

    stride: ClassVar = 4
    divisor: ClassVar = 8
    trunk: ClassVar = "resnet50"
    decoders: ClassVar = ("peaks",)

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.front = timm.create_model("resnet50", features_only=True, out_indices=(2,))
        self.back = nn.Sequential(*(_dilated(*widths) for widths in pairwise(WIDTHS)))
        self.enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.last = nn.Sequential(_dilated(WIDTHS[-1], 64), nn.Conv2d(64, classes, 1))

    def trunks(self) -> list[nn.Module]:
        """ResNet-50 up to C3."""
        return [self.front]

    def forward(self, image_BCHW: Tensor) -> Maps:
        """Standardised image with sides divisible by 8 -> heights."""
        (features_BCHW,) = self.front(image_BCHW)
        return Maps(self.last(self.enlarge(self.back(features_BCHW))))


def _dilated(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=2, dilation=2)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")  # torch's own lets six layers fade
    return nn.Sequential(convolution, nn.ReLU(inplace=True))
