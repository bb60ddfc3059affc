"""Label assignment: proposals to annotated cells, one to one, at minimum total cost."""

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class MatchingConfig:
    """Weights of the assignment cost."""

    cost_point: float = 0.1
    """Per px of distance between predicted point and cell (authors' public code; P2PNet: 0.05)."""
    cost_class: float = 1.0
    """Per unit of predicted probability of the cell's class (P2PNet and authors' public code)."""


@torch.no_grad()
def assign(
    config: MatchingConfig, points_N2: Tensor, logits_NC: Tensor, cells_M2: Tensor, labels_M: Tensor
) -> tuple[Tensor, Tensor]:
    """Hungarian matching for one image: `cost_point * distance - cost_class * probability`, minimised.

    The cost matrix is cells x proposals in float32: the solver is 2.5-4 times faster on it than on its
    float64 transpose, with the same optimum.

    Args:
        config: Weights of the two terms.
        points_N2: Predicted points, px.
        logits_NC: Predicted logits, background last.
        cells_M2: Annotated cells, px.
        labels_M: Their classes, 0..C-1.

    Returns:
        Two index tensors of equal length min(N, M) on the CPU: proposals and the cells assigned to them.
    """
    if len(cells_M2) == 0:
        return torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)
    distance_MN = torch.cdist(cells_M2.float(), points_N2.float(), compute_mode="donot_use_mm_for_euclid_dist")
    probability_MN = logits_NC.float().softmax(-1)[:, labels_M].T
    cost_MN = config.cost_point * distance_MN - config.cost_class * probability_MN
    cells, proposals = linear_sum_assignment(cost_MN.cpu().numpy())
    return torch.as_tensor(proposals), torch.as_tensor(cells)
