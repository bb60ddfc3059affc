"""The training loss: classification of every proposal, regression of the matched ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.training import matching
from finetune.training.matching import MatchingConfig
from shared.model.dpa_p2pnet import Detections


@dataclass(frozen=True, kw_only=True)
class CriterionConfig:
    """Weights of the loss terms (P2PNet's scheme; the paper states no coefficients)."""

    matching: MatchingConfig = MatchingConfig()
    """How proposals are assigned to cells."""
    background_weight: float = 0.4
    """Weight of background proposals in the cross-entropy (authors' public code on H&E data)."""
    point_weight: float = 2e-3
    """Weight of the squared distance in px^2 (authors' public code; P2PNet: 2e-4)."""


class Targets(NamedTuple):
    """Annotated cells of one image: px with corner origin, and classes 0..C-1."""

    cells_M2: Tensor
    labels_M: Tensor


class Losses(NamedTuple):
    """The terms of the loss, each already weighted; `total` is their sum."""

    total: Tensor
    classification: Tensor
    regression: Tensor


def sums_of(config: CriterionConfig, targets: Sequence[Targets], proposals: int) -> Tensor:
    """What a batch's losses are divided by: the weights of all its proposals, and its number of cells.

    Known before anything is matched, as min(cells, proposals) of an image will be. Averaged over the ranks of a
    step, they make every proposal and every cell of the step count the same, on whatever rank it is.
    """
    cells = [len(each.labels_M) for each in targets]
    matched = sum(min(count, proposals) for count in cells)
    background = len(targets) * proposals - matched
    return torch.tensor([matched + config.background_weight * background, float(sum(cells))])


def detection_loss(
    config: CriterionConfig, found: Detections, targets: Sequence[Targets], sums_2: Tensor
) -> Losses:
    """Match per image, then cross-entropy over all proposals and squared distance over the matched.

    Args:
        config: Weights.
        found: What the network says.
        targets: Of each image.
        sums_2: What the two terms are divided by (`sums_of`).
    """
    points_BN2, logits_BNC = found.points_BN2.float(), found.logits_BNC.float()
    background = logits_BNC.shape[-1] - 1
    wanted_BN = torch.full(logits_BNC.shape[:2], background, device=logits_BNC.device)
    squared = points_BN2.new_zeros(())
    for index, (cells_M2, labels_M) in enumerate(targets):
        matched = matching.assign(config.matching, points_BN2[index], logits_BNC[index], cells_M2, labels_M)
        proposals, answered = (indices.to(logits_BNC.device) for indices in matched)
        wanted_BN[index, proposals] = labels_M[answered]
        squared = squared + F.mse_loss(points_BN2[index, proposals], cells_M2[answered].float(), reduction="sum")
    class_weights = logits_BNC.new_ones(background + 1)
    class_weights[background] = config.background_weight
    entropy = F.cross_entropy(logits_BNC.flatten(0, 1), wanted_BN.flatten(), class_weights, reduction="sum")
    classification = entropy / sums_2[0]
    # Without a cell on any rank nothing is divided; a rank without cells must not count as having one.
    regression = config.point_weight * squared / sums_2[1].where(sums_2[1] > 0, 1.0)
    return Losses(classification + regression, classification.detach(), regression.detach())
