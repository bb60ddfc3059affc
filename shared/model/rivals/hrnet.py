"""FIDT's network (Liang et al. 2022): HRNet-W48 with all four branches, and two transposed convolutions."""

from typing import ClassVar

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.model.rivals.outputs import Maps


class HRNet(nn.Module):
    """Image -> heights of peaks at every px."""

    stride: ClassVar = 1
    divisor: ClassVar = 32
    trunk: ClassVar = "hrnet_w48"
    decoders: ClassVar = ("fidt",)

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.front = timm.create_model(
            "hrnet_w48", features_only=True, feature_location="", out_indices=(1, 2, 3, 4)
        )
        channels = sum(self.front.feature_info.channels())
        self.mix = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
        self.enlarge = nn.Sequential(
            nn.ConvTranspose2d(channels, 64, 4, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(64, classes, 4, stride=2, padding=1),
        )

    def trunks(self) -> list[nn.Module]:
        """HRNet-W48."""
        return [self.front]

    def forward(self, image_BCHW: Tensor) -> Maps:
        """Standardised image with sides divisible by 32 -> heights."""
        finest_BCHW, *coarser = self.front(image_BCHW)
        size = finest_BCHW.shape[-2:]
        same = [F.interpolate(each, size, mode="bilinear", align_corners=False) for each in coarser]
        return Maps(self.enlarge(self.mix(torch.cat([finest_BCHW, *same], 1))))
