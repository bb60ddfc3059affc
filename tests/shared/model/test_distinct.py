"""Distinct proposals against the greedy rule written as a loop."""

import numpy as np
import pytest
import torch

from shared.model.decoders import Detections
from shared.model.distinct import distinct, distinct_proposals, without_duplicates
from shared.model.dpa_p2pnet import DetectorConfig, DPAP2PNet


def greedy(points: np.ndarray, probability: np.ndarray, radius: float) -> np.ndarray:
    kept: list[int] = []
    for index in np.argsort(-probability, kind="stable"):
        if all(np.hypot(*(points[index] - points[other])) > radius for other in kept):
            kept.append(index)
    return np.isin(np.arange(len(points)), kept)


@pytest.mark.parametrize("radius", [0.5, 4.0, 30.0])
@pytest.mark.parametrize("count", [1, 40, 700])
def test_it_is_the_greedy_rule(count: int, radius: float) -> None:
    random = np.random.default_rng(count)
    points = random.uniform(0, 100, (count, 2)).round(1)
    probability = random.integers(0, 20, count) / 20  # with ties
    np.testing.assert_array_equal(distinct(points, probability, radius), greedy(points, probability, radius))


def test_a_chain_alternates() -> None:
    points = np.stack([np.arange(9.0), np.zeros(9)], 1)
    kept = distinct(points, np.linspace(1, 0, 9), 1.0)
    np.testing.assert_array_equal(kept, np.arange(9) % 2 == 0)


def test_nothing_is_set_aside_without_points_or_radius() -> None:
    assert distinct(np.empty((0, 2)), np.empty(0), 4.0).shape == (0,)
    found = detections(torch.zeros(2, 5, 2))
    assert distinct_proposals(found, 0.0).all()


def test_of_a_batch_the_most_probable_cell_of_any_class_counts() -> None:
    points = torch.tensor([[[0.0, 0.0], [3.0, 0.0], [9.0, 0.0]], [[0.0, 0.0], [50.0, 0.0], [51.0, 0.0]]])
    found = detections(points)
    found.logits_BNC[0, 1, 1] = 4.0  # the second point is probably a cell of class 1
    found.logits_BNC[1, 2, 2] = 4.0  # the third is probably background
    assert distinct_proposals(found, 3.0).tolist() == [[False, True, True], [True, True, False]]


def test_without_duplicates_those_set_aside_are_background() -> None:
    points = torch.rand(2, 200, 2) * 60
    found = detections(points)
    found.logits_BNC.normal_()
    kept = distinct_proposals(found, 4.0)
    result = without_duplicates(found, 4.0)
    assert torch.equal(result.logits_BNC[kept], found.logits_BNC[kept])
    assert (result.logits_BNC[~kept].softmax(-1) == torch.tensor([0.0, 0.0, 1.0])).all()
    assert found.logits_BNC.isfinite().all()


def test_a_detector_reports_distinct_points_once_it_predicts() -> None:
    torch.manual_seed(0)
    detector = DPAP2PNet(DetectorConfig(arch="regnetx_002", classes=2, interval=4, distinct=6.0))
    image = torch.rand(1, 3, 64, 64)
    assert detector(image).logits_BNC.isfinite().all()  # in training all proposals keep their logits
    found = detector.eval()(image)
    points = found.points_BN2[0, found.logits_BNC[0, :, 0].isfinite()]
    gaps = torch.cdist(points, points) + 99 * torch.eye(len(points))
    assert len(points) < 256 and gaps.min() > 6.0


def detections(points: torch.Tensor) -> Detections:
    return Detections(points[0], points, points, torch.zeros(*points.shape[:2], 3))
