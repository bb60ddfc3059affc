"""The decoder can tell which of several proposals on a nucleus reports it: four tiles are learnt by heart."""

import json
from pathlib import Path

import pytest

from shared.samples.sample_slides import write_tiles
from tests.conftest import Command

# The small network of the recipe nuclei, on crops that hardly differ from the tiles.
OVERFIT = ("--epochs", 500, "--batch-size", 4, "--learning-rate", 2e-3, "--warmup-steps", 20, "--ema", 0.98)
OVERFIT += ("--augment.crop", 128, "--augment.scale", 0.9, 1.1, "--augment.stain", 0, "--augment.brown", 0)
OVERFIT += ("--criterion.background-weight", 1.0, "--evaluate-every", 500, "--workers", 0)


@pytest.mark.slow
def test_four_tiles_are_learnt_by_heart_without_duplicates(command: Command, tmp_path: Path) -> None:
    write_tiles(tmp_path / "data", tiles=(4, 1, 1), side=160, tiles_per_slide=1)
    done = command("finetune", "nuclei", *OVERFIT, "--distinct-um", 3.0, timeout=3000)
    assert done.returncode == 0, done.stderr
    done = command("finetune.evaluate", "detector.pth", "--split", "train", "--data", "data")
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "evaluation/scores.json").read_text())["scores"]
    assert scores["macro_f1"] > 0.95
    assert scores["duplicates"] < 0.02
