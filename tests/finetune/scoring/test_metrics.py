"""Scores against literal re-statements of their rules, and against numbers of published predictions."""

import csv
import time
from pathlib import Path

import numpy as np
import pytest

from finetune.scoring.metrics import average_precision, match_greedily, match_nearest, score_cells
from shared.model.cells import Cells
from tests.finetune.literal_rules import hits_by_distances, literal_greedy, literal_nearest


def cell_set(points, labels=None, scores=None) -> Cells:
    points = np.asarray(points, float).reshape(-1, 2)
    count = len(points)
    labels = np.zeros(count, int) if labels is None else np.asarray(labels)
    return Cells(points, labels, np.ones(count) if scores is None else np.asarray(scores, float))


def random_cells(random: np.random.Generator, count: int, side: float = 100, classes: int = 3) -> Cells:
    return Cells(
        random.uniform(0, side, (count, 2)), random.integers(0, classes, count), random.uniform(0, 1, count)
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("predictions", "cells"), [(300, 250), (40, 0), (0, 40), (5, 300)])
def test_matches_equal_the_literal_rules(seed: int, predictions: int, cells: int) -> None:
    random = np.random.default_rng(seed)
    predicted, annotated = random_cells(random, predictions), random_cells(random, cells)
    np.testing.assert_array_equal(match_greedily(predicted, annotated, 6), literal_greedy(predicted, annotated, 6))
    np.testing.assert_array_equal(match_nearest(predicted, annotated, 6), literal_nearest(predicted, annotated, 6))


@pytest.mark.parametrize("seed", range(3))
def test_ties_in_distance_and_score_follow_the_order_of_rows(seed: int) -> None:
    random = np.random.default_rng(seed)
    sets = [random_cells(random, count, side=20) for count in (80, 60)]
    predicted, annotated = (
        Cells(np.floor(c.points_N2), c.labels_N, np.round(c.scores_N, 1)) for c in sets
    )  # whole pixels and ten scores: nearly everything is tied
    np.testing.assert_array_equal(match_greedily(predicted, annotated, 3), literal_greedy(predicted, annotated, 3))
    np.testing.assert_array_equal(match_nearest(predicted, annotated, 3), literal_nearest(predicted, annotated, 3))


def test_images_do_not_mix() -> None:
    """Scores of many images, pooled in one search, are the sums over single images."""
    random = np.random.default_rng(0)
    predicted = [random_cells(random, count) for count in (50, 0, 80, 7, 0)]
    annotated = [random_cells(random, count) for count in (60, 9, 0, 70, 0)]
    scores = score_cells(predicted, annotated, ["a", "b", "c"], 6)
    for label, score in enumerate(scores.classes.values()):
        pairs = [(p.of_class(label), a.of_class(label)) for p, a in zip(predicted, annotated, strict=True)]
        assert score.true_positives == sum(int(literal_greedy(*pair, 6).sum()) for pair in pairs) > 0
        right = np.concatenate([literal_nearest(*pair, 6) for pair in pairs])
        points = np.concatenate([found.scores_N for found, _ in pairs])
        assert score.average_precision == average_precision(right, points, score.annotated)
    detected = [literal_greedy(p, a, 6).sum() for p, a in zip(predicted, annotated, strict=True)]
    assert (scores.detection.true_positives, scores.detection.predicted) == (sum(detected), 137)


def test_a_slide_of_cells_takes_seconds() -> None:
    random = np.random.default_rng(0)
    annotated = random_cells(random, 116_000, side=26_000)
    moved = annotated.points_N2 + random.normal(0, 5, (116_000, 2))
    predicted = Cells(moved, annotated.labels_N, random.uniform(0, 1, 116_000))
    start = time.monotonic()
    scores = score_cells([predicted], [annotated], ["a", "b", "c"], 15)
    assert time.monotonic() - start < 20  # one second on a quiet machine, minutes by comparing all with all
    assert scores.macro_f1 > 0.9
    surest = np.argsort(-predicted.scores_N)[:200]
    some = Cells(moved[surest], predicted.labels_N[surest], predicted.scores_N[surest])
    right = match_greedily(predicted, annotated, 15)
    assert hits_by_distances(some, annotated, 15) == right[surest].sum()


def test_nothing_predicted_and_nothing_annotated() -> None:
    empty = cell_set([])
    for predicted, annotated in (([], []), ([empty], [empty]), ([cell_set([(1, 1)])], [empty])):
        scores = score_cells(predicted, annotated, ["cell"], 6)
        assert (scores.macro_f1, scores.detection.f1, scores.detection.precision) == (0, 0, 0)
    assert score_cells([empty], [cell_set([(1, 1)])], ["cell"], 6).macro_ap == 0
    with pytest.raises(ValueError, match="predictions for 1 images, annotations for 2"):
        score_cells([empty], [empty, empty], ["cell"], 6)


def test_the_table_has_every_rate_in_percent() -> None:
    predicted = [cell_set([(0, 0), (50, 50), (80, 80)], labels=[0, 0, 1], scores=[0.9, 0.8, 0.7])]
    annotated = [cell_set([(0, 0), (20, 20), (80, 80)], labels=[0, 0, 1])]
    rows = [line.split() for line in score_cells(predicted, annotated, ["a", "b"], 6).table().splitlines()]
    assert rows[1] == ["a", "2", "2", "50.0", "50.0", "50.0", "50.0"]
    assert rows[2] == ["b", "1", "1", "100.0", "100.0", "100.0", "100.0"]
    assert rows[3] == ["macro", "mean", "75.0", "75.0"]
    assert rows[4] == ["any", "cell", "3", "3", "66.7", "66.7", "66.7", "55.6"]


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
    assert scores.macro_ap == pytest.approx(0.5094, abs=5e-4)
    for seed in range(5):
        random = np.random.default_rng(seed)
        rows = [shuffled(cells, random) for cells in predicted]
        again = score_cells(rows, annotated, ["inflammatory", "epithelial", "stromal"], 6)
        assert 0.682 <= round(again.macro_f1, 3) <= 0.683
        assert again.macro_ap == pytest.approx(scores.macro_ap, abs=1e-9)


def shuffled(cells: Cells, random: np.random.Generator) -> Cells:
    order = random.permutation(len(cells.labels_N))
    return Cells(cells.points_N2[order], cells.labels_N[order], cells.scores_N[order])


def read(path: Path) -> Cells:
    with path.open() as file:
        rows = list(csv.DictReader(file))
    points = [(float(row["x"]), float(row["y"])) for row in rows]
    labels = [int(row["class"]) - 1 for row in rows]
    return cell_set(points, labels, [float(row.get("score", 1)) for row in rows])
