"""Score of a data set's own challenge, from the same cells as the usual scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from finetune.datasets.dataset import OfficialRule
from finetune.scoring.metrics import OfficialScore
from finetune.scoring.ocelot_score import ocelot_score
from shared.model.cells import Cells

# By the name that the data set's reader gives. Labels are numbered in the order of the score's classes.
RULES: dict[str, Callable[[Sequence[Cells], Sequence[Cells]], OfficialScore]] = {"OCELOT": ocelot_score}


@dataclass(frozen=True)
class NoScore:
    """Absent score."""

    reason: str

    def table(self) -> str:
        """Reason of the absence."""
        return self.reason

    def as_dict(self) -> dict[str, float]:
        """Empty."""
        return {}


def official_score(rule: OfficialRule, predicted: Sequence[Cells], annotated: Sequence[Cells]) -> OfficialScore:
    """Score predictions by the rule of the data set's challenge, or give the reason why that is impossible."""
    if rule.absent:
        return NoScore(f"no official score of {rule.name}: {rule.absent}")
    numbers_C = np.argsort(rule.labels)  # label of ours -> number of the class in the score
    found, cells = ([_renumbered(each, numbers_C) for each in sets] for sets in (predicted, annotated))
    return RULES[rule.name](found, cells)


def _renumbered(cells: Cells, numbers_C: np.ndarray) -> Cells:
    return Cells(cells.points_N2, numbers_C[cells.labels_N], cells.scores_N)
