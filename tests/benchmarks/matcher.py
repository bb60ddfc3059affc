"""`python -m tests.benchmarks.matcher`: label assignment against the literal way, in one run.

The literal way, known from DETR's descendants, computes one float64 cost matrix of all proposals of the batch
against all cells of the batch, and cuts the images' blocks out of it. Both must reach the same total cost.
"""

from pathlib import Path

import torch
from scipy.optimize import linear_sum_assignment

from finetune.training.matching import MatchingConfig, assign
from tests.benchmarks.measuring import timed, write

SIDE, INTERVAL = 1024, 16  # 4096 proposals
OUT = Path(__file__).with_suffix(".csv")


def main() -> None:
    """Time both at three sizes; the last is the one with a goal (50x)."""
    write(OUT, [compare(batch, cells) for batch, cells in ((1, 300), (4, 300), (16, 300))])


def compare(batch: int, cells: int) -> dict[str, object]:
    """One batch of images with as many cells each."""
    generator = torch.Generator().manual_seed(0)
    count = (SIDE // INTERVAL) ** 2
    points_BN2 = torch.rand(batch, count, 2, generator=generator) * SIDE
    logits_BNC = torch.randn(batch, count, 4, generator=generator)
    cells_BM2 = torch.rand(batch, cells, 2, generator=generator) * SIDE
    labels_BM = torch.randint(0, 3, (batch, cells), generator=generator)
    images = list(zip(points_BN2, logits_BNC, cells_BM2, labels_BM, strict=True))
    targets = list(zip(cells_BM2, labels_BM, strict=True))
    given = (points_BN2, logits_BNC, targets, torch.ones(batch, count, dtype=torch.bool))
    ours = min(timed(lambda: assign(MatchingConfig(), *given))[0] for _ in range(3))
    pairs_of_image = assign(MatchingConfig(), *given).split(cells, dim=1)
    firsts_I2 = torch.arange(batch)[:, None] * torch.tensor([count, cells])
    found = [tuple(pair - first[:, None]) for pair, first in zip(pairs_of_image, firsts_I2, strict=True)]
    literal, wanted = timed(lambda: literally(points_BN2, logits_BNC, cells_BM2, labels_BM))
    costs = [
        sum(float(cost_of(*image)[pair].sum()) for image, pair in zip(images, pairs, strict=True))
        for pairs in (found, wanted)
    ]
    assert abs(costs[0] - costs[1]) < 1e-3 * batch
    return {
        "batch": batch,
        "proposals": count,
        "cells": cells,
        "ours_ms": round(1000 * ours, 1),
        "literal_ms": round(1000 * literal, 1),
        "ratio": round(literal / ours, 1),
    }


def cost_of(points_N2: torch.Tensor, logits_NC: torch.Tensor, cells_M2: torch.Tensor, labels_M: torch.Tensor):
    """Proposals x cells in float64."""
    distance = torch.cdist(points_N2.double(), cells_M2.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return (
        MatchingConfig().cost_point * distance
        - MatchingConfig().cost_class * logits_NC.double().softmax(-1)[:, labels_M]
    )


def literally(
    points_BN2: torch.Tensor, logits_BNC: torch.Tensor, cells_BM2: torch.Tensor, labels_BM: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """All proposals against all cells, then the blocks on the diagonal."""
    batch, count = points_BN2.shape[:2]
    cost = cost_of(
        points_BN2.flatten(0, 1), logits_BNC.flatten(0, 1), cells_BM2.flatten(0, 1), labels_BM.flatten()
    )
    blocks = cost.view(batch, count, -1).split([len(labels) for labels in labels_BM], -1)
    pairs = [linear_sum_assignment(block[image].numpy()) for image, block in enumerate(blocks)]
    return [(torch.as_tensor(proposals), torch.as_tensor(cells)) for proposals, cells in pairs]


if __name__ == "__main__":
    main()
