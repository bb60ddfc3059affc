"""The rules of the scores word by word, slow and without a search tree: what fast code is held against."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from finetune.training.matching import MatchingConfig, assign
from shared.model.cells import Cells


def literal_greedy(predicted: Cells, annotated: Cells, radius: float) -> np.ndarray:
    """Apply the rule word by word: highest score first, nearest cell not yet taken, within the radius."""
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


def literal_nearest(predicted: Cells, annotated: Cells, radius: float) -> np.ndarray:
    """Highest score first, each looks at its nearest cell only and fails if that is taken."""
    right = np.zeros(len(predicted.points_N2), bool)
    taken = set()
    for index in sorted(range(len(right)), key=lambda i: -predicted.scores_N[i]):
        gaps = [float(np.hypot(*(point - predicted.points_N2[index]))) for point in annotated.points_N2]
        if gaps and min(gaps) <= radius and int(np.argmin(gaps)) not in taken:
            taken.add(int(np.argmin(gaps)))
            right[index] = True
    return right


def hits_by_distances(predicted: Cells, annotated: Cells, radius: float) -> int:
    """How many predictions `literal_greedy` finds right, by a row of distances for each of them."""
    free = np.ones(len(annotated.points_N2), bool)
    hits = 0
    for index in np.argsort(-predicted.scores_N, kind="stable") if len(free) else ():
        gaps = np.sqrt(((annotated.points_N2 - predicted.points_N2[index]) ** 2).sum(1))
        gaps[~free] = np.inf
        nearest = int(gaps.argmin())
        if gaps[nearest] <= radius:
            free[nearest] = False
            hits += 1
    return hits


def literal_ocelot(predicted: Sequence[Cells], annotated: Sequence[Cells]) -> dict[str, float]:
    """OCELOT's score as its page describes it: an image and a class at a time, counts added up."""
    scores = {}
    for label, name in enumerate(("BC", "TC")):
        hits = total_predicted = total_annotated = 0
        for found, truth in zip(predicted, annotated, strict=True):
            found, truth = found.of_class(label), truth.of_class(label)
            hits += hits_by_distances(found, truth, 15)
            total_predicted += len(found.points_N2)
            total_annotated += len(truth.points_N2)
        precision, recall = hits / (total_predicted + 1e-7), hits / (total_annotated + 1e-7)
        f1 = 2 * precision * recall / (precision + recall + 1e-7)
        scores |= {f"Pre/{name}": round(precision, 4), f"Rec/{name}": round(recall, 4), f"F1/{name}": round(f1, 4)}
    return {**scores, "mF1": (scores["F1/BC"] + scores["F1/TC"]) / 2}


def assigned(
    config: MatchingConfig, points_N2: Tensor, logits_NC: Tensor, cells_M2: Tensor, labels_M: Tensor
) -> Tensor:
    """Match a single image all of whose proposals compete: proposals and their cells, (2, matches)."""
    competing_1N = torch.ones(1, len(points_N2), dtype=torch.bool)
    return assign(config, points_N2[None], logits_NC[None], [(cells_M2, labels_M)], competing_1N)
