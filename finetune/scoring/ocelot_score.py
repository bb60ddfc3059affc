"""OCELOT's official score (Ryu et al. 2023; grand-challenge.org, "Evaluation metric"), to its four decimals.

Differences from `metrics`: cells are whole pixels of images of 1024 x 1024 px, the radius is 15 px at any
resolution, 1e-7 is added to denominators, ratios are rounded to 4 decimals, and the mean F1 is taken of rounded
numbers over both classes, annotated or not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune.datasets.layouts.ocelot import SIDE
from finetune.scoring.metrics import match_greedily, pool
from shared.model.cells import Cells
from shared.reporting.tables import table

RADIUS = 15  # px, inclusive
EPSILON = 1e-7
DECIMALS = 4


@dataclass(frozen=True)
class Rates:
    """Precision, recall and F1 of a class, rounded."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class OcelotScore:
    """The rates of background cells (BC) and tumour cells (TC)."""

    background: Rates
    tumour: Rates

    @property
    def mean_f1(self) -> float:
        """The challenge's mF1."""
        return (self.background.f1 + self.tumour.f1) / 2

    def as_dict(self) -> dict[str, float]:
        """Values under the names of the official evaluation."""
        values: dict[str, float] = {}
        for name, rates in (("BC", self.background), ("TC", self.tumour)):
            values |= {f"Pre/{name}": rates.precision, f"Rec/{name}": rates.recall, f"F1/{name}": rates.f1}
        return {**values, "mF1": self.mean_f1}

    def table(self) -> str:
        """One line per class, and the mean, with all decimals."""
        named = (("BC, background cells", self.background), ("TC, tumour cells", self.tumour))
        rows = [
            (name, *(f"{rate:.4f}" for rate in (each.precision, each.recall, each.f1))) for name, each in named
        ]
        return table(("OCELOT, official rule", "P", "R", "F1"), [*rows, ("mF1", "", "", f"{self.mean_f1:.4f}")])


def ocelot_score(predicted: Sequence[Cells], annotated: Sequence[Cells]) -> OcelotScore:
    """Score predictions against annotations, image by image.

    Args:
        predicted: Cells in px of the 1024-px images, origin at the outer corner; labels 0 background, 1 tumour.
        annotated: As annotated; scores do not matter.
    """
    found, cells = pool(list(map(as_submitted, predicted)), list(map(as_submitted, annotated)), RADIUS)
    return OcelotScore(*(_rates(found.of_class(label), cells.of_class(label)) for label in (0, 1)))


def as_submitted(cells: Cells) -> Cells:
    """Cells in the form of a submission: whole pixels, scores in single precision."""
    pixels_N2 = np.clip(np.floor(cells.points_N2), 0, SIDE - 1)
    return Cells(pixels_N2, cells.labels_N, cells.scores_N.astype(np.float32))


def _rates(predicted: Cells, annotated: Cells) -> Rates:
    hits = int(match_greedily(predicted, annotated, RADIUS).sum())
    precision = hits / (len(predicted.labels_N) + EPSILON)
    recall = hits / (len(annotated.labels_N) + EPSILON)
    f1 = 2 * precision * recall / (precision + recall + EPSILON)
    return Rates(*(round(rate, DECIMALS) for rate in (precision, recall, f1)))
