"""From uint8 crops to the float views a network sees: everything per pixel or per sample, on the training device.

Every operation draws its parameters for each sample of the batch by itself (torchvision's transforms draw
one set for a whole batch) from torch's generators, which the training loop seeds for every batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shared.command_line import UserError, check_range
from ssl_pretrain.crops import Crop


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is varied in a view, beyond its crop."""

    horizontal_flip: float = 0.5
    """Probability of a left-right flip."""
    vertical_flip: float = 0.0
    """Probability of an up-down flip."""
    quarter_turns: bool = False
    """Whether a view is turned by a random multiple of 90 degrees."""
    jitter: float = 0.8
    """Probability that the colours are changed, by as much as the next four say. 0.8: MoCo v2, SwAV, DINO."""
    brightness: float = 0.0
    """Greatest change of the factor of brightness, which is 1 when nothing changes."""
    contrast: float = 0.0
    """Greatest change of the factor of contrast."""
    saturation: float = 0.0
    """Greatest change of the factor of saturation."""
    hue: float = 0.0
    """Greatest change of hue, in turns of the colour circle (up to 0.5); much of it mixes up brown and blue."""
    grayscale: float = 0.0
    """Probability that the colours are removed."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest sigma (px) of the blur of those views that get one. MoCo v2, SwAV, DINO."""
    solarise_threshold: float = 128 / 255
    """Brightness from which on pixels are inverted in those views that are solarised. PIL's, used by DINO."""

    def check(self) -> None:
        """Refuse numbers that make no sense, with a UserError."""
        for name in ("horizontal_flip", "vertical_flip", "jitter", "grayscale", "solarise_threshold"):
            check_range(f"views.{name.replace('_', '-')}", getattr(self, name), 0, 1)
        for name in ("brightness", "contrast", "saturation"):
            check_range(f"views.{name}", getattr(self, name), 0)
        check_range("views.hue", self.hue, 0, 0.5)
        low, high = self.blur_sigma
        if not 0 < low <= high:
            raise UserError(f"--views.blur-sigma {low} {high} are no widths from small to large; give two above 0")


class Views(nn.Module):
    """uint8 crops -> augmented, normalised float32 views of the same shapes."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, config: Config, crops: tuple[Crop, ...], mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        """Make views of `crops`, normalised with channel `mean` and `std` (RGB, 0..1)."""
        super().__init__()
        self.config, self.crops = config, crops
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, crops: list[Tensor]) -> list[Tensor]:
        """Augment and normalise each (B, 3, H, W) of the list."""
        return [self.normalise(self._flip(crop_BCHW)) for crop_BCHW in crops]

    def normalise(self, image_BCHW: Tensor) -> Tensor:
        """uint8 -> float32 with mean 0 and standard deviation 1 over the patches."""
        return (image_BCHW.float() / 255 - self.mean) / self.std

    def restore(self, view_BCHW: Tensor) -> Tensor:
        """The uint8 image of a normalised view."""
        return ((view_BCHW * self.std + self.mean) * 255).round().clamp(0, 255).to(torch.uint8)

    def _flip(self, image_BCHW: Tensor) -> Tensor:
        image_BCHW = _some_flipped(image_BCHW, -1, self.config.horizontal_flip)
        return _some_flipped(image_BCHW, -2, self.config.vertical_flip)


def _some_flipped(image_BCHW: Tensor, dimension: int, probability: float) -> Tensor:
    """Each image of the batch flipped along a dimension with a probability."""
    if not probability:
        return image_BCHW
    chosen_B = torch.rand(len(image_BCHW), device=image_BCHW.device) < probability
    return torch.where(chosen_B[:, None, None, None], image_BCHW.flip(dimension), image_BCHW)
