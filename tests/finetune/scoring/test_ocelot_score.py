"""OCELOT's official score: cases worked out by hand, and a slow version that follows its description."""

import numpy as np
import pytest

from finetune.scoring.ocelot_score import Rates, as_submitted, ocelot_score
from shared.model.cells import Cells
from tests.finetune.literal_rules import literal_greedy, literal_ocelot

BC, TC = 0, 1


def cells(*rows: tuple[float, float, int, float]) -> Cells:
    """Rows of x, y (pixel indices), label, score."""
    table = np.array(rows, float).reshape(-1, 4)
    return Cells(table[:, :2] + 0.5, table[:, 2].astype(int), table[:, 3])


def rates(predicted: Cells, annotated: Cells, label: int = BC) -> Rates:
    score = ocelot_score([predicted], [annotated])
    return (score.background, score.tumour)[label]


@pytest.mark.parametrize(
    ("predicted", "hits"),
    [
        ([(115, 100, BC, 1)], 1),  # 15 px: inclusive
        ([(109, 112, BC, 1)], 1),  # 9, 12: exactly 15 px
        ([(116, 100, BC, 1)], 0),
        ([(110, 112, BC, 1)], 0),  # 15.6 px
        ([(100, 100, TC, 1)], 0),  # the other class
        ([(100, 100, BC, 0.1), (101, 100, BC, 0.9)], 1),  # a cell is found once
    ],
)
def test_radius_and_classes(predicted: list, hits: int) -> None:
    found = rates(cells(*predicted), cells((100, 100, BC, 1)))
    assert found.recall == hits
    assert found.precision == round(hits / max(sum(label == BC for *_, label, _ in predicted), 1), 4)


def test_the_surer_prediction_chooses_first_and_the_next_takes_what_is_free() -> None:
    annotated = cells((100, 100, BC, 1), (110, 100, BC, 1))
    # Both are nearest to the first cell; the less sure one reaches the second only from 98, not from 90.
    assert rates(cells((98, 100, BC, 0.5), (100, 100, BC, 0.9)), annotated) == Rates(1, 1, 1)
    assert rates(cells((90, 100, BC, 0.5), (100, 100, BC, 0.9)), annotated) == Rates(0.5, 0.5, 0.5)
    assert rates(cells((90, 100, BC, 0.9), (100, 100, BC, 0.5)), annotated) == Rates(1, 1, 1)


def test_counts_are_pooled_and_rounded_before_the_mean() -> None:
    predicted = [cells((1, 1, BC, 1), (500, 500, TC, 1)), cells((1, 1, BC, 1), (900, 900, BC, 1))]
    annotated = [cells((1, 1, BC, 1)), cells((1, 1, BC, 1), (500, 500, TC, 1), (600, 600, TC, 1))]
    score = ocelot_score(predicted, annotated)
    # BC: 2 of 3 right, 2 of 2 found: P 0.6667, R 1, F1 0.8; TC: in the wrong image.
    assert score.as_dict() == {
        "Pre/BC": 0.6667,
        "Rec/BC": 1.0,
        "F1/BC": 0.8,
        "Pre/TC": 0.0,
        "Rec/TC": 0.0,
        "F1/TC": 0.0,
        "mF1": 0.4,
    }


def test_a_class_without_any_cell_counts_as_zero() -> None:
    score = ocelot_score([cells((1, 1, BC, 1))], [cells((1, 1, BC, 1))])
    assert (score.background.f1, score.tumour, score.mean_f1) == (1.0, Rates(0, 0, 0), 0.5)


def test_points_become_the_pixels_that_a_submission_has() -> None:
    given = Cells(np.array([(0.0, 0.99), (511.999, 1024.0), (-0.2, 3.5)]), np.zeros(3, int), np.ones(3))
    assert as_submitted(given).points_N2.tolist() == [[0, 0], [511, 1023], [0, 3]]
    # 15.9 px apart, but 15 px between their pixels.
    found = Cells(np.array([(115.95, 100.5)]), np.zeros(1, int), np.ones(1))
    assert rates(found, cells((100, 100, BC, 1))).f1 == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_literal_version(seed: int) -> None:
    random = np.random.default_rng(seed)
    predicted, annotated = (
        [
            Cells(
                random.integers(0, 300, (count, 2)) + 0.5,
                random.integers(0, 2, count),
                np.round(random.uniform(0, 1, count), 2),  # some tied
            )
            for count in counts
        ]
        for counts in ((150, 0, 90, 1), (120, 30, 100, 0))
    )
    assert ocelot_score(predicted, annotated).as_dict() == literal_ocelot(predicted, annotated)


def test_the_literal_versions_agree() -> None:
    random = np.random.default_rng(9)
    predicted, annotated = (
        Cells(random.integers(0, 150, (count, 2)) * 1.0, np.zeros(count, int), random.uniform(0, 1, count))
        for count in (80, 70)
    )
    hits = int(literal_greedy(predicted, annotated, 15).sum())
    assert literal_ocelot([predicted], [annotated])["Rec/BC"] == round(hits / 70, 4)
