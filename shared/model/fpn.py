"""Feature pyramid network (Lin et al. 2017): the maps of a backbone, brought to one width and mixed."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.model.proposals import Level, UnsmoothedLevel


class FeaturePyramid(nn.Module):
    """Lateral 1x1 convolutions, top-down sums, a 3x3 convolution per output.

    Biases everywhere, no norm and no activation, nearest-neighbour upsampling: the neck of the authors'
    public code. With `extra`, one more level is made from the coarsest *input* by a 3x3 convolution with
    stride 2; for ResNet-50 and P2..P6 this is what the parameter count of the paper's Table 3 needs.

    Args:
        channels: Channels of the input maps, finest first; each map is half the size of the one before.
        width: Channels of every output.
        first: Index of the finest input map that is used.
        outputs: How many levels are put out, counted from the finest used; all of them if None.
        extra: Whether to append the extra coarse level.
    """

    def __init__(
        self,
        channels: Sequence[int],
        width: int = 256,
        first: int = 0,
        outputs: int | None = None,
        extra: bool = True,
    ) -> None:
        super().__init__()
        self.first = first
        channels = channels[first:]
        count = len(channels) if outputs is None else outputs
        self.lateral = nn.ModuleList(nn.Conv2d(channel, width, 1) for channel in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(count))
        self.extra = nn.Conv2d(channels[-1], width, 3, stride=2, padding=1) if extra else None

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Input maps, finest first -> pyramid levels, finest first, each B x width x H x W."""
        merged = self.merge(maps)
        levels = [smooth(level) for smooth, level in zip(self.smooth, merged, strict=False)]
        return levels if self.extra is None else [*levels, self.extra(maps[-1])]

    def to_sample(self, maps: Sequence[Tensor], unsmoothed: int) -> list[Level]:
        """As `forward`, but the finest `unsmoothed` levels await their convolution where they are sampled."""
        merged = self.merge(maps)
        pairs = list(zip(merged, self.smooth, strict=False))
        levels: list[Level] = [
            UnsmoothedLevel(level.contiguous(memory_format=torch.channels_last), cast(nn.Conv2d, smooth))
            for level, smooth in pairs[:unsmoothed]
        ]
        levels += [smooth(level) for level, smooth in pairs[unsmoothed:]]
        return levels if self.extra is None else [*levels, self.extra(maps[-1])]

    def merge(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Compute the top-down sums, before their 3x3 convolutions."""
        merged = [lateral(feature) for lateral, feature in zip(self.lateral, maps[self.first :], strict=True)]
        for index in range(len(merged) - 1, 0, -1):
            merged[index - 1] = merged[index - 1] + F.interpolate(merged[index], scale_factor=2.0)
        return merged


class SummedPyramid(nn.Module):
    """All maps brought to one width and one resolution and added (E2E, Shui et al. 2022).

    The paper describes it so; the neck itself is not published. One 3x3 convolution after the sum fits the
    multiply-adds of the paper's Table 3 (106.6 G of its 107), not its parameters (27.5 M of 28.9).

    Args:
        channels: Channels of the input maps, finest first.
        width: Channels of the output.
        at: Index of the map whose resolution all are brought to.
    """

    def __init__(self, channels: Sequence[int], width: int = 256, at: int = 2) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(channel, width, 1) for channel in channels)
        self.smooth = nn.Conv2d(width, width, 3, padding=1)
        self.at = at

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Input maps, finest first -> one map: finer ones averaged, coarser ones interpolated."""
        levels = [lateral(feature) for lateral, feature in zip(self.lateral, maps, strict=True)]
        size = levels[self.at].shape[-2:]
        finer = [F.adaptive_avg_pool2d(level, size) for level in levels[: self.at]]
        coarser = [F.interpolate(level, size, mode="bilinear") for level in levels[self.at + 1 :]]
        return [self.smooth(sum([*finer, *coarser], start=levels[self.at]))]
