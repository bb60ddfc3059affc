"""Augment uint8 crops to normalised float views, per sample, on the training device.

Every operation draws its parameters for each sample of the batch by itself (torchvision's transforms draw
one set for a whole batch) from torch's generators, which the training loop seeds for every batch. Order and
distributions are those of the official codes (MoCo v2, SwAV, DINO): colour jitter with its four operations in
random order, grayscale, blur, solarise. They flip before or after; that makes no difference.
"""

import math
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn

from shared.cli import Range, validate
from shared.errors import UserError
from ssl_pretrain.data.color_ops import Jitter, blurred, gray, jittered, solarised
from ssl_pretrain.data.crops import Crop


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """Augmentation of views after cropping."""

    horizontal_flip: Annotated[float, Range(0, 1)] = 0.5
    """Probability of a left-right flip."""
    vertical_flip: Annotated[float, Range(0, 1)] = 0.0
    """Probability of an up-down flip."""
    quarter_turns: bool = False
    """Rotate views by a random multiple of 90 degrees."""
    jitter: Annotated[float, Range(0, 1)] = 0.8
    """Probability that the colours are changed, by as much as the next four say. 0.8: MoCo v2, SwAV, DINO."""
    brightness: Annotated[float, Range(0)] = 0.0
    """Greatest change of the factor of brightness, which is 1 when nothing changes."""
    contrast: Annotated[float, Range(0)] = 0.0
    """Greatest change of the factor of contrast."""
    saturation: Annotated[float, Range(0)] = 0.0
    """Greatest change of the factor of saturation."""
    hue: Annotated[float, Range(0, 0.5)] = 0.0
    """Greatest change of hue, in turns of the colour circle (up to 0.5); much of it mixes up brown and blue."""
    grayscale: Annotated[float, Range(0, 1)] = 0.0
    """Probability that the colours are removed."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest sigma (px) of the blur of those views that get one. MoCo v2, SwAV, DINO."""
    solarise_threshold: Annotated[float, Range(0, 1)] = 128 / 255
    """Brightness from which on pixels are inverted in those views that are solarised. PIL's, used by DINO."""

    @property
    def changes_colours(self) -> bool:
        """True if there is any colour jitter."""
        return self.jitter > 0 and max(self.brightness, self.contrast, self.saturation, self.hue) > 0

    @property
    def blur_reach(self) -> int:
        """Pixels to either side that a blur takes in: three sigma, as far as PIL's approximation reaches."""
        return math.ceil(3 * self.blur_sigma[1])

    def check(self) -> None:
        """Refuse numbers that make no sense, with a UserError."""
        validate(self, "views.")
        low, high = self.blur_sigma
        if not 0 < low <= high < math.inf:
            raise UserError(f"--views.blur-sigma {low} {high} are no widths from small to large; give two above 0")


class AugmentParams(NamedTuple):
    """Sampled augmentation parameters of a batch; None if the augmentation is off."""

    transpose_B: Tensor | None = None
    """True where rows and columns are swapped."""
    horizontal_B: Tensor | None = None
    """True where the image is then flipped left-right."""
    vertical_B: Tensor | None = None
    """True where the image is flipped up-down."""
    jitter: Jitter | None = None
    """Changes of colour."""
    gray_B: Tensor | None = None
    """True where colours are removed."""
    sigma_B: Tensor | None = None
    """Sigma of the blur in px; 0: none."""
    threshold_B: Tensor | None = None
    """Threshold of solarisation; above 1: none."""


class Views(nn.Module):
    """uint8 crops -> augmented, normalised float32 views of the same shapes; may be compiled."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, config: ViewsConfig, crops: tuple[Crop, ...], mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        """Make views of `crops`, normalised with channel `mean` and `std` (RGB, 0..1)."""
        super().__init__()
        self.config, self.crops = config, crops
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    @torch.no_grad()
    def forward(self, crops: list[Tensor]) -> list[Tensor]:
        """Augment and normalise each (B, 3, size, size) of the list; there is one for each crop of an image."""
        views: list[Tensor] = []
        first = 0
        for crop in (kind for kind in self.crops if kind.count):  # a recipe may do without small ones
            # Crops of one kind are handled together: fewer and larger operations for the GPU.
            same_BCHW = torch.cat(crops[first : first + crop.count])
            first += crop.count
            views += self.varied(same_BCHW, self.draw(len(same_BCHW), crop)).chunk(crop.count)
        return views

    def draw(self, count: int, crop: Crop) -> AugmentParams:
        """Draw the random parameters of `count` crops of one kind."""
        config, device = self.config, self.mean.device
        lots = AugmentParams(
            horizontal_B=_chosen(count, config.horizontal_flip, device),
            vertical_B=_chosen(count, config.vertical_flip, device),
            jitter=_draw_jitter(count, config, device) if config.changes_colours else None,
            gray_B=_chosen(count, config.grayscale, device),
        )
        if config.quarter_turns:
            lots = _with_quarter_turns(lots, torch.randint(4, (count,), device=device))
        if (blur_B := _chosen(count, crop.blur, device)) is not None:
            sigma_B = _uniform(count, *config.blur_sigma, device)
            lots = lots._replace(sigma_B=torch.where(blur_B, sigma_B, 0.0))
        if (solarise_B := _chosen(count, crop.solarise, device)) is not None:
            lots = lots._replace(threshold_B=torch.where(solarise_B, config.solarise_threshold, 2.0))
        return lots

    def varied(self, image_BCHW: Tensor, lots: AugmentParams) -> Tensor:
        """Apply drawn parameters to uint8 images and normalise them."""
        # The loop's autocast would have the blur computed in bfloat16.
        with torch.autocast(image_BCHW.device.type, enabled=False):
            view_BCHW = _moved(image_BCHW, lots).float() / 255
            if lots.jitter is not None:
                view_BCHW = jittered(view_BCHW, lots.jitter)
            if lots.gray_B is not None:
                view_BCHW = _where(lots.gray_B, gray(view_BCHW), view_BCHW)
            if lots.sigma_B is not None:
                view_BCHW = blurred(view_BCHW, lots.sigma_B, self.config.blur_reach)
            if lots.threshold_B is not None:
                view_BCHW = solarised(view_BCHW, lots.threshold_B)
            return (view_BCHW - self.mean) / self.std

    def normalise(self, image_BCHW: Tensor) -> Tensor:
        """uint8 -> float32 with mean 0 and standard deviation 1 over the patches."""
        return self.varied(image_BCHW, AugmentParams())

    def restore(self, view_BCHW: Tensor) -> Tensor:
        """Convert normalised views back to uint8 images."""
        return ((view_BCHW * self.std + self.mean) * 255).round().clamp(0, 255).to(torch.uint8)


def _moved(image_BCHW: Tensor, lots: AugmentParams) -> Tensor:
    """Rotate and flip, still in uint8."""
    if lots.transpose_B is not None:
        image_BCHW = _where(lots.transpose_B, image_BCHW.transpose(-1, -2), image_BCHW)
    if lots.horizontal_B is not None:
        image_BCHW = _where(lots.horizontal_B, image_BCHW.flip(-1), image_BCHW)
    if lots.vertical_B is not None:
        image_BCHW = _where(lots.vertical_B, image_BCHW.flip(-2), image_BCHW)
    return image_BCHW


def _with_quarter_turns(lots: AugmentParams, quarters_B: Tensor) -> AugmentParams:
    """Counter-clockwise turns by so many quarters before the flips, expressed as a transposition and flips."""
    horizontal_B, vertical_B = quarters_B >= 2, (quarters_B == 1) | (quarters_B == 2)
    if lots.horizontal_B is not None:
        horizontal_B = horizontal_B ^ lots.horizontal_B
    if lots.vertical_B is not None:
        vertical_B = vertical_B ^ lots.vertical_B
    return lots._replace(transpose_B=quarters_B % 2 == 1, horizontal_B=horizontal_B, vertical_B=vertical_B)


def _draw_jitter(count: int, config: ViewsConfig, device: torch.device) -> Jitter:
    """Factors uniform around 1, as torchvision draws them; with the lot against a sample, nothing changes."""
    strengths = (config.brightness, config.contrast, config.saturation)
    factors = [_uniform(count, max(0.0, 1 - strength), 1 + strength, device) for strength in strengths]
    turn_B = _uniform(count, -config.hue, config.hue, device)
    order_B4 = torch.rand(count, 4, device=device).argsort(1)
    changed_B = torch.rand(count, device=device) < config.jitter
    factor_B3 = torch.where(changed_B[:, None], torch.stack(factors, dim=1), 1.0)
    return Jitter(factor_B3, torch.where(changed_B, turn_B, 0.0), order_B4)


def _uniform(count: int, low: float, high: float, device: torch.device) -> Tensor:
    return low + (high - low) * torch.rand(count, device=device)


def _chosen(count: int, probability: float, device: torch.device) -> Tensor | None:
    """Draw a mask of samples; None for probability 0."""
    return torch.rand(count, device=device) < probability if probability else None


def _where(chosen_B: Tensor, one_BCHW: Tensor, other_BCHW: Tensor) -> Tensor:
    return torch.where(chosen_B[:, None, None, None], one_BCHW, other_BCHW)
