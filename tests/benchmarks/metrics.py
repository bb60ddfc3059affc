"""`python -m tests.benchmarks.metrics`: evaluation of 116,000 cells against the literal rule, in one run.

Cells lie at OCELOT's density (about 175 in a patch of 1024 px), as patches and as one slide. The literal rule
measures for every prediction the distances to all cells of its image; on the slide it is timed on a share of
the predictions and scaled up, since the whole takes minutes. Both sides must count the same hits.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from finetune.scoring.metrics import match_greedily, score_cells
from finetune.scoring.ocelot_score import RADIUS, ocelot_score
from shared.model.cells import Cells
from tests.benchmarks.measuring import Result, timed, write
from tests.finetune.literal_rules import hits_by_distances, literal_ocelot

CELLS, SIDE, PER_PATCH = 116_000, 1024, 175
SHARE = 40  # of the slide's predictions one in so many goes through the literal rule
OUT = Path(__file__).with_name("metrics.csv")


def main() -> None:
    """Time both, print the ratios, write the CSV."""
    write(OUT, [compare_patches(), compare_slide()])


def compare_patches() -> dict[str, object]:
    """OCELOT's score on many patches."""
    count = CELLS // PER_PATCH
    random = np.random.default_rng(0)
    annotated = [scattered(random, PER_PATCH, SIDE) for _ in range(count)]
    predicted = [detected(random, cells, SIDE) for cells in annotated]
    fast, score = shortest(lambda: ocelot_score(predicted, annotated).as_dict(), repeats=3)
    slow, literal = timed(lambda: literal_ocelot(predicted, annotated))
    assert score == literal
    everything, _ = shortest(lambda: score_cells(predicted, annotated, ["BC", "TC"], RADIUS), repeats=3)
    return row(f"{count} patches", fast, slow, "all", everything)


def compare_slide() -> dict[str, object]:
    """Compare the greedy match on one image that holds everything."""
    side = SIDE * (CELLS / PER_PATCH) ** 0.5
    random = np.random.default_rng(1)
    annotated = scattered(random, CELLS, side)
    predicted = detected(random, annotated, side)
    fast, right = shortest(lambda: match_greedily(predicted, annotated, RADIUS), repeats=3)
    surest = np.argsort(-predicted.scores_N, kind="stable")[: CELLS // SHARE]
    some = Cells(predicted.points_N2[surest], predicted.labels_N[surest], predicted.scores_N[surest])
    slow, hits = timed(lambda: hits_by_distances(some, annotated, RADIUS))
    assert hits == right[surest].sum()
    everything, _ = shortest(lambda: score_cells([predicted], [annotated], ["BC", "TC"], RADIUS), repeats=3)
    whole = slow * len(predicted.labels_N) / len(surest)
    return row("one slide", fast, whole, f"the surest {len(surest):,} of {len(predicted.labels_N):,}", everything)


def scattered(random: np.random.Generator, count: int, side: float) -> Cells:
    """Cells at the centres of random pixels."""
    points_N2 = np.floor(random.uniform(0, side, (count, 2))) + 0.5
    return Cells(points_N2, random.integers(0, 2, count), np.ones(count))


def detected(random: np.random.Generator, cells: Cells, side: float) -> Cells:
    """Return what a detector makes of them: a few px off, a tenth of the classes wrong, a fifth of it made up."""
    count = len(cells.labels_N)
    shifted_N2 = np.clip(cells.points_N2 + random.normal(0, 5, (count, 2)), 0, side - 1)
    extra = scattered(random, count // 5, side)
    labels_N = np.where(random.uniform(size=count) < 0.1, 1 - cells.labels_N, cells.labels_N)
    points_N2 = np.concatenate([np.floor(shifted_N2) + 0.5, extra.points_N2])
    scores_N = random.uniform(0, 1, len(points_N2)).astype(np.float32)
    return Cells(points_N2, np.concatenate([labels_N, extra.labels_N]), scores_N)


def shortest(work: Callable[[], Result], repeats: int) -> tuple[float, Result]:
    """Return the shortest time of some repeats, and a result."""
    return min((timed(work) for _ in range(repeats)), key=lambda pair: pair[0])


def row(what: str, fast: float, slow: float, timed_on: str, everything: float) -> dict[str, object]:
    """Return a line of the CSV."""
    return {
        "what": what,
        "cells": CELLS,
        "match_s": round(fast, 3),
        "literal_s": round(slow, 2),
        "literal_timed_on": timed_on,
        "ratio": round(slow / fast, 1),
        "f1_and_ap_s": round(everything, 3),
    }


if __name__ == "__main__":
    main()
