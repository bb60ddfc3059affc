"""Distinct proposals: of points that end close to each other only the most probable one counts."""

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from shared.model.decoders import Detections


def distinct_proposals(found: Detections, radius: float) -> Tensor:
    """Mask of the proposals that count, (B, N): see `distinct`.

    Args:
        found: Detections of a batch.
        radius: px, inclusive; 0 sets nothing aside.
    """
    points_BN2 = found.points_BN2.detach()
    if not radius:
        return points_BN2.new_ones(points_BN2.shape[:2], dtype=torch.bool)
    cell_BN = 1 - found.logits_BNC.detach().float().softmax(-1)[..., -1]
    image_BN3 = torch.cat([points_BN2, cell_BN[..., None]], -1).cpu().numpy()  # one copy that the host waits for
    masks = [torch.from_numpy(distinct(image_N3[:, :2], image_N3[:, 2], radius)) for image_N3 in image_BN3]
    return torch.stack(masks).to(points_BN2.device, non_blocking=True)


def without_duplicates(found: Detections, radius: float) -> Detections:
    """Turn the proposals that do not count into background."""
    aside_BN = ~distinct_proposals(found, radius)
    logits_BNC = found.logits_BNC.clone()
    logits_BNC[..., :-1].masked_fill_(aside_BN[..., None], -torch.inf)
    return found._replace(logits_BNC=logits_BNC)


def distinct(points_N2: np.ndarray, probability_N: np.ndarray, radius: float) -> np.ndarray:
    """Set aside every point within `radius` of a more probable one that is not set aside itself.

    This is greedy non-maximum suppression of points, class-agnostic, applied before labels are assigned as well
    as to the result (Dense Distinct Query, Zhang et al., CVPR 2023). Of equally probable points the first counts.

    Args:
        points_N2: px.
        probability_N: Probability of being a cell of any class.
        radius: px, inclusive.

    Returns:
        Mask of the points that count, (N,).
    """
    pairs_P2 = KDTree(points_N2).query_pairs(radius, output_type="ndarray")
    rank_N = np.empty(len(probability_N), np.int64)
    rank_N[np.argsort(-probability_N, kind="stable")] = np.arange(len(probability_N))
    first_wins_P = rank_N[pairs_P2[:, 0]] < rank_N[pairs_P2[:, 1]]
    winner_P, loser_P = np.where(first_wins_P, pairs_P2.T, pairs_P2.T[::-1])
    # After t rounds every point is right whose chain of more probable neighbours is shorter than t.
    kept_N = np.ones(len(points_N2), bool)
    while True:
        blocked_N = np.zeros(len(points_N2), bool)
        blocked_N[loser_P[kept_N[winner_P]]] = True
        if (blocked_N != kept_N).all():
            return kept_N
        kept_N = ~blocked_N
