"""Operating point of a detector: precision and recall over score thresholds, and the best one on validation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.scoring.metrics import match_greedily, pool
from shared.errors import UserError
from shared.model.cells import Cells
from shared.model.detector_file import LoadedDetector, stored_threshold

THRESHOLDS = np.arange(5, 96) / 100
# Least score that predictions for a curve must reach.
FLOOR = float(THRESHOLDS[0])


@dataclass(frozen=True)
class Curve:
    """Precision, recall and F1 at each of `THRESHOLDS`."""

    precision_T: np.ndarray
    recall_T: np.ndarray
    f1_T: np.ndarray
    annotated: int

    @classmethod
    def of_scores(cls, right_N: np.ndarray, scores_N: np.ndarray, annotated: int) -> "Curve":
        """Curve from the score of every prediction and whether it is right."""
        kept_TN = scores_N >= THRESHOLDS[:, None].astype(np.float32)
        found_T, hits_T = kept_TN.sum(axis=1), (kept_TN & right_N).sum(axis=1)
        f1_T = 2 * hits_T / np.maximum(found_T + annotated, 1)
        return cls(hits_T / np.maximum(found_T, 1), hits_T / max(annotated, 1), f1_T, annotated)


def curves(
    predicted: Sequence[Cells], annotated: Sequence[Cells], classes: Sequence[str], radius: float
) -> list[Curve]:
    """Curve of every class, and last of detection regardless of class.

    Cells are claimed by falling score, so a threshold does not change which of the predictions above it are right.

    Args:
        predicted: Cells of every image with scores down to `FLOOR`.
        annotated: Annotated cells of every image.
        classes: Names.
        radius: Largest distance of a match, px (inclusive).
    """
    found, cells = pool(predicted, annotated, radius)
    made = []
    for label in (*range(len(classes)), None):
        one, true = found.of_class(label), cells.of_class(label)
        made.append(Curve.of_scores(match_greedily(one, true, radius), one.scores_N, len(true.labels_N)))
    return made


def best_threshold(of_classes: Sequence[Curve]) -> tuple[float, float] | None:
    """Threshold of the highest macro F1, the middle one of several, and that F1; None without annotated cells."""
    curves_of_annotated = [curve.f1_T for curve in of_classes if curve.annotated]
    if not curves_of_annotated:
        return None
    macro_T = np.mean(curves_of_annotated, axis=0)
    best_N = np.flatnonzero(macro_T >= macro_T.max() - 1e-12)
    chosen = best_N[len(best_N) // 2]
    return float(THRESHOLDS[chosen]), float(macro_T[chosen])


def as_metadata(of_classes: Sequence[Curve]) -> dict[str, Any]:
    """Entry of a detector's metadata; empty without annotated cells."""
    best = best_threshold(of_classes)
    return {} if best is None else {"operating_point": {"threshold": best[0], "validation_f1": best[1]}}


def resolve_threshold(given: str, detector: LoadedDetector) -> float | None:
    """Threshold that `--threshold` names; None: the paper's rule.

    Raises:
        UserError: it is neither `paper`, `best` nor a number between 0 and 1, or the detector has no best one.
    """
    if given == "paper":
        return None
    if given == "best":
        return _stored(detector)
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise UserError(f"--threshold {given} is neither paper nor best nor a number between 0 and 1")
    return value


def _stored(detector: LoadedDetector) -> float:
    value = stored_threshold(detector.metadata)
    if value is None:
        raise UserError(
            f"{detector.path} stores no best threshold (it was trained without validation tiles or by an older "
            "version); give --threshold a number"
        )
    return value
