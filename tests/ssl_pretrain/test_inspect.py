"""Finished runs, looked at from outside: the same numbers as during the run, beside an untrained network's."""

import csv
import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from shared.signals import StopSignal
from shared.training.distributed import World
from ssl_pretrain.inspect import main
from ssl_pretrain.train import train
from tests.conftest import InProcess
from tests.ssl_pretrain import tiny
from tests.ssl_pretrain.labelled import write_labelled
from tests.ssl_pretrain.stub import changed

NUMBERS = ("feature_std", "rank_me", "knn_biomarker", "knn_slide")


@pytest.fixture
def inspect(in_process: InProcess):
    """Run the command in this process, which knows the tiny networks; returns exit code, stdout and stderr."""
    return partial(in_process, main)


def trained(name: str, folder: Path, suffix: str = ".pth", **fields: object):
    shards = folder / "shards"
    if not shards.exists():
        write_labelled(shards, [24, 16])
    recipe = tiny.recipe(name, shards, folder / name, max_steps=4, monitor_every=2)
    recipe = changed(recipe, out=folder / f"{name}{suffix}", **fields)
    assert train(recipe, World(0, 0, 1, torch.device("cpu")), StopSignal()) == 0
    return recipe


def report(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "report.csv").open()))


def last_look(recipe) -> dict:
    lines = map(json.loads, (recipe.run_dir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "rank_me" in line][-1]


@pytest.mark.parametrize("name", ["dino_vitb", "swav_resnet50", "mae_vitb", "moco_v2_resnet50"])
def test_numbers_are_those_of_the_runs_end(name: str, tmp_path: Path, inspect):
    recipe = trained(name, tmp_path, ".safetensors" if name == "swav_resnet50" else ".pth")
    places = [recipe.run_dir, recipe.out, recipe.run_dir / "checkpoint-000000004.pt"]
    code, out, _ = inspect(*places, "--shards", recipe.shards, "--out", tmp_path / "out")
    assert code == 0
    *rows, untrained = report(tmp_path / "out")
    assert [row["name"] for row in rows] == [str(place) for place in places]
    expected = last_look(recipe)
    for row in rows:
        assert row["samples_seen"] == "32" and row["name"] in out
        for number in NUMBERS:
            assert float(row[number]) == pytest.approx(expected[number], abs=2e-4, rel=1e-3)
        assert row["knn_slide_chance"] == "0.25" and row["knn_biomarker_chance"] == "0.5"
    assert untrained["name"] == f"untrained {recipe.method.arch}" and untrained["samples_seen"] == "0"
    assert [untrained[number] for number in NUMBERS] != [rows[0][number] for number in NUMBERS]


def test_exhausted_memory_is_a_sentence(tmp_path: Path, inspect, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ssl_pretrain.inspect.open_shards", lambda *_: torch.empty(2**50, dtype=torch.uint8))
    code, _, err = inspect(tmp_path / "mae.pth", "--shards", tmp_path)
    assert code == 2 and "CUDA_VISIBLE_DEVICES" in err and err.count("\n") == 1


def test_report_holds_its_pictures(tmp_path: Path, inspect):
    dino, mae = trained("dino_vitb", tmp_path), trained("mae_vitb", tmp_path)
    code, out, _ = inspect(dino.run_dir, mae.run_dir, "--shards", dino.shards, "--out", tmp_path / "out")
    assert code == 0
    names = sorted(path.name for path in (tmp_path / "out").glob("[!.]*"))
    assert names == [
        *("1-run-attention.png", "2-run-attention.png", "2-run-reconstruction.png"),
        *("report.csv", "report.html"),
    ]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and not re.search(r"(src|href)=.(?!data:)", page)
    assert len(report(tmp_path / "out")) == 3  # both are the same network, so one untrained is enough
    assert "kNN biomarker" in out and "report.html" in out


def test_refusals_name_file_and_fix(tmp_path: Path, inspect):
    recipe = trained("dino_vitb", tmp_path)
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.mkdir()
    broken.mkdir()
    (broken / "config.json").write_text("{")
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.json").write_text((recipe.run_dir / "config.json").read_text())
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    config = json.loads((recipe.run_dir / "config.json").read_text()) | {"name": "byol"}
    (renamed / "config.json").write_text(json.dumps(config))
    state = (recipe.run_dir / "checkpoint-000000004.pt").read_bytes()
    (renamed / "checkpoint-000000004.pt").write_bytes(state)
    (begun / "checkpoint-000000009.pt").write_bytes(state[:1000])
    moved, wider, without = (tmp_path / name for name in ("moved", "wider", "without"))
    for folder in (moved, wider, without):
        shutil.copytree(recipe.run_dir, folder)
    other = trained("swav_resnet50", tmp_path).run_dir / "checkpoint-000000004.pt"
    shutil.copy(other, moved / "checkpoint-000000009.pt")
    config["name"], config["method"] = recipe.name, None
    (wider / "config.json").write_text(json.dumps(config))
    (without / "shards.json").write_text("{}")
    for place, sentence in (
        (tmp_path / "none.pth", "there is no weights file"),
        (empty, "is no run folder (it has no config.json); give one, or a weights file"),
        (broken, "config.json is damaged"),
        (begun, "no checkpoint in"),
        (begun / "checkpoint-000000009.pt", "is cut short"),
        (renamed / "checkpoint-000000004.pt", "is a run of the recipe 'byol', which is not known here"),
        (moved / "checkpoint-000000009.pt", "does not fit the config.json beside it"),
        (wider, "config.json is damaged"),
        (without, "shards.json is damaged"),
    ):
        code, _, err = inspect(place, "--shards", recipe.shards, "--out", tmp_path / "out")
        assert code == 2 and sentence in err and "Traceback" not in err, err
        assert not (tmp_path / "out").exists()
    code, _, err = inspect(recipe.out, "--shards", tmp_path / "none")
    assert code == 2 and "no folder of shards" in err
    code, _, err = inspect(recipe.out, "--shards", recipe.shards, "--patches", 1)
    assert code == 2 and "--patches 1 is out of range" in err
