"""Cells of one image, and the rule by which proposals become cells."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from shared.model.decoders import Detections


@dataclass(frozen=True)
class Cells:
    """Predicted cells of one image, or annotated ones, whose scores have no meaning."""

    points_N2: np.ndarray
    """(x, y) in px of the image."""
    labels_N: np.ndarray
    """Class, 0..C-1."""
    scores_N: np.ndarray
    """Probability of the class."""

    def of_class(self, label: int | None) -> "Cells":
        """Cells of one class, or all of them for None."""
        return self if label is None else self.chosen(self.labels_N == label)

    def chosen(self, chosen_N: np.ndarray) -> "Cells":
        """Cells at these indices, or where a mask is true."""
        return Cells(self.points_N2[chosen_N], self.labels_N[chosen_N], self.scores_N[chosen_N])


class Classified(NamedTuple):
    """Class and probability of every proposal, and whether it counts as a cell."""

    labels_BN: Tensor
    scores_BN: Tensor
    are_cells_BN: Tensor


def classify(probabilities_BNC: Tensor, threshold: float | None = None) -> Classified:
    """Decide which proposals are cells.

    No neighbours are suppressed: one-to-one matching in training makes that unnecessary.

    Args:
        probabilities_BNC: Of the classes and, last, of background.
        threshold: A proposal is a cell if its most probable class has at least this probability. None: if that
            class is more probable than background (the paper's rule).
    """
    if threshold is None:
        scores_BN, labels_BN = probabilities_BNC.max(-1)
        return Classified(labels_BN, scores_BN, labels_BN != probabilities_BNC.shape[-1] - 1)
    scores_BN, labels_BN = probabilities_BNC[..., :-1].max(-1)
    return Classified(labels_BN, scores_BN, scores_BN >= threshold)


def select_cells(detections: Detections, height: int, width: int, threshold: float | None = None) -> list[Cells]:
    """Cells of every image, by the rule of `classify`, whose points are inside the image."""
    labels_BN, scores_BN, keep_BN = classify(detections.logits_BNC.softmax(-1), threshold)
    x_BN, y_BN = detections.points_BN2.unbind(-1)
    keep_BN &= (x_BN >= 0) & (x_BN < width) & (y_BN >= 0) & (y_BN < height)
    images = zip(detections.points_BN2, labels_BN, scores_BN, keep_BN, strict=True)
    return [Cells(*(each[keep].cpu().numpy() for each in values)) for *values, keep in images]
