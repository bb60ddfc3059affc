"""Losses of networks with one map a class: discs (U-Net, DeepLabV3+) and peaks (U-CSRNet, FIDT)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.training.objective import Losses, Objective, Targets
from finetune.training.rivals.map_targets import FIDT_REACH, disc_labels, distances, fidt, gaussians
from shared.cli import Range
from shared.model.cells import NetworkConfig
from shared.model.rivals.outputs import Maps
from shared.model.rivals.rival_detector import NETWORKS, RivalConfig

# Of U-CSRNet's peaks (ours; its code is not public): at stride 4 and 0.5 um/px a cell between places of the map
# still reaches 0.64 at the nearest, above the decoder's level of 0.5.
GAUSSIAN_UM = 1.5
GAUSSIAN_REACH = 3.0  # standard deviations


@dataclass(frozen=True, kw_only=True)
class DiscsConfig:
    """Classify every px: a disc around each cell has its class, all else is background."""

    radius_um: Annotated[float, Range(0.01, 100)] = 1.4
    """Radius of a disc (OCELOT, Ryu et al. 2023)."""

    def objective(self, network: NetworkConfig, steps_an_epoch: int) -> Objective:
        """Loss for a network whose output is as large as its input."""
        assert isinstance(network, RivalConfig)
        return DiscsObjective(self.radius_um / network.mpp)


@dataclass(frozen=True, kw_only=True)
class PeaksConfig:
    """Regress a map of each class that is high at cells, by squared error."""

    shape: Literal["gaussian", "fidt"] = "fidt"
    """Shape of a peak: a Gaussian of 1.5 um, or FIDT's in px."""

    def objective(self, network: NetworkConfig, steps_an_epoch: int) -> Objective:
        """Loss for a network with one map a class."""
        assert isinstance(network, RivalConfig)
        return PeaksObjective(NETWORKS[network.network].stride, GAUSSIAN_UM / network.mpp, self.shape)


class DiscsObjective(Objective):
    """Dice and cross-entropy, the mean over the images.

    OCELOT trains with Dice; the cross-entropy is ours, because Dice alone starts badly from chance.
    """

    def __init__(self, radius: float) -> None:
        """Keep the radius of the discs, px."""
        self.radius = self.reach = radius

    def loss(self, found: Maps, targets: Sequence[Targets], sums: Tensor) -> Losses:
        """See `Objective`."""
        total = found.maps_BCHW.new_zeros(())
        for logits_CHW, target in zip(found.maps_BCHW, targets, strict=True):
            classes, height, width = logits_CHW.shape
            away_CHW = distances(*_arrays(target), (classes, height, width), 1, self.radius)
            labels_HW = torch.from_numpy(disc_labels(away_CHW, self.radius)).to(logits_CHW.device)
            # The logit of background is 0: softmax needs no other.
            logits_KHW = torch.cat([logits_CHW, torch.zeros_like(logits_CHW[:1])])
            wanted_CHW = F.one_hot(labels_HW, classes + 1).movedim(-1, 0)[:-1]
            each_C = [dice(*pair) for pair in zip(logits_KHW.softmax(0)[:-1], wanted_CHW, strict=True)]
            total = total + torch.stack(each_C).mean() + F.cross_entropy(logits_KHW[None], labels_HW[None])
        total = total / sums[0]
        return Losses(total, total.detach(), total.new_zeros(()))


class PeaksObjective(Objective):
    """Squared error, summed over the places of all classes (FIDT's public code), the mean over the images."""

    def __init__(self, stride: int, sigma: float, shape: str) -> None:
        """Keep the shape of the peaks.

        Args:
            stride: px of the image per cell of the map.
            sigma: Of a Gaussian, px.
            shape: "gaussian" or "fidt".
        """
        self.stride, self.sigma, self.shape = stride, sigma, shape
        self.reach = FIDT_REACH if shape == "fidt" else GAUSSIAN_REACH * sigma

    def loss(self, found: Maps, targets: Sequence[Targets], sums: Tensor) -> Losses:
        """See `Objective`."""
        maps_BCHW = found.maps_BCHW
        wanted = [self.heights(target, *maps_BCHW.shape[1:]) for target in targets]
        wanted_BCHW = torch.from_numpy(np.stack(wanted)).to(maps_BCHW)
        total = F.mse_loss(maps_BCHW, wanted_BCHW, reduction="sum") / sums[0]
        return Losses(total, total.new_zeros(()), total.detach())

    def heights(self, target: Targets, classes: int, rows: int, columns: int) -> np.ndarray:
        """Map that one image's cells make, (C, H, W)."""
        away_CHW = distances(*_arrays(target), (classes, rows, columns), self.stride, self.reach)
        return fidt(away_CHW) if self.shape == "fidt" else gaussians(away_CHW, self.sigma)


def dice(found: Tensor, wanted: Tensor) -> Tensor:
    """1 - Dice with squares in the denominator, and 1 added to both of its sides."""
    wanted = wanted.float()
    return 1 - (2 * (found * wanted).sum() + 1) / (found.square().sum() + wanted.square().sum() + 1)


def _arrays(target: Targets) -> tuple[np.ndarray, np.ndarray]:
    return target.cells_M2.cpu().numpy().astype(float), target.labels_M.cpu().numpy()
