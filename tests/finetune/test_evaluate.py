"""The evaluation as users call it."""

import json
from pathlib import Path

import pytest
import torch

from shared import detector as core
from shared.sample_slides import write_tiles
from tests.conftest import Command


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    write_tiles(folder, tiles=(1, 1, 2), side=100)
    return folder


def untrained(path: Path, classes: list[str], seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = core.Config(arch="vit_tiny_patch16_224", classes=len(classes), interval=8)
    core.save_detector(path, core.Detector(config), {"classes": classes, "mpp": 0.5})
    return path


def test_table_picture_scores_and_comparison(command: Command, tiles: Path, tmp_path: Path) -> None:
    detector = untrained(tmp_path / "a.pth", ["negative", "positive"])
    done = command("finetune.evaluate", detector, "--data", tiles, "--baseline", detector, "--min-gain", 0.1)
    assert "macro mean" in done.stdout, done.stderr
    assert "gain +0.000" in done.stdout
    assert done.returncode == 1
    assert "macro_f1" in json.loads((tmp_path / "evaluation/scores.json").read_text())["scores"]
    assert (tmp_path / "evaluation/comparison.png").exists()


def test_wrong_input_ends_in_one_sentence(command: Command, tiles: Path, tmp_path: Path) -> None:
    detector = untrained(tmp_path / "a.pth", ["tumour", "stroma"])
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "b.pth")
    for words, sentence in [
        ((detector, "--data", tiles), "detects tumour, stroma, but"),
        ((detector, "--data", tiles, "--split", "holdout"), "has no split 'holdout'"),
        ((tmp_path / "b.pth", "--data", tiles), "not a detector"),
        ((tmp_path / "none.pth", "--data", tiles), "there is no weights file"),
    ]:
        done = command("finetune.evaluate", *words)
        assert done.returncode == 2, done.stderr
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "evaluation").exists()
