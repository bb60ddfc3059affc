"""DeepLabV3+ (Chen et al. 2018) with ResNet-50 at stride 16: the variant that has the paper's numbers."""

from typing import ClassVar, cast

import timm
import torch
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP

from shared.model.multi_fov import centre_crop
from shared.model.rivals.outputs import Maps

STRIDES = (4, 16)  # of C2, and of C5 whose stage is dilated by 2
CHANNELS, LOW_CHANNELS = 256, 48
RATES = (6, 12, 18)  # of ASPP at stride 16


class DeepLabV3Plus(nn.Module):
    """Image -> logits of the classes at every px; that of background is 0.

    Args:
        classes: Cell classes, background not counted.
        views: 2: the map of a wider view is added at stride 16, as large as the image's. The paper's rival
            (MFoVCE-Net) fuses a wider view at one scale, too, but how is not published: this way is ours.
    """

    stride: ClassVar = 1
    divisor: ClassVar = 16
    trunk: ClassVar = "resnet50"
    decoders: ClassVar = ("discs",)
    sees_whole_image: ClassVar = True  # it pools the whole image; a rate of 18 alone reaches 288 px
    most_views: ClassVar = 2
    least_batch: ClassVar = 2  # the batch norm of what is pooled to one px needs two images

    def __init__(self, classes: int, views: int) -> None:
        super().__init__()
        self.own = _Branch((1, 4))
        self.wider = nn.ModuleList(_Branch((4,)) for _ in range(views - 1))
        self.low = nn.Sequential(*_convolution(256, LOW_CHANNELS, 1))
        self.fuse = nn.Sequential(
            *_convolution(LOW_CHANNELS + CHANNELS, CHANNELS, 3),
            nn.Dropout(0.5),
            *_convolution(CHANNELS, CHANNELS, 3),
            nn.Dropout(0.1),
        )
        self.last = nn.Conv2d(CHANNELS, classes, 1)

    def trunks(self) -> list[nn.Module]:
        """Return the ResNets of the annotated image and of the wider view."""
        return [cast(_Branch, branch).trunk for branch in (self.own, *self.wider)]

    def forward(self, image_BCHW: Tensor) -> Maps:
        """Standardised image with sides divisible by 16 -> logits; with two views B x 2 x 3 x H x W."""
        *wider, own_BCHW = image_BCHW.unbind(1) if self.wider else [image_BCHW]
        *_, low_BCHW, high_BCHW = self.own(own_BCHW)
        for branch, view_BCHW in zip(self.wider, wider, strict=True):
            (map_BCHW,) = branch(view_BCHW)
            rows, columns = high_BCHW.shape[-2:]
            size = (own_BCHW.shape[-2], own_BCHW.shape[-1])
            high_BCHW = high_BCHW + centre_crop(map_BCHW, 2, 1, STRIDES[1], size, rows, columns)
        low_BCHW = self.low(low_BCHW)
        together_BCHW = torch.cat([low_BCHW, _resized(high_BCHW, low_BCHW)], 1)
        return Maps(_resized(self.last(self.fuse(together_BCHW)), own_BCHW))


class _Branch(nn.Module):
    """Trunk and ASPP of one view: an image in, the trunk's finer maps and ASPP's out."""

    def __init__(self, stages: tuple[int, ...]) -> None:
        super().__init__()
        self.trunk = timm.create_model("resnet50", features_only=True, output_stride=16, out_indices=stages)
        self.aspp = ASPP(2048, RATES, CHANNELS)

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        *finer, last_BCHW = self.trunk(image_BCHW)
        return [*finer, self.aspp(last_BCHW)]


def _resized(map_BCHW: Tensor, like_BCHW: Tensor) -> Tensor:
    size = like_BCHW.shape[-2:]
    return nn.functional.interpolate(map_BCHW, size, mode="bilinear", align_corners=False)


def _convolution(inputs: int, outputs: int, kernel: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
