"""Label assignment: proposals to annotated cells, one to one, at minimum total cost."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
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
    config: MatchingConfig,
    points_BN2: Tensor,
    logits_BNC: Tensor,
    cells: Sequence[tuple[Tensor, Tensor]],
    competing_BN: Tensor,
) -> Tensor:
    """Hungarian matching in each image: `cost_point * distance - cost_class * probability`, minimised.

    The host waits for the device once, for the costs of all images, and solves them in a thread each, as the
    solver holds no lock. A cost matrix is cells x proposals in float32: the solver is 2.5-4 times faster on it
    than on its float64 transpose, with the same optimum.

    Args:
        config: Weights of the two terms.
        points_BN2: Predicted points, px.
        logits_BNC: Predicted logits, background last.
        cells: Of each image, the annotated cells, px, and their classes, 0..C-1.
        competing_BN: Whether a proposal can be matched.

    Returns:
        Indices (2, matches) on the device: into the proposals and into the cells of all images, one after another;
        of an image as many as it has proposals that compete, or cells, if those are fewer.
    """
    images = zip(points_BN2, logits_BNC, *zip(*cells, strict=True), strict=True)
    costs = [_cost(config, *image) for image in images]
    # One copy to the host: a row for each cell of all images, and in the end one for each image.
    rows_LN = torch.cat([*costs, competing_BN.float()]).cpu()
    *parts, competing = rows_LN.split([*(len(cost_MN) for cost_MN in costs), len(competing_BN)])
    with ThreadPoolExecutor(len(parts)) as pool:
        solved = list(pool.map(_solve, parts, competing))
    pairs, first_cell = [], 0
    for number, (answered, proposals) in enumerate(solved):
        pairs.append(np.stack([proposals + number * rows_LN.shape[1], answered + first_cell]))
        first_cell += len(parts[number])
    return torch.from_numpy(np.concatenate(pairs, axis=1)).to(points_BN2.device, non_blocking=True)


def _cost(
    config: MatchingConfig, points_N2: Tensor, logits_NC: Tensor, cells_M2: Tensor, labels_M: Tensor
) -> Tensor:
    """Cells x proposals, on the device."""
    distance_MN = torch.cdist(cells_M2.float(), points_N2.float(), compute_mode="donot_use_mm_for_euclid_dist")
    probability_MN = logits_NC.float().softmax(-1)[:, labels_M].T
    return config.cost_point * distance_MN - config.cost_class * probability_MN


def _solve(cost_MN: Tensor, competing_N: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the assignment, without the columns that are 0 in `competing_N`."""
    kept_K = np.flatnonzero(competing_N.numpy())
    rows, columns = linear_sum_assignment(cost_MN.numpy()[:, kept_K])
    return rows, kept_K[columns]
