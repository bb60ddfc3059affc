"""Cross-validation by slide, as users start it."""

import json
from pathlib import Path

import numpy as np
import pytest

from finetune.datasets import DataOptions, load_data
from finetune.datasets.splits import hold_out
from shared.errors import UserError
from shared.samples.sample_slides import write_tiles
from tests.conftest import Command

TINY = ("--init", "random", "--arch", "vit_tiny_patch16_224", "--augment.crop", 64, "--workers", 0, "--epochs", 1)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    write_tiles(folder, tiles=(6, 2, 1), side=96, tiles_per_slide=2)
    return folder


@pytest.mark.parametrize("folds", [3, 4])
def test_every_slide_is_held_out_once_and_validates_once(tiles: Path, folds: int) -> None:
    data = load_data(DataOptions(data=tiles))
    own_test = {tile.image for tile in data.splits["test"]}
    held = {"test": [], "val": []}
    for fold in range(1, folds + 1):
        splits = hold_out(data, fold, folds).splits
        slides = {name: {tile.slide for tile in each} for name, each in splits.items()}
        assert slides["train"] and not (
            slides["train"] & slides["val"] | slides["val"] & slides["test"] | slides["test"] & slides["train"]
        )
        assert not own_test & {tile.image for each in splits.values() for tile in each}
        for name in held:
            held[name] += sorted(slides[name])
    slides = sorted({tile.slide for name in ("train", "val") for tile in data.splits[name]})
    assert sorted(held["test"]) == sorted(held["val"]) == slides


def test_fewer_slides_than_folds_are_refused(tiles: Path) -> None:
    with pytest.raises(UserError, match="--folds 5"):
        hold_out(load_data(DataOptions(data=tiles)), 1, 5)


def test_mean_and_spread_over_the_folds(command: Command, tiles: Path, tmp_path: Path) -> None:
    words = ("finetune", *TINY, "--data", tiles, "--folds", 3)
    done = command(*words)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "runs/finetune/folds.json").read_text())
    files = [tmp_path / f"runs/finetune/fold-{fold}/test_scores.json" for fold in (1, 2, 3)]
    scores = [json.loads(path.read_text())["best"]["macro_f1"] for path in files]
    assert result["mean"]["macro_f1"] == pytest.approx(np.mean(scores))
    assert result["standard_deviation"]["macro_f1"] == pytest.approx(np.std(scores, ddof=1))
    assert [fold["macro_f1"] for fold in result["folds"]] == scores
    written = [path.stat().st_mtime_ns for path in files]
    assert command(*words).returncode == 0  # nothing is left to train or to score
    assert [path.stat().st_mtime_ns for path in files] == written


def test_one_fold_alone(command: Command, tiles: Path, tmp_path: Path) -> None:
    done = command("finetune", *TINY, "--data", tiles, "--folds", 3, "--fold", 2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "detector.pth").exists()
    done = command("finetune", *TINY, "--data", tiles, "--folds", 3, "--fold", 4)
    assert done.returncode == 2 and "--fold 4" in done.stderr
