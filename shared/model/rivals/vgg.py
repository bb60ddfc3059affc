"""VGG trunks (Simonyan & Zisserman 2015) under torchvision's and timm's names, and GL's network on one."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from shared.model.rivals.outputs import Maps

# Convolutions of each stage, before a pool.
VGG16, VGG19 = (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)
WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Convolutions of a VGG, `features.N` in checkpoints, without the last pool.

    Args:
        stages: Number of convolutions of each stage.
        padding: Of its convolutions but for the first.
        first_padding: Of the first.
    """

    def __init__(self, stages: Sequence[int], padding: int = 1, first_padding: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.ends: list[int] = []
        """Indices of the last layer of each stage."""
        inputs = 3
        for width, count in zip(WIDTHS, stages, strict=True):
            layers += [nn.MaxPool2d(2)] if layers else []
            for _ in range(count):
                convolution = nn.Conv2d(inputs, width, 3, padding=padding if layers else first_padding)
                nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")  # as torchvision does
                layers += [convolution, nn.ReLU()]
                inputs = width
            self.ends.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Standardised image -> the last stage, at stride 16."""
        features_BCHW: Tensor = self.features(image_BCHW)
        return features_BCHW


class VGGDensity(nn.Module):
    """GL's network (Wan et al. 2021): image -> number of cells of each class in every 8 x 8 px."""

    stride: ClassVar = 8
    divisor: ClassVar = 16
    trunk: ClassVar = "vgg19"
    decoders: ClassVar = ("counted", "otm")

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.front = VGG(VGG19)
        self.head = nn.Sequential(
            nn.Upsample(scale_factor=2),
            *(nn.Conv2d(512, 256, 3, padding=1), nn.ReLU(inplace=True)),
            *(nn.Conv2d(256, 128, 3, padding=1), nn.ReLU(inplace=True)),
            nn.Conv2d(128, classes, 1),
        )
        for module in self.head:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def trunks(self) -> list[nn.Module]:
        """VGG-19."""
        return [self.front]

    def forward(self, image_BCHW: Tensor) -> Maps:
        """Standardised image with sides divisible by 16 -> densities."""
        return Maps(self.head(self.front(image_BCHW)).abs())
