"""F1 and average precision of point detections: pooled over images, macro-averaged over classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.spatial import KDTree

from finetune.datasets.description import ANY_CELL
from shared.model.cells import Cells
from shared.reporting.tables import table


@dataclass(frozen=True)
class Score:
    """Counts and rates of one class over a whole set of images."""

    true_positives: int
    predicted: int
    annotated: int
    average_precision: float
    """Not a number where no cell is annotated."""

    @property
    def precision(self) -> float:
        """Share of predicted cells that are right (0 without predictions)."""
        return self.true_positives / max(self.predicted, 1)

    @property
    def recall(self) -> float:
        """Share of annotated cells that were found (0 without annotations)."""
        return self.true_positives / max(self.annotated, 1)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.true_positives / max(self.predicted + self.annotated, 1)


class OfficialScore(Protocol):
    """Score of the data set's own challenge for the same predictions (`finetune.scoring.challenge`)."""

    def table(self) -> str:
        """Table for the terminal."""

    def as_dict(self) -> dict[str, float]:
        """Values under the challenge's names."""


@dataclass(frozen=True)
class Scores:
    """Scores per class, and of detection regardless of class."""

    classes: dict[str, Score]
    detection: Score
    duplicates: float = 0.0
    """Share of predictions whose cell is already reported by a more probable one."""
    official: OfficialScore | None = None

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the classes that are annotated at all."""
        return _mean([score.f1 for score in self.classes.values() if score.annotated])

    @property
    def macro_ap(self) -> float:
        """Mean average precision over the classes that are annotated at all."""
        return _mean([score.average_precision for score in self.classes.values() if score.annotated])

    def summary(self) -> str:
        """Format the scores that guide training, in one line."""
        return (
            f"F1 {self.macro_f1:.3f}, AP {self.macro_ap:.3f}; any cell F1 {self.detection.f1:.3f}, "
            f"{100 * self.duplicates:.1f} % duplicates"
        )

    def table(self) -> str:
        """One line per class, macro mean, and detection regardless of class, in percent; the official score."""
        rows = [_row(name, score) for name, score in self.classes.items()]
        means = (f"{100 * mean:.1f}" for mean in (self.macro_f1, self.macro_ap))
        rows += [("macro mean", "", "", "", "", *means), _row(ANY_CELL, self.detection)]
        text = table(("class", "cells", "found", "P", "R", "F1", "AP"), rows)
        return f"{text}\n\n{self.official.table()}" if self.official else text

    def as_dict(self) -> dict[str, float]:
        """Flat names and values for a log."""
        values = {"macro_f1": self.macro_f1, "macro_ap": self.macro_ap, "detection_f1": self.detection.f1}
        values |= {"detection_recall": self.detection.recall, "duplicates": self.duplicates}
        for name, score in self.classes.items():
            values |= {f"f1/{name}": score.f1, f"ap/{name}": score.average_precision}
        official = self.official.as_dict() if self.official else {}
        return values | {f"official/{name}": value for name, value in official.items()}


def _row(name: str, score: Score) -> tuple[str, ...]:
    rates = (score.precision, score.recall, score.f1, score.average_precision)
    return name, str(score.annotated), str(score.predicted), *(f"{100 * rate:.1f}" for rate in rates)


def score_cells(
    predicted: Sequence[Cells], annotated: Sequence[Cells], classes: Sequence[str], radius: float
) -> Scores:
    """Score predictions against annotations, image by image, within `radius` px (inclusive)."""
    found, cells = pool(predicted, annotated, radius)
    per_class = {name: _score(found, cells, label, radius) for label, name in enumerate(classes)}
    return Scores(per_class, _score(found, cells, None, radius), _duplicates(found, cells, radius))


def pool(predicted: Sequence[Cells], annotated: Sequence[Cells], radius: float) -> tuple[Cells, Cells]:
    """Pool all images into one: a third coordinate keeps their cells too far apart to match.

    One search tree is much faster than one per image, and matches within an image do not depend on others.
    """
    if len(predicted) != len(annotated):
        raise ValueError(f"predictions for {len(predicted)} images, annotations for {len(annotated)}")
    return _stacked(predicted, 4 * radius + 1), _stacked(annotated, 4 * radius + 1)


def match_greedily(predicted: Cells, annotated: Cells, radius: float) -> np.ndarray:
    """Mark right predictions (N,): by falling score, each claims the nearest cell that is still free.

    This is the rule of OCELOT's official score (Ryu et al. 2023), which the paper follows. Equal scores
    keep their order; of equally near cells the first is taken.
    """
    return _claim_free(len(predicted.labels_N), len(annotated.labels_N), *_near(predicted, annotated, radius))


def match_nearest(predicted: Cells, annotated: Cells, radius: float) -> np.ndarray:
    """Mark right predictions (N,) by the rule of average precision.

    Only the nearest cell counts, claimed or not (the VOC challenge's rule, which the authors' public code uses for
    AP): a prediction is right if that is within `radius` and no higher score claimed it.
    """
    return _claim_nearest(len(predicted.labels_N), *_near(predicted, annotated, radius))


def average_precision(right_N: np.ndarray, scores_N: np.ndarray, annotated: int) -> float:
    """Area under the monotone envelope of the precision-recall curve (all points, not eleven).

    Detections of equal score form one step of the curve, so that the order of rows does not matter.
    """
    if annotated == 0:
        return float("nan")
    if len(right_N) == 0:
        return 0.0
    order = np.argsort(-scores_N, kind="stable")
    last_of_step = np.append(np.diff(scores_N[order]) != 0, True)
    hits = np.cumsum(right_N[order])[last_of_step]
    precision = hits / (np.flatnonzero(last_of_step) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(hits / annotated, prepend=0.0) * envelope))


def _score(predicted: Cells, annotated: Cells, label: int | None, radius: float) -> Score:
    found, cells = predicted.of_class(label), annotated.of_class(label)
    count, annotations = len(found.labels_N), len(cells.labels_N)
    near = _near(found, cells, radius)
    return Score(
        true_positives=int(_claim_free(count, annotations, *near).sum()),
        predicted=count,
        annotated=annotations,
        average_precision=average_precision(_claim_nearest(count, *near), found.scores_N, annotations),
    )


def _duplicates(found: Cells, cells: Cells, radius: float) -> float:
    """Share of predictions within `radius` of a cell that get none because others took all of these."""
    count = len(found.labels_N)
    pairs = _near(found, cells, radius)
    near_N = np.zeros(count, bool)
    near_N[pairs[0]] = True
    right_N = _claim_free(count, len(cells.labels_N), *pairs)
    return float((near_N & ~right_N).sum()) / max(count, 1)


def _stacked(sets: Sequence[Cells], gap: float) -> Cells:
    """Cells of all images, each image in a plane of its own."""
    planes_N1 = np.repeat(np.arange(len(sets)) * gap, [len(each.labels_N) for each in sets])[:, None]
    points_N2 = np.concatenate([each.points_N2 for each in sets] or [np.empty((0, 2))])
    labels_N = np.concatenate([each.labels_N for each in sets] or [np.empty(0, int)])
    scores_N = np.concatenate([each.scores_N for each in sets] or [np.empty(0)])
    return Cells(np.hstack([points_N2, planes_N1]), labels_N, scores_N)


def _near(predicted: Cells, annotated: Cells, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a prediction and a cell within `radius`: by falling score, then by distance."""
    if not (len(predicted.labels_N) and len(annotated.labels_N)):
        return np.empty(0, int), np.empty(0, int)
    trees = (KDTree(predicted.points_N2), KDTree(annotated.points_N2))
    pairs = trees[0].sparse_distance_matrix(trees[1], _inclusive(radius), output_type="ndarray")
    rank_N = np.empty(len(predicted.labels_N), int)
    rank_N[np.argsort(-predicted.scores_N, kind="stable")] = np.arange(len(rank_N))
    order_M = np.lexsort((pairs["j"], pairs["v"], rank_N[pairs["i"]]))
    return pairs["i"][order_M], pairs["j"][order_M]


def _claim_free(predicted: int, annotated: int, index_M: np.ndarray, cell_M: np.ndarray) -> np.ndarray:
    """Mark predictions that claim their first cell that is still free; pairs as from `_near`."""
    right, taken = bytearray(predicted), bytearray(annotated)
    for index, cell in zip(index_M.tolist(), cell_M.tolist(), strict=True):
        if not right[index] and not taken[cell]:
            right[index] = taken[cell] = True
    return np.frombuffer(right, bool)


def _claim_nearest(predicted: int, index_M: np.ndarray, cell_M: np.ndarray) -> np.ndarray:
    """Mark predictions that are the first to claim their nearest cell; pairs as from `_near`."""
    right = np.zeros(predicted, bool)
    first_of_prediction = np.diff(index_M, prepend=-1) != 0
    claims, claimed = index_M[first_of_prediction], cell_M[first_of_prediction]
    _, first_claim = np.unique(claimed, return_index=True)
    right[claims[first_claim]] = True
    return right


def _inclusive(radius: float) -> float:
    """Radius with room for rounding, so that a distance of exactly `radius` counts."""
    return radius * (1 + 1e-9)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
