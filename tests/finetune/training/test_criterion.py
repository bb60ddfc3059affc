"""The loss against a re-computation in numpy from its definition."""

import numpy as np
import pytest
import torch

from finetune.training.criterion import CriterionConfig, Targets, detection_loss, loss_normalisers
from shared.model.distinct import distinct_proposals
from shared.model.dpa_p2pnet import Detections
from tests.finetune.literal_rules import assigned


def detections(seed: int, batch: int = 2, proposals: int = 64, classes: int = 2) -> Detections:
    random = torch.Generator().manual_seed(seed)
    grid = torch.rand(proposals, 2, generator=random) * 128
    points = grid + torch.randn(batch, proposals, 2, generator=random)
    logits = torch.randn(batch, proposals, classes + 1, generator=random)
    return Detections(grid, grid.expand(batch, -1, -1), points.requires_grad_(), logits.requires_grad_())


def targets(seed: int, counts: tuple[int, ...]) -> list[Targets]:
    random = torch.Generator().manual_seed(seed)
    return [Targets(torch.rand(n, 2, generator=random) * 128, torch.arange(n) % 2) for n in counts]


@pytest.mark.parametrize("counts", [(5, 9), (0, 7), (0, 0)])
def test_loss_equals_its_definition(counts: tuple[int, ...]) -> None:
    config, found, truth = CriterionConfig(), detections(1), targets(2, counts)
    entropy, weight, squares = 0.0, 0.0, 0.0
    for index, (cells, labels) in enumerate(truth):
        logits = found.logits_BNC[index].detach().double().numpy()
        log_probability = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        proposals, matched = assigned(
            config.matching, found.points_BN2[index], found.logits_BNC[index], cells, labels
        )
        wanted = np.full(len(logits), 2)
        wanted[proposals.numpy()] = labels[matched].numpy()
        weights = np.where(wanted == 2, config.background_weight, 1.0)
        entropy -= (weights * log_probability[np.arange(len(wanted)), wanted]).sum()
        weight += weights.sum()
        gaps = (
            found.points_BN2[index].detach().double().numpy()[proposals.numpy()] - cells.numpy()[matched.numpy()]
        )
        squares += (gaps**2).sum()
    losses = detection_loss(config, found, truth, loss_normalisers(config, truth, found.points_BN2.shape[1]))
    assert losses.classification.item() == pytest.approx(entropy / weight, rel=1e-5)
    assert losses.regression.item() == pytest.approx(2e-3 * squares / max(sum(counts), 1), rel=1e-5, abs=1e-9)
    assert losses.total.item() == pytest.approx(losses.classification.item() + losses.regression.item(), rel=1e-6)


def test_both_terms_have_gradients() -> None:
    """In P2PNet's published code a misspelt key keeps the regression loss out of the sum."""
    found, truth = detections(3), targets(4, (5, 9))
    config = CriterionConfig()
    detection_loss(config, found, truth, loss_normalisers(config, truth, 64)).total.backward()
    assert (found.points_BN2.grad.abs().sum(-1) > 0).sum() == 14
    assert found.logits_BNC.grad.abs().sum() > 0


@pytest.mark.parametrize("counts", [(7, 0), (0, 7), (1, 0), (0, 0)])
def test_two_ranks_have_the_loss_of_one_also_where_one_has_no_cells(counts: tuple[int, ...]) -> None:
    config, found, truth = CriterionConfig(), detections(5), targets(6, counts)
    whole = detection_loss(config, found, truth, loss_normalisers(config, truth, 64))
    sums_2 = torch.stack([loss_normalisers(config, truth[rank : rank + 1], 64) for rank in (0, 1)]).mean(0)
    parts = [Detections(found.proposals_N2, *(each[rank : rank + 1] for each in found[1:])) for rank in (0, 1)]
    losses = [detection_loss(config, parts[rank], truth[rank : rank + 1], sums_2) for rank in (0, 1)]
    for name in ("total", "classification", "regression"):
        mean = sum(getattr(each, name) for each in losses) / 2
        torch.testing.assert_close(mean, getattr(whole, name))


def test_proposals_set_aside_have_no_part_in_the_loss() -> None:
    config, truth = CriterionConfig(), targets(2, (5, 9))
    found = detections(1, proposals=128)
    radius = 6.0
    kept = distinct_proposals(found, radius)
    assert (~kept).sum() > 20 and kept.sum(1).min() > 13
    sums = loss_normalisers(config, truth, 128)
    whole = detection_loss(config, found, truth, sums, radius)
    whole.total.backward()
    assert not found.logits_BNC.grad[~kept].any()
    assert (found.logits_BNC.grad[kept].abs().sum(-1) > 0).all()
    classification = regression = 0.0
    for index in (0, 1):  # the loss of each image without them
        points, logits = found.points_BN2[index, kept[index]][None], found.logits_BNC[index, kept[index]][None]
        alone = detection_loss(
            config, Detections(points[0], points, points, logits), truth[index : index + 1], sums
        )
        classification, regression = classification + alone.classification, regression + alone.regression
    assert whole.classification.item() == pytest.approx(classification.item(), rel=1e-5)
    assert whole.regression.item() == pytest.approx(regression.item(), rel=1e-5)


def test_in_crowded_images_nothing_is_set_aside() -> None:
    config, truth = CriterionConfig(), targets(2, (60, 60))
    found = detections(1)
    sums = loss_normalisers(config, truth, 64)
    plain, crowded = (detection_loss(config, found, truth, sums, radius) for radius in (0.0, 30.0))
    assert plain.total.item() == crowded.total.item()
