"""CLTR's loss: queries matched one to one, focal loss of their classes, distance of the matched ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from finetune.training.objective import Losses, Objective, Targets
from shared.model.cells import NetworkConfig
from shared.model.rivals.outputs import Queries

# Public code: weights of matching and loss alike; points in sides of the crop. Focal loss as in Lin et al. 2017.
CLASS_WEIGHT, POINT_WEIGHT, ALPHA, GAMMA = 2.0, 5.0, 0.25, 2.0


@dataclass(frozen=True, kw_only=True)
class QueriesConfig:
    """Match queries with cells (CLTR)."""

    def objective(self, network: NetworkConfig, steps_an_epoch: int) -> Objective:
        """Loss for CLTR; what its network is does not matter to it."""
        return QueriesObjective()


class QueriesObjective(Objective):
    """Sum over the decoder layers, each matched by itself; a cell counts the same in every image."""

    def normalisers(self, found: Queries, targets: Sequence[Targets]) -> Tensor:
        """Count the cells."""
        return torch.tensor([float(sum(len(each.labels_M) for each in targets))])

    def loss(self, found: Queries, targets: Sequence[Targets], sums: Tensor) -> Losses:
        """See `Objective`."""
        classification = regression = found.logits_LBQC.new_zeros(())
        for layer in zip(*found, strict=True):
            for points_Q2, logits_QC, size_2, target in zip(*layer, targets, strict=True):
                target = Targets(target.cells_M2.float() / size_2, target.labels_M)
                queries, cells = matched(points_Q2 / size_2, logits_QC, target)
                wanted_QC = torch.zeros_like(logits_QC)
                wanted_QC[queries, target.labels_M[cells]] = 1
                focal = sigmoid_focal_loss(logits_QC, wanted_QC, ALPHA, GAMMA, reduction="sum")
                away = (points_Q2[queries] / size_2 - target.cells_M2[cells]).abs().sum()
                classification, regression = classification + focal, regression + away
        cells_M = sums[0].clamp(min=1)
        classification, regression = CLASS_WEIGHT * classification / cells_M, POINT_WEIGHT * regression / cells_M
        return Losses(classification + regression, classification.detach(), regression.detach())


@torch.no_grad()
def matched(points_Q2: Tensor, logits_QC: Tensor, target: Targets) -> tuple[Tensor, Tensor]:
    """Match queries with cells at the least cost; returns the indices of both.

    Args:
        points_Q2: In sides of the image.
        logits_QC: Of the classes.
        target: Cells in sides of the image, at most as many as queries.
    """
    positive_QC, negative_QC = (
        sigmoid_focal_loss(logits_QC, torch.full_like(logits_QC, wanted), ALPHA, GAMMA) for wanted in (1, 0)
    )
    class_QM = (positive_QC - negative_QC)[:, target.labels_M]
    away_QM = torch.cdist(points_Q2, target.cells_M2, p=1)
    cost_QM = CLASS_WEIGHT * class_QM + POINT_WEIGHT * away_QM
    queries, cells = linear_sum_assignment(cost_QM.cpu().numpy())
    return torch.as_tensor(queries, device=points_Q2.device), torch.as_tensor(cells, device=points_Q2.device)
