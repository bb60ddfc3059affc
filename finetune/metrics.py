"""F1 and average precision of point detections: pooled over images, macro-averaged over classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree


@dataclass(frozen=True)
class CellSet:
    """Cells of one image as arrays: predicted ones, or annotated ones (whose scores do not matter)."""

    points_N2: np.ndarray
    labels_N: np.ndarray
    scores_N: np.ndarray

    def of_class(self, label: int | None) -> "CellSet":
        """The cells of one class, or all of them for None."""
        if label is None:
            return self
        chosen = self.labels_N == label
        return CellSet(self.points_N2[chosen], self.labels_N[chosen], self.scores_N[chosen])


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


@dataclass(frozen=True)
class Scores:
    """Scores per class, and of detection regardless of class."""

    classes: dict[str, Score]
    detection: Score

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the classes that are annotated at all."""
        return _mean([score.f1 for score in self.classes.values() if score.annotated])

    @property
    def macro_ap(self) -> float:
        """Mean average precision over the classes that are annotated at all."""
        return _mean([score.average_precision for score in self.classes.values() if score.annotated])

    def table(self) -> str:
        """One line per class, the macro mean and the class-agnostic detection, in percent."""
        lines = [f"{'class':<20}{'cells':>8}{'found':>8}{'P':>8}{'R':>8}{'F1':>8}{'AP':>8}"]
        rows = {**self.classes, "any cell": self.detection}
        for name, score in rows.items():
            rates = (score.precision, score.recall, score.f1, score.average_precision)
            percents = "".join(f"{100 * rate:>8.1f}" for rate in rates)
            lines.append(f"{name:<20}{score.annotated:>8}{score.predicted:>8}{percents}")
        lines.insert(-1, f"{'macro mean':<20}{'':>32}{100 * self.macro_f1:>8.1f}{100 * self.macro_ap:>8.1f}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, float]:
        """Flat names and values for a log."""
        values = {"macro_f1": self.macro_f1, "macro_ap": self.macro_ap, "detection_f1": self.detection.f1}
        for name, score in self.classes.items():
            values |= {f"f1/{name}": score.f1, f"ap/{name}": score.average_precision}
        return values


def score_cells(
    predicted: Sequence[CellSet], annotated: Sequence[CellSet], classes: Sequence[str], radius: float
) -> Scores:
    """Score predictions against annotations, image by image, within `radius` px (inclusive)."""
    per_class = {name: _score(predicted, annotated, label, radius) for label, name in enumerate(classes)}
    return Scores(per_class, _score(predicted, annotated, None, radius))


def match_greedily(predicted: CellSet, annotated: CellSet, radius: float) -> np.ndarray:
    """For every prediction whether it is right: by falling score, each takes the nearest cell still free.

    This is the rule of OCELOT's official score (Ryu et al. 2023), which the paper follows. Equal scores
    keep their order.
    """
    right = np.zeros(len(predicted.points_N2), bool)
    if len(annotated.points_N2) == 0 or len(right) == 0:
        return right
    near = KDTree(annotated.points_N2).query_ball_point(predicted.points_N2, _inclusive(radius))
    free = np.ones(len(annotated.points_N2), bool)
    for index in np.argsort(-predicted.scores_N, kind="stable"):
        candidates = [cell for cell in near[index] if free[cell]]
        if candidates:
            gaps = np.linalg.norm(annotated.points_N2[candidates] - predicted.points_N2[index], axis=1)
            free[candidates[int(np.argmin(gaps))]] = False
            right[index] = True
    return right


def match_nearest(predicted: CellSet, annotated: CellSet, radius: float) -> np.ndarray:
    """For every prediction whether it is right under the rule of average precision.

    Each looks only at its nearest cell, taken or not (the detection challenge's VOC rule, which the
    authors' public code uses for AP): right if that is within `radius` and no higher score claimed it.
    """
    right = np.zeros(len(predicted.points_N2), bool)
    if len(annotated.points_N2) == 0 or len(right) == 0:
        return right
    gaps, nearest = map(np.asarray, KDTree(annotated.points_N2).query(predicted.points_N2))
    order = np.argsort(-predicted.scores_N, kind="stable")
    claims = order[gaps[order] <= _inclusive(radius)]
    _, first = np.unique(nearest[claims], return_index=True)
    right[claims[first]] = True
    return right


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


def _score(predicted: Sequence[CellSet], annotated: Sequence[CellSet], label: int | None, radius: float) -> Score:
    pairs = [(p.of_class(label), a.of_class(label)) for p, a in zip(predicted, annotated, strict=True)]
    cells = sum(len(truth.points_N2) for _, truth in pairs)
    right_N = np.concatenate([match_nearest(*pair, radius) for pair in pairs])
    scores_N = np.concatenate([guess.scores_N for guess, _ in pairs])
    return Score(
        true_positives=int(sum(match_greedily(*pair, radius).sum() for pair in pairs)),
        predicted=len(scores_N),
        annotated=cells,
        average_precision=average_precision(right_N, scores_N, cells),
    )


def _inclusive(radius: float) -> float:
    """The radius with room for rounding, so that a distance of exactly `radius` counts."""
    return radius * (1 + 1e-9)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
