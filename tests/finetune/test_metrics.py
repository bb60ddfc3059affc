"""Scores against literal re-statements of their rules, and against numbers of published predictions."""

import csv
from pathlib import Path

import numpy as np
import pytest

from finetune.metrics import CellSet, average_precision, match_greedily, match_nearest, score_cells


def cell_set(points, labels=None, scores=None) -> CellSet:
    points = np.asarray(points, float).reshape(-1, 2)
    count = len(points)
    labels = np.zeros(count, int) if labels is None else np.asarray(labels)
    return CellSet(points, labels, np.ones(count) if scores is None else np.asarray(scores, float))


def random_cells(random: np.random.Generator, count: int, side: float = 100, classes: int = 3) -> CellSet:
    return CellSet(
        random.uniform(0, side, (count, 2)), random.integers(0, classes, count), random.uniform(0, 1, count)
    )


def literal_greedy(predicted: CellSet, annotated: CellSet, radius: float) -> np.ndarray:
    """The rule word by word: highest score first, nearest annotated cell not yet taken, within the radius."""
    right = np.zeros(len(predicted.points_N2), bool)
    taken = set()
    for index in sorted(range(len(right)), key=lambda i: -predicted.scores_N[i]):
        best, best_gap = None, np.inf
        for cell, point in enumerate(annotated.points_N2):
            gap = float(np.hypot(*(point - predicted.points_N2[index])))
            if cell not in taken and gap <= radius and gap < best_gap:
                best, best_gap = cell, gap
        if best is not None:
            taken.add(best)
            right[index] = True
    return right


def literal_nearest(predicted: CellSet, annotated: CellSet, radius: float) -> np.ndarray:
    """Highest score first, each looks at its nearest cell only and fails if that is taken."""
    right = np.zeros(len(predicted.points_N2), bool)
    taken = set()
    for index in sorted(range(len(right)), key=lambda i: -predicted.scores_N[i]):
        gaps = [float(np.hypot(*(point - predicted.points_N2[index]))) for point in annotated.points_N2]
        if gaps and min(gaps) <= radius and int(np.argmin(gaps)) not in taken:
            taken.add(int(np.argmin(gaps)))
            right[index] = True
    return right


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("predictions", "cells"), [(300, 250), (40, 0), (0, 40), (5, 300)])
def test_matches_equal_the_literal_rules(seed: int, predictions: int, cells: int) -> None:
    random = np.random.default_rng(seed)
    predicted, annotated = random_cells(random, predictions), random_cells(random, cells)
    np.testing.assert_array_equal(match_greedily(predicted, annotated, 6), literal_greedy(predicted, annotated, 6))
    np.testing.assert_array_equal(match_nearest(predicted, annotated, 6), literal_nearest(predicted, annotated, 6))


def test_the_radius_is_inclusive() -> None:
    assert match_greedily(cell_set([(0, 0)]), cell_set([(3.6, 4.8)]), 6.0).all()
    assert not match_greedily(cell_set([(0, 0)]), cell_set([(6.001, 0)]), 6.0).any()


def test_greedy_takes_the_next_free_cell_where_average_precision_does_not() -> None:
    predicted = cell_set([(0, 0), (0.1, 0)], scores=[0.9, 0.8])
    annotated = cell_set([(0, 0), (5, 0)])
    assert match_greedily(predicted, annotated, 6).tolist() == [True, True]
    assert match_nearest(predicted, annotated, 6).tolist() == [True, False]


def test_average_precision_is_the_area_under_the_envelope() -> None:
    # Hits at ranks 1, 3, 4 of 5, with 4 cells: precision 1, 2/3, 3/4 at recall 1/4, 2/4, 3/4; the
    # envelope lifts 2/3 to 3/4.
    right, scores = np.array([1, 0, 1, 1, 0], bool), np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    assert average_precision(right, scores, 4) == pytest.approx((1 + 0.75 + 0.75) / 4)


def test_equal_scores_are_one_step_whatever_their_order() -> None:
    right = np.array([1, 0, 1, 0, 1, 0], bool)
    scores = np.array([0.9, 0.5, 0.5, 0.5, 0.5, 0.1])
    values = [average_precision(right[order], scores[order], 4) for order in (np.arange(6), np.arange(5, -1, -1))]
    assert values[0] == values[1] == pytest.approx(0.25 * 1 + 0.5 * 3 / 5)


def test_pooling_differs_from_averaging_over_images() -> None:
    predicted = [cell_set([(0, 0)]), cell_set([(0, 0), (50, 50), (80, 80)])]
    annotated = [cell_set([(0, 0)]), cell_set([(90, 10)])]
    scores = score_cells(predicted, annotated, ["cell"], 6)
    assert scores.macro_f1 == pytest.approx(2 * 1 / (4 + 2))


def test_a_class_that_is_not_annotated_is_left_out_of_the_mean() -> None:
    predicted = [cell_set([(0, 0), (50, 50)], labels=[0, 1])]
    scores = score_cells(predicted, [cell_set([(0, 0)])], ["a", "b"], 6)
    assert scores.macro_f1 == 1.0
    assert scores.macro_ap == 1.0
    assert scores.detection.f1 == pytest.approx(2 / 3)


def test_the_paper_s_number_for_published_predictions(real_data: Path) -> None:
    """MCSpatNet's predictions on CoNSeP: the paper's Table 3 prints F1 68.2 for them."""
    folder = real_data / "CoNSeP" / "test"
    names = sorted(path.name for path in (folder / "points").glob("*.csv"))
    annotated = [read(folder / "points" / name) for name in names]
    predicted = [read(folder / "mcspatnet_predictions" / name) for name in names]
    scores = score_cells(predicted, annotated, ["inflammatory", "epithelial", "stromal"], 6)
    f1 = [score.f1 for score in scores.classes.values()]
    ap = [score.average_precision for score in scores.classes.values()]
    assert f1 == pytest.approx([0.7236, 0.6951, 0.6287], abs=5e-4)
    assert ap == pytest.approx([0.5674, 0.5372, 0.4237], abs=5e-4)
    assert 0.682 <= round(scores.macro_f1, 3) <= 0.683
    backwards = [CellSet(*(a[::-1] for a in (c.points_N2, c.labels_N, c.scores_N))) for c in predicted]
    again = score_cells(backwards, annotated, ["inflammatory", "epithelial", "stromal"], 6)
    assert again.macro_ap == pytest.approx(scores.macro_ap, abs=1e-9)


def read(path: Path) -> CellSet:
    with path.open() as file:
        rows = list(csv.DictReader(file))
    points = [(float(row["x"]), float(row["y"])) for row in rows]
    labels = [int(row["class"]) - 1 for row in rows]
    return cell_set(points, labels, [float(row.get("score", 1)) for row in rows])
