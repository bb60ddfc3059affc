"""Cross-validation by slide, for data sets too small to set slides aside once."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from finetune.recipes import Recipe
from finetune.results import TEST_SCORES
from finetune.train import train
from shared.files import write_json
from shared.signals import StopSignal
from shared.training.distributed import World

SHOWN = {"macro_f1": "F1", "macro_ap": "AP", "detection_f1": "any cell F1", "duplicates": "duplicates"}


def train_folds(recipe: Recipe, world: World, stop: StopSignal) -> int:
    """Train one detector a fold, then print and write mean and spread of their scores; returns the exit code.

    Every run has a folder of its own in the recipe's; finished ones are not repeated.

    Raises:
        UserError: as `train`.
    """
    scores = []
    for fold in range(1, recipe.folds + 1):
        folder = recipe.run_dir / f"fold-{fold}"
        if recipe.max_steps is not None or not (folder / TEST_SCORES).exists():
            own = dataclasses.replace(recipe, fold=fold, run_dir=folder, out=folder / recipe.out.name)
            if code := train(own, world, stop):
                return code
        scores.append(json.loads((folder / TEST_SCORES).read_text(encoding="utf-8"))["best"])
    if world.is_main:
        _report(recipe.run_dir / "folds.json", scores)
    return 0


def _report(path: Path, scores: list[dict[str, float]]) -> None:
    means = {name: float(np.mean([each[name] for each in scores])) for name in SHOWN}
    spreads = {name: float(np.std([each[name] for each in scores], ddof=1)) for name in SHOWN}
    write_json(path, {"mean": means, "standard_deviation": spreads, "folds": scores})
    print(f"\n{len(scores)} folds by slide, weights chosen on the validation tiles of each, in percent:")
    for name, title in SHOWN.items():
        print(f"  {title:<12}{100 * means[name]:6.1f} +- {100 * spreads[name]:.1f}")
    print(f"scores of every fold: {path}")
