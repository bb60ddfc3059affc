"""Neighbours, against a loop over patches and against lightly."""

import math
from collections import defaultdict

import pytest
import torch
from lightly.utils.benchmarking.knn import knn_predict

from ssl_pretrain.inspection.nearest_neighbours import of_biomarkers, of_slides

SLIDES = [f"slide-{number % 5}" for number in range(60)]
BIOMARKERS = ["Ki-67" if number % 5 in (0, 2, 4) else "PD-L1" for number in range(60)]


def clouds(spread: float, labels: list[str], dimensions: int = 12) -> torch.Tensor:
    """Features around one random direction for each label."""
    generator = torch.Generator().manual_seed(0)
    middles = {label: torch.randn(dimensions, generator=generator) for label in sorted(set(labels))}
    noise_ND = torch.randn(len(labels), dimensions, generator=generator)
    return torch.stack([middles[label] for label in labels]) + spread * noise_ND


def slowly(features_ND: torch.Tensor, labels: list[str], slides: list[str]) -> float:
    """Balanced accuracy of 20 neighbours on other slides, each voting exp(cosine / 0.07)."""
    right, total = defaultdict(int), defaultdict(int)
    rows = features_ND.double().tolist()
    for own, label, slide in zip(rows, labels, slides, strict=True):
        others = []
        for other, other_label, other_slide in zip(rows, labels, slides, strict=True):
            if other_slide != slide:
                product = sum(a * b for a, b in zip(own, other, strict=True))
                others.append((product / math.hypot(*own) / math.hypot(*other), other_label))
        votes = defaultdict(float)
        for cosine, other_label in sorted(others)[-20:]:
            votes[other_label] += math.exp(cosine / 0.07)
        total[label] += 1
        right[label] += max(votes, key=votes.get) == label
    return sum(right[label] / total[label] for label in total) / len(total)


@pytest.mark.parametrize("spread", [0.3, 2.0, 5.0])
def test_equal_a_loop_over_patches(spread: float):
    features_ND = clouds(spread, BIOMARKERS)
    found = of_biomarkers(features_ND, BIOMARKERS, SLIDES)
    assert found.value == pytest.approx(slowly(features_ND, BIOMARKERS, SLIDES)) and found.chance == 1 / 2
    features_ND = clouds(spread, SLIDES)
    alone = [str(number) for number in range(60)]  # only the patch itself is left out
    found = of_slides(features_ND, SLIDES)
    assert found.value == pytest.approx(slowly(features_ND, SLIDES, alone)) and found.chance == 1 / 5


def test_equal_lightlys_for_each_slide():
    features_ND = torch.nn.functional.normalize(clouds(2.0, BIOMARKERS), dim=1)
    label_N = torch.tensor([int(biomarker == "PD-L1") for biomarker in BIOMARKERS])
    right_N = torch.zeros(60)
    for slide in set(SLIDES):
        own_N = torch.tensor([name == slide for name in SLIDES])
        bank, labels = features_ND[~own_N].T, label_N[~own_N]
        predicted = knn_predict(features_ND[own_N], bank, labels, 2, knn_k=20, knn_t=0.07)[:, 0]
        right_N[own_N] = (predicted == label_N[own_N]).float()
    expected = (right_N[label_N == 0].mean() + right_N[label_N == 1].mean()) / 2
    assert of_biomarkers(features_ND, BIOMARKERS, SLIDES).value == pytest.approx(float(expected))


def test_what_only_slides_show_does_not_help_with_biomarkers():
    """Every slide has a direction of its own, which biomarkers have nothing to do with."""
    features_ND = clouds(0.1, SLIDES, dimensions=64)
    assert of_slides(features_ND, SLIDES).value == 1
    assert of_slides(features_ND, SLIDES).skill == 1
    assert of_biomarkers(features_ND, BIOMARKERS, SLIDES).value < 0.8


def test_labels_that_cannot_be_judged_are_left_out():
    features_ND = clouds(0.1, BIOMARKERS)
    on_one_slide = ["PD-L1" if slide == "slide-3" else "Ki-67" for slide in SLIDES]
    assert of_biomarkers(features_ND, on_one_slide, SLIDES) is None
    assert of_biomarkers(features_ND, [""] * 60, SLIDES) is None
    assert of_biomarkers(features_ND, BIOMARKERS, [""] * 60) is None
    assert of_slides(features_ND, ["one"] * 60) is None
    assert of_slides(features_ND, ["", *["one"] * 58, "two"]) is None  # a single patch has nobody to be found by
    some = of_biomarkers(features_ND, ["", *BIOMARKERS[1:]], SLIDES)
    assert some.value == 1
