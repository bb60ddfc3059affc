"""Operating points against scores of cells that are cut off one threshold after the other."""

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.scoring.metrics import Scores, score_cells
from finetune.scoring.operating_point import (
    FLOOR,
    THRESHOLDS,
    Curve,
    as_metadata,
    best_threshold,
    curves,
    resolve_threshold,
)
from finetune.scoring.precision_recall import COLOURS, MARGIN, SIDE, precision_recall_picture
from shared.errors import UserError
from shared.model.cells import Cells
from shared.model.detector_file import LoadedDetector

CLASSES = ("a", "b")


def scattered(random: np.random.Generator, count: int) -> Cells:
    points_N2, labels_N = random.uniform(0, 100, (count, 2)), random.integers(0, 2, count)
    return Cells(points_N2, labels_N, random.uniform(FLOOR, 1, count).astype(np.float32))


def cut(cells: Cells, threshold: float) -> Cells:
    return cells.chosen(cells.scores_N >= np.float32(threshold))


def test_every_point_of_a_curve_is_a_score() -> None:
    random = np.random.default_rng(0)
    predicted, annotated = ([scattered(random, 200) for _ in range(3)] for _ in range(2))
    found = curves(predicted, annotated, CLASSES, 5.0)
    macro = []
    for index, threshold in enumerate(THRESHOLDS):
        scores = score_cells([cut(each, threshold) for each in predicted], annotated, CLASSES, 5.0)
        for curve, score in zip(found, (*scores.classes.values(), scores.detection), strict=True):
            assert curve.precision_T[index] == pytest.approx(score.precision)
            assert curve.recall_T[index] == pytest.approx(score.recall)
            assert curve.f1_T[index] == pytest.approx(score.f1)
        macro.append(scores.macro_f1)
    best = best_threshold(found[:-1])
    assert best is not None
    assert best[1] == pytest.approx(max(macro))
    assert macro[THRESHOLDS.tolist().index(best[0])] == pytest.approx(max(macro))


def test_without_annotated_cells_there_is_no_best_threshold() -> None:
    random, nothing = np.random.default_rng(0), Cells(np.zeros((0, 2)), np.zeros(0, int), np.zeros(0))
    assert as_metadata(curves([scattered(random, 20)], [nothing], CLASSES, 5.0)[:-1]) == {}
    assert as_metadata(curves([nothing], [scattered(random, 20)], CLASSES, 5.0)[:-1]) != {}


def test_the_option_names_a_threshold() -> None:
    def detector(**metadata: object) -> LoadedDetector:
        return LoadedDetector(
            Path("d.pth"), torch.nn.Identity(), CLASSES, 0.5, torch.device("cpu"), None, metadata
        )

    stored = detector(operating_point={"threshold": 0.4})
    assert resolve_threshold("paper", stored) is None
    assert resolve_threshold("best", stored) == 0.4
    assert resolve_threshold("0.3", stored) == 0.3
    for wrong in ("0", "1", "-0.5", "nan", "most"):
        with pytest.raises(UserError, match=f"--threshold {wrong}"):
            resolve_threshold(wrong, stored)
    for odd in ({}, {"operating_point": 3}, {"operating_point": {"threshold": "0.4"}}):
        with pytest.raises(UserError, match=r"d\.pth .*--threshold"):
            resolve_threshold("best", detector(**odd))


def test_the_picture_has_the_point_on_the_curve() -> None:
    predicted = Cells(np.array([(1.0, 1), (9, 9)]), np.zeros(2, int), np.array([0.9, 0.5], np.float32))
    annotated = Cells(np.array([(1.0, 1), (5, 5)]), np.zeros(2, int), np.ones(2))
    scores: Scores = score_cells([predicted], [annotated], ("a",), 1.0)  # precision and recall of one half
    curve: list[Curve] = curves([predicted], [annotated], ("a",), 1.0)
    picture = precision_recall_picture(curve, scores, "title")
    middle = (MARGIN + SIDE // 2, MARGIN + SIDE // 2)
    assert picture.getpixel(middle) == (16, 16, 16)  # of detection, drawn last and here the same
    empty = precision_recall_picture([curve[0], Curve.of_scores(np.zeros(0, bool), np.zeros(0), 0)], scores, "")
    assert empty.getpixel(middle) == tuple(bytes.fromhex(COLOURS[0][1:]))
