"""The evaluation as users call it."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from finetune.datasets import DataOptions
from finetune.evaluate import EvaluateConfig, evaluate
from shared.errors import UserError
from shared.model import dpa_p2pnet as core
from shared.model.detector_file import save_detector
from shared.samples.sample_slides import write_tiles
from shared.weights.weights_file import write
from tests.conftest import Command


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    write_tiles(folder, tiles=(1, 1, 2), side=100)
    return folder


def untrained(path: Path, classes: list[str], seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = core.DetectorConfig(arch="vit_tiny_patch16_224", classes=len(classes), interval=8)
    save_detector(path, core.DPAP2PNet(config), {"classes": classes, "mpp": 0.5})
    return path


def test_table_picture_scores_and_comparison(command: Command, tiles: Path, tmp_path: Path) -> None:
    detector = untrained(tmp_path / "a.pth", ["negative", "positive"])
    done = command("finetune.evaluate", detector, "--data", tiles, "--baseline", detector, "--min-gain", 0.1)
    assert "macro mean" in done.stdout, done.stderr
    assert "gain +0.000" in done.stdout
    assert done.returncode == 1
    assert "macro_f1" in json.loads((tmp_path / "evaluation/scores.json").read_text())["scores"]
    assert (tmp_path / "evaluation/comparison.png").exists()
    assert (tmp_path / "evaluation/precision_recall.png").exists()


def test_wrong_input_ends_in_one_sentence(command: Command, tiles: Path, tmp_path: Path) -> None:
    done = command("finetune.evaluate", tmp_path / "none.pth", "--data", tiles)
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no weights file")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "evaluation").exists()


def test_exhausted_memory_is_a_sentence(tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core.DPAP2PNet, "detect", lambda *_: torch.empty(2**50, dtype=torch.uint8))
    detector = untrained(tmp_path / "a.pth", ["negative", "positive"])
    config = EvaluateConfig(detector=detector, source=DataOptions(data=tiles), out=tmp_path / "evaluation")
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES"):
        evaluate(config)


def test_what_does_not_fit_is_refused(tiles: Path, tmp_path: Path) -> None:
    detector = untrained(tmp_path / "a.pth", ["negative", "positive"])
    other = untrained(tmp_path / "other.pth", ["tumour", "stroma"])
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "no_detector.pth")
    write(tmp_path / "empty.pth", {"a": torch.zeros(1)}, {"kind": "detector"})
    save_detector(tmp_path / "nameless.pth", core.DPAP2PNet(core.DetectorConfig(arch="vit_tiny_patch16_224")), {})
    (tmp_path / "file").touch()
    right = EvaluateConfig(detector=detector, source=DataOptions(data=tiles), out=tmp_path / "evaluation")
    for changes, sentence in [
        ({"detector": other}, "detects tumour, stroma, but .* is annotated with negative, positive"),
        ({"split": "holdout"}, "has no split 'holdout', only train, val, test"),
        ({"detector": tmp_path / "no_detector.pth"}, "not a detector"),
        ({"detector": tmp_path / "empty.pth"}, "is no detector that this version can build"),
        ({"detector": tmp_path / "nameless.pth"}, "nameless.pth lack classes and mpp"),
        ({"source": DataOptions(data=tiles, slide_mpp=0.7)}, "was trained at 0.5 um/px, but .* has only 0.7"),
        ({"threshold": "best"}, "a.pth stores no best threshold .*--threshold"),
        ({"threshold": "1.5"}, "--threshold 1.5"),
        ({"threshold": "most"}, "--threshold most"),
        ({"min_gain": 0.1}, "--min-gain needs a detector to compare with"),
        ({"min_gain": 5.0, "baseline": detector}, "--min-gain 5.0 is out of range"),
        ({"baseline": other}, "detects tumour, stroma"),
        ({"source": DataOptions(data=tiles, radius_um=0)}, "--radius-um 0 is out of range"),
        ({"source": DataOptions(data=tiles, radius_um=float("inf"))}, "--radius-um inf is out of range"),
        ({"out": tmp_path / "file"}, "cannot make the folder --out"),
    ]:
        with pytest.raises(UserError, match=sentence):
            evaluate(dataclasses.replace(right, **changes))
    assert not (tmp_path / "evaluation").exists()


def test_images_of_another_resolution_are_resampled(
    tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    detector = untrained(tmp_path / "a.pth", ["negative", "positive"])
    finer = DataOptions(data=tiles, slide_mpp=0.25)
    assert evaluate(EvaluateConfig(detector=detector, source=finer, out=tmp_path / "finer", threshold="0.1")) == 0
    assert "resampled from 0.25 to 0.5 um/px" in capsys.readouterr().out
    written = json.loads((tmp_path / "finer/scores.json").read_text())
    assert written["threshold"] == 0.1 and "macro_f1" in written["scores"]


def test_tables_and_pictures_of_users_are_kept_aside(tiles: Path, tmp_path: Path) -> None:
    detector = untrained(tmp_path / "a.pth", ["negative", "positive"])
    config = EvaluateConfig(detector=detector, source=DataOptions(data=tiles), out=tmp_path)
    for name in ("scores.json", "comparison.png", "precision_recall.png"):
        (tmp_path / name).write_text("a user's")
    for _ in range(2):
        assert evaluate(config) == 0
    assert {path.name for path in tmp_path.glob("*.bak*")} == {
        "scores.json.bak",
        "comparison.png.bak",
        "precision_recall.png.bak",
    }
