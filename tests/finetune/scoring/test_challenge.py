"""OCELOT's official score where users meet it: from the miniature tree to the printed table."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from finetune.datasets import DataOptions, load_data
from finetune.evaluate import EvaluateConfig, evaluate
from finetune.scoring.tile_scores import score_tiles
from shared.model.cells import Cells
from shared.samples.sample_slides import write_tiles
from tests.finetune.datasets.layouts.test_ocelot import write_patch
from tests.finetune.test_train import TINY, start

ROWS = "100,100,1\n300,300,1\n500,500,2\n700,700,2\n"
# x, y, class in the files, score; px with corner origin. Pixels: (115, 100), (316, 300), (500, 515), (100, 900).
FOUND = [(115.99, 100.2, 1, 0.9), (316.01, 300.5, 1, 0.8), (500.5, 515.9, 2, 0.7), (100.5, 900.5, 2, 0.6)]
# Each class: one of two found, one of two right, and the mean of 0.5 and 0.5 with 1e-7 below every line.
HALF = dict.fromkeys(("Pre/BC", "Rec/BC", "F1/BC", "Pre/TC", "Rec/TC", "F1/TC", "mF1"), 0.5)


@pytest.fixture
def ocelot(tmp_path: Path) -> Path:
    folder = tmp_path / "ocelot"
    for split, sample in (("train", "001"), ("test", "003")):
        write_patch(folder, split, sample, ROWS)
    return folder


def found_by(order: str) -> Cells:
    """FOUND, from a detector whose classes have the values in `order`."""
    x, y, values, scores = zip(*FOUND, strict=True)
    return Cells(np.stack([x, y], 1), np.array([order.index(str(value)) for value in values]), np.array(scores))


def official(folder: Path, order: str = "12", **said: tuple[str, ...]) -> tuple[dict[str, float], str]:
    """Values and table for what `found_by` finds."""
    data = load_data(DataOptions(data=folder, **said))
    result = score_tiles(data.splits["test"], [found_by(order)], data)
    prefix = "official/"
    values = {k.removeprefix(prefix): v for k, v in result.as_dict().items() if k.startswith(prefix)}
    return values, result.table()


def test_the_pixels_that_a_submission_holds_are_scored(ocelot: Path) -> None:
    """Two predictions lie 15.49 and 15.4 px from their cells, but 15 px from their pixels."""
    values, table = official(ocelot)
    assert values == HALF
    usual, ours = table.split("\n\n")
    assert "macro mean" in usual and "OCELOT" not in usual
    assert ours.splitlines()[0].split() == ["OCELOT,", "official", "rule", "P", "R", "F1"]
    assert ours.splitlines()[-1].split() == ["mF1", "0.5000"]


def test_the_score_s_classes_are_told_by_their_values(ocelot: Path) -> None:
    (ocelot / "annotations/test/cell/003.csv").write_text(ROWS.replace("700,700,2\n", ""))
    asymmetric = official(ocelot)[0]
    assert asymmetric["Rec/TC"] == 1.0 != asymmetric["Rec/BC"]
    assert official(ocelot, "21", classes=("cancer=2", "other=1"))[0] == asymmetric


def test_where_it_cannot_be_had_a_line_says_why(ocelot: Path) -> None:
    values, table = official(ocelot, "123", classes=("a=1", "b=2", "c=3"))
    assert not values
    assert table.endswith("\n\nno official score of OCELOT: it is of the classes 1 and 2, not of 1, 2, 3")
    Image.new("RGB", (1000, 1024)).save(ocelot / "images/train/cell/001.jpg")
    values, table = official(ocelot)
    assert not values
    assert table.splitlines()[-1].startswith("no official score of OCELOT: it is for images of 1024x1024 px; ")
    assert table.endswith("001.jpg has 1000x1024")


def test_other_data_have_none(tmp_path: Path) -> None:
    write_tiles(tmp_path, tiles=(1, 1, 1), side=96)
    data = load_data(DataOptions(data=tmp_path))
    nothing = Cells(np.zeros((0, 2)), np.zeros(0, int), np.zeros(0))
    scores = score_tiles(data.splits["test"], [nothing], data)
    assert "official" not in scores.table() and not any("official" in name for name in scores.as_dict())


def test_training_and_evaluation_print_and_keep_it(
    ocelot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = SimpleNamespace(cells=lambda *_: found_by("12"))
    for module in ("validation", "results", "evaluate"):
        monkeypatch.setattr(f"finetune.{module}.predict_tiles", lambda _, tiles, __: [found] * len(tiles))
    assert start(*TINY, "--data", ocelot, "--epochs", 0) == 0
    printed = [capsys.readouterr().out]
    kept = json.loads(Path("runs/finetune/test_scores.json").read_text())
    assert evaluate(EvaluateConfig(detector=Path("detector.pth"), source=DataOptions(data=ocelot))) == 0
    printed.append(capsys.readouterr().out)
    means = [[line.split()[1] for line in text.splitlines() if line.startswith("mF1")] for text in printed]
    assert means == [["0.5000", "0.5000"], ["0.5000"]]  # last and best weights; the detector
    scores = json.loads(Path("evaluation/scores.json").read_text())["scores"]
    assert scores == kept["best"] == kept["last"]
    assert HALF.items() <= {name.removeprefix("official/"): value for name, value in scores.items()}.items()
