"""The score of a data set's own challenge, from the cells that the usual scores are made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from finetune.datasets.dataset import OfficialRule
from finetune.scoring.metrics import OfficialScore
from finetune.scoring.ocelot import ocelot_score
from shared.model.cells import CellSet

# By the name that the data set's reader gives. Labels are numbered in the order that the score has its classes.
RULES: dict[str, Callable[[Sequence[CellSet], Sequence[CellSet]], OfficialScore]] = {"OCELOT": ocelot_score}


@dataclass(frozen=True)
class NoScore:
    """Stands where a score cannot be had."""

    reason: str

    def table(self) -> str:
        """The reason."""
        return self.reason

    def as_dict(self) -> dict[str, float]:
        """Nothing."""
        return {}


def official_score(
    rule: OfficialRule, predicted: Sequence[CellSet], annotated: Sequence[CellSet]
) -> OfficialScore:
    """Score predictions by the rule of the data set's challenge, or say why that cannot be done."""
    if rule.absent:
        return NoScore(f"no official score of {rule.name}: {rule.absent}")
    numbers_C = np.argsort(rule.labels)  # label of ours -> number of the class in the score
    found, cells = ([_renumbered(each, numbers_C) for each in sets] for sets in (predicted, annotated))
    return RULES[rule.name](found, cells)


def _renumbered(cells: CellSet, numbers_C: np.ndarray) -> CellSet:
    return CellSet(cells.points_N2, numbers_C[cells.labels_N], cells.scores_N)
