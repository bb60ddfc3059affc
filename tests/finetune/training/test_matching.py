"""The assignment against exhaustive search and against a literal float64 cost matrix."""

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from finetune.training import criterion
from finetune.training.criterion import Targets, detection_loss, loss_normalisers
from finetune.training.matching import MatchingConfig
from shared.model import dpa_p2pnet as core
from tests.finetune.literal_rules import assigned


def scene(seed: int, proposals: int, cells: int, classes: int = 3, side: float = 512):
    random = torch.Generator().manual_seed(seed)
    points = torch.rand(proposals, 2, generator=random) * side
    logits = torch.randn(proposals, classes + 1, generator=random)
    return points, logits, torch.rand(cells, 2, generator=random) * side, torch.arange(cells) % classes


def cost64(points, logits, cells, labels) -> np.ndarray:
    """Return the cost as the authors' code builds it: proposals x cells, float64."""
    distance = np.linalg.norm(points.double().numpy()[:, None] - cells.double().numpy()[None], axis=-1)
    probability = logits.double().softmax(-1).numpy()[:, labels.numpy()]
    return 0.1 * distance - probability


def test_small_scenes_equal_exhaustive_search() -> None:
    for seed in range(20):
        points, logits, cells, labels = scene(seed, proposals=6, cells=3, side=20)
        cost = cost64(points, logits, cells, labels)
        best = min(sum(cost[p, c] for c, p in enumerate(chosen)) for chosen in permutations(range(6), 3))
        proposals, matched = assigned(MatchingConfig(), points, logits, cells, labels)
        assert cost[proposals, matched].sum() == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize(("proposals", "cells"), [(1024, 200), (4096, 300), (100, 150)])
def test_cost_equals_the_float64_optimum(proposals: int, cells: int) -> None:
    points, logits, truth, labels = scene(7, proposals, cells)
    cost = cost64(points, logits, truth, labels)
    rows, columns = linear_sum_assignment(cost)
    ours = assigned(MatchingConfig(), points, logits, truth, labels)
    assert cost[ours[0], ours[1]].sum() == pytest.approx(cost[rows, columns].sum(), rel=1e-6)
    assert len(set(ours[0].tolist())) == len(set(ours[1].tolist())) == min(proposals, cells)


@pytest.mark.parametrize("alike", ["logits", "points", "cells", "everything"])
@pytest.mark.parametrize(("proposals", "cells"), [(64, 9), (40, 40), (9, 64), (256, 2200)])
def test_ties_do_not_raise_the_cost(alike: str, proposals: int, cells: int) -> None:
    """Equal scores, points or cells: which pairs are chosen is open, what they cost is not."""
    points, logits, truth, labels = scene(3, proposals, cells)
    for name, values in (("logits", logits), ("points", points), ("cells", truth)):
        if alike in (name, "everything"):
            values[:] = values[0].clone()
    cost = cost64(points, logits, truth, labels)
    ours = assigned(MatchingConfig(), points, logits, truth, labels)
    assert len(set(ours[0].tolist())) == len(set(ours[1].tolist())) == min(proposals, cells)
    wanted = cost[linear_sum_assignment(cost)].sum()
    assert cost[ours[0], ours[1]].sum() == pytest.approx(wanted, rel=1e-6, abs=1e-4)


def test_an_image_without_cells_matches_nothing() -> None:
    points, logits, cells, labels = scene(0, proposals=16, cells=0)
    assert [len(indices) for indices in assigned(MatchingConfig(), points, logits, cells, labels)] == [0, 0]


def refining(refinements: int) -> core.DPAP2PNet:
    torch.manual_seed(0)
    detector = core.DPAP2PNet(
        core.DetectorConfig(
            arch="vit_tiny_patch16_224",
            classes=2,
            deformable=False,
            refinements=refinements,
            channels=16,
            hidden=16,
        )
    )
    return detector.eval()


def test_refinement_adds_proposals_and_no_positives() -> None:
    image_BCHW, cells_M2, labels_M = torch.rand(1, 3, 64, 96), torch.rand(9, 2) * 64, torch.arange(9) % 2
    proposals, positives = [], []
    for refinements in (0, 1, 2):
        with torch.inference_mode():
            found = refining(refinements)(image_BCHW)
        matched, answered = assigned(
            MatchingConfig(), found.points_BN2[0], found.logits_BNC[0], cells_M2, labels_M
        )
        assert sorted(answered.tolist()) == list(range(9)) and len(set(matched.tolist())) == 9
        proposals.append(found.points_BN2.shape[1])
        positives.append(len(matched))
    assert (proposals, positives) == ([24, 48, 72], [9, 9, 9])


def test_proposals_of_every_refinement_can_become_positives() -> None:
    """Cells lie where three of the sets put a point each, so these answer for them, and their stages learn."""
    detector = refining(2)
    found = detector(torch.rand(1, 3, 64, 96))
    chosen = torch.tensor([3, 24 + 10, 48 + 20])
    cells_M2, labels_M = found.points_BN2[0, chosen].detach(), torch.tensor([0, 1, 0])
    nearest = MatchingConfig(cost_class=0.0)
    matched, answered = assigned(nearest, found.points_BN2[0], found.logits_BNC[0], cells_M2, labels_M)
    assert torch.equal(matched[answered.argsort()], chosen)
    config, targets = criterion.CriterionConfig(matching=nearest), [Targets(cells_M2 + 1e-3, labels_M)]
    detection_loss(config, found, targets, loss_normalisers(config, targets, 72)).total.backward()
    for stage in detector.decoder.stages:
        assert stage.locate[-1].weight.grad.abs().sum() > 0
