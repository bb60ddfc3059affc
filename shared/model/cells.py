"""Detected and annotated cells of one image."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from shared.model.decoders import Detections


@dataclass
class Cells:
    """The cells detected in one image."""

    points_N2: Tensor
    """(x, y) in px."""
    labels_N: Tensor
    """Class, 0..C-1."""
    scores_N: Tensor
    """Probability of that class."""


def select_cells(detections: Detections, height: int, width: int) -> list[Cells]:
    """Per image, the proposals that are most probably a cell and whose point lies inside the image.

    No score threshold and no suppression of neighbours: one-to-one matching makes both unnecessary.
    """
    scores_BN, labels_BN = detections.logits_BNC.softmax(-1).max(-1)
    background = detections.logits_BNC.shape[-1] - 1
    x_BN, y_BN = detections.points_BN2.unbind(-1)
    inside_BN = (x_BN >= 0) & (x_BN < width) & (y_BN >= 0) & (y_BN < height)
    keep_BN = inside_BN & (labels_BN != background)
    images = zip(detections.points_BN2, labels_BN, scores_BN, keep_BN, strict=True)
    return [Cells(points[keep], labels[keep], scores[keep]) for points, labels, scores, keep in images]


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
