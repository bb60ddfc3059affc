"""The training loss: classification of every proposal, regression of the matched ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.training import matching
from finetune.training.matching import MatchingConfig
from finetune.training.objective import Losses, Objective, Targets
from shared.cli import Range
from shared.model.cells import NetworkConfig
from shared.model.decoders import Detections
from shared.model.distinct import distinct_proposals
from shared.model.dpa_p2pnet import DetectorConfig

IGNORED = -100  # target of proposals without a loss, as torch's cross-entropy has it
MIN_DISTINCT_PER_CELL = 1.3


@dataclass(frozen=True, kw_only=True)
class CriterionConfig:
    """Weights of the loss terms (P2PNet's scheme; the paper states no coefficients)."""

    matching: MatchingConfig = MatchingConfig()
    """Assignment of proposals to cells."""
    background_weight: Annotated[float, Range(1e-6)] = 0.75
    """Weight of background proposals in the cross-entropy (ours, 0.75: fewer cells are reported twice; authors'
    public code on H&E data: 0.4)."""
    point_weight: Annotated[float, Range(0)] = 2e-3
    """Weight of the squared distance in px^2 (authors' public code; P2PNet: 2e-4)."""

    def objective(self, network: NetworkConfig, steps_an_epoch: int) -> Objective:
        """Loss for a network of the family; epochs do not matter to it."""
        assert isinstance(network, DetectorConfig)
        return PointObjective(self, network.distinct)


@dataclass(frozen=True)
class PointObjective(Objective):
    """`detection_loss` of proposals that compete within a radius (px)."""

    config: CriterionConfig
    radius: float = 0.0

    def normalisers(self, found: Detections, targets: Sequence[Targets]) -> Tensor:
        """See `loss_normalisers`."""
        return loss_normalisers(self.config, targets, found.points_BN2.shape[1])

    def loss(self, found: Detections, targets: Sequence[Targets], sums: Tensor) -> Losses:
        """See `detection_loss`."""
        return detection_loss(self.config, found, targets, sums, self.radius)


def loss_normalisers(config: CriterionConfig, targets: Sequence[Targets], proposals: int) -> Tensor:
    """Normalisers of the two loss terms: the weights of all proposals of a batch, and its number of cells.

    They are known before matching, which assigns min(cells, proposals) of an image. Averaged over the ranks of a
    step, they give every proposal and every cell of the step the same weight on any rank.
    """
    cells = [len(each.labels_M) for each in targets]
    matched = sum(min(count, proposals) for count in cells)
    background = len(targets) * proposals - matched
    return torch.tensor([matched + config.background_weight * background, float(sum(cells))])


def detection_loss(
    config: CriterionConfig, found: Detections, targets: Sequence[Targets], sums_2: Tensor, radius: float = 0.0
) -> Losses:
    """Match per image, then add cross-entropy over all proposals and squared distance over the matched.

    Args:
        config: Weights.
        found: Output of the network.
        targets: Annotated cells of each image.
        sums_2: Normalisers of the two terms (`loss_normalisers`).
        radius: px within which proposals compete (`distinct`); those set aside have no part in the loss.
    """
    points_BN2, logits_BNC = found.points_BN2.float(), found.logits_BNC.float()
    background = logits_BNC.shape[-1] - 1
    competing_BN = _competing(found, targets, radius)
    cells_M2, labels_M = (torch.cat(list(each)) for each in zip(*targets, strict=True))
    proposals, answered = matching.assign(config.matching, points_BN2, logits_BNC, targets, competing_BN)
    wanted_K = torch.where(competing_BN, background, IGNORED).flatten()  # K: B N
    wanted_K[proposals] = labels_M[answered]
    squared = F.mse_loss(points_BN2.flatten(0, 1)[proposals], cells_M2[answered].float(), reduction="sum")
    class_weights = F.pad(logits_BNC.new_ones(background), (0, 1), value=config.background_weight)
    entropy = F.cross_entropy(logits_BNC.flatten(0, 1), wanted_K, class_weights, reduction="sum")
    classification = entropy / sums_2[0]
    # Without a cell on any rank the term is zero; a rank without cells must not count as having one.
    regression = config.point_weight * squared / sums_2[1].where(sums_2[1] > 0, 1.0)
    return Losses(classification + regression, classification.detach(), regression.detach())


def _competing(found: Detections, targets: Sequence[Targets], radius: float) -> Tensor:
    """Mask of the proposals that are matched and have a loss, (B, N).

    In images with many cells for their distinct proposals nothing is set aside: cells would be matched to
    proposals far away, whose regression loss outweighs all others.
    """
    distinct_BN = distinct_proposals(found, radius)
    cells_B = torch.tensor([len(each.labels_M) for each in targets]).to(distinct_BN.device, non_blocking=True)
    crowded_B = distinct_BN.sum(1) < MIN_DISTINCT_PER_CELL * cells_B
    return distinct_BN | crowded_B[:, None]
