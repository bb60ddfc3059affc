"""Sweeps as users start them: stopped, resumed, with a row that fails; the table and what it is made of."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.datasets import DataOptions
from finetune.launch import LAUNCH
from finetune.networks import PointNetwork
from finetune.recipes import RECIPES, Recipe, with_settings
from finetune.sweep.config import CommonRecipe, SweepConfig, planned_runs, words_of
from finetune.sweep.paper_tables import TABLES
from finetune.sweep.run import sweep
from finetune.sweep.score_tables import mean_and_spread
from finetune.training.augment import AugmentConfig
from shared.cli import as_plain, parse, parse_beside
from shared.errors import UserError
from shared.samples.sample_slides import write_tiles
from shared.signals import StopSignal
from shared.weights import weights_file
from tests.conftest import ENVIRONMENT

TINY = CommonRecipe(
    init="random",
    arch="vit_tiny_patch16_224",
    batch_size=2,
    workers=0,
    max_steps=8,
    augment=AugmentConfig(crop=64),
)
# As they stand in the paper: F1 and AP from the top row to the bottom, or from left to right.
PRINTED = {
    "table6": {"CoNSeP": "70.0 60.5 70.7 61.7 71.1 62.9"},
    "table5": {"OCELOT": "59.3 44.4 62.6 49.1 64.2 51.4 64.6 51.6"},
    "table4": {"OCELOT": "58.8 42.7 59.3 43.5 59.8 44.2 59.3 44.4 61.9 48.9 62.6 49.1"},
    "table7": {
        "PD-L1": "52.3 39.3 55.9 43.7 57.4 45.4 56.4 44.7 56.6 45.0 56.7 44.0 58.0 47.0 60.8 49.9 61.7 51.6"
    },
    "table3": {
        "CoNSeP": "61.8 - 65.7 53.7 42.5 27.7 68.2 52.2 37.1 20.0 16.7 - 70.3 57.7 36.7 - 70.0 60.5 40.8 21.8 "
        "70.2 59.9 71.1 62.9",
        "BCData": "85.7 80.1 85.8 82.1 85.7 - 85.3 79.2 84.6 79.7 68.5 - 85.9 81.3 66.5 - 86.3 83.8 84.8 81.0 "
        "86.3 83.3 86.7 84.4",
        "PD-L1": "46.0 33.4 53.7 41.3 25.7 21.1 43.6 30.8 30.0 20.7 32.5 - 51.9 36.4 27.1 - 54.4 42.1 54.3 43.0 "
        "54.8 42.5 55.9 43.7",
    },
    "refinement": {"CoNSeP": "70.7 61.7 71.1 62.9"},
}


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    write_tiles(folder, tiles=(4, 1, 2), side=96)
    return folder


def config(
    tiles: Path, folder: Path, table: str = "table6", recipe: CommonRecipe = TINY, **more: Any
) -> SweepConfig:
    recipe = dataclasses.replace(recipe, source=DataOptions(data=tiles), run_dir=folder / "sweeps")
    return SweepConfig(table=table, recipe=recipe, **more)


def pretend(asked: SweepConfig, scores: dict[tuple[str, int], tuple[float, float]]) -> None:
    """Folders of finished runs with these best F1 and AP; the last weights are 0.1 worse."""
    for run in planned_runs(asked):
        f1, ap = scores[run.row.name, run.recipe.seed]
        folder = run.recipe.run_dir
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(as_plain(run.recipe)))
        made = {"machine": "box", "versions": {"torch": "2.9"}, "time": "2026-01-01", "git_commit": "abc"}
        (folder / "provenance.json").write_text(json.dumps(made))
        scored = {
            "best": {"macro_f1": f1, "macro_ap": ap},
            "last": {"macro_f1": f1 - 0.1, "macro_ap": ap - 0.1},
        }
        (folder / "test_scores.json").write_text(json.dumps(scored))


def test_stopped_and_resumed_with_a_failing_row(
    tiles: Path,
    tmp_path: Path,
    stop: StopSignal,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ctrl-C at a terminal goes to the sweep and to its run; the second row's folder holds something else."""
    rows = ("--rows", "p2pnet", "msd")
    words = ["table6", "--seeds", "0", "--data", str(tiles), *words_of(TINY)]
    run = tmp_path / "runs/sweeps/table6/p2pnet/seed-0"
    assert "stopped by SIGINT; the same command goes on with 2 run(s)" in interrupted([*words, *rows], run)
    log = run.with_name("seed-0.log")
    assert "by SIGTERM; the same command goes on" in log.read_text()

    monkeypatch.chdir(tmp_path)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    foreign = tmp_path / "runs/sweeps/table6/msd/seed-0/notes.txt"
    foreign.parent.mkdir(parents=True)
    foreign.touch()
    assert sweep(parse(SweepConfig, "sweep", args=[*words, *rows]), stop) == 3
    assert "goes on after step" in log.read_text()
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert errors.startswith("failed: msd/seed-0: error: ") and "msd/seed-0" in errors

    scored = (run / "test_scores.json").stat().st_mtime_ns
    assert sweep(parse(SweepConfig, "sweep", args=[*words, *rows[:2]]), stop) == 0
    said = capsys.readouterr().out
    assert "runs: 1, of which 1 are done" in said
    assert (run / "test_scores.json").stat().st_mtime_ns == scored
    best, last = (json.loads((run / "test_scores.json").read_text())[name] for name in ("best", "last"))
    numbers = [100 * scores[f"macro_{name}"] for scores in (best, last) for name in ("f1", "ap")]
    row = next(text for text in said.splitlines() if text.startswith("P2PNet"))
    assert row.split()[1:] == [*(f"{number:.1f}" for number in numbers), "1", "70.0", "60.5"]


def interrupted(words: list[str], run: Path) -> str:
    """Return what the command says when Ctrl-C is typed after the first step of a run."""
    line = [sys.executable, "-m", "finetune.sweep", *words]
    folder, metrics = run.parents[4], run / "metrics.jsonl"
    with subprocess.Popen(
        line, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, process_group=0
    ) as process:
        while process.poll() is None and not (metrics.exists() and '"step": 1,' in metrics.read_text()):
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 85, said
    return said


def test_the_table_has_means_and_spreads_beside_the_paper_s(
    tiles: Path, tmp_path: Path, stop: StopSignal, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = config(tiles, tmp_path, seeds=("0,1", "5"))
    values = {("p2pnet", 0): (0.7, 0.6), ("p2pnet", 1): (0.71, 0.6), ("p2pnet", 5): (0.72, 0.6)}
    values |= {(row, seed): (0.5, 0.4) for row in ("msd", "msd_dpp") for seed in (0, 1, 5)}
    pretend(asked, values)
    assert sweep(asked, stop) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith("P2PNet "))
    numbers = "71.0 +- 1.0   60.0 +- 0.0   61.0 +- 1.0   50.0 +- 0.0   3       70.0       60.5"
    assert " ".join(row.split()) == "P2PNet " + " ".join(numbers.split())
    folder = tmp_path / "sweeps/table6"
    with (folder / "table6.csv").open() as file:
        first = next(csv.DictReader(file))
    assert (first["row"], first["seeds"], first["n"]) == ("p2pnet", "0 1 5", "3")
    assert (float(first["best_f1_mean"]), float(first["best_f1_sd"])) == (71.0, 1.0)
    assert (first["paper_f1"], first["paper_ap"], first["paper_data"]) == ("70.0", "60.5", "CoNSeP")
    assert [first[name] for name in ("machine", "versions", "date", "commit")] == [
        "box",
        "torch=2.9",
        "2026-01-01",
        "abc",
    ]
    with (folder / "runs.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 9
    assert json.loads((folder / "settings.json").read_text())["config"]["seeds"] == ["0,1", "5"]


def test_table_3_has_sizes_and_table_7_takes_weights(
    tiles: Path, tmp_path: Path, stop: StopSignal, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = config(tiles, tmp_path, "table3", seeds=("0",))
    pretend(asked, {(row.name, 0): (0.5, 0.4) for row in TABLES["table3"].rows if row.recipe})
    assert sweep(asked, stop) == 0
    said = capsys.readouterr().out
    row = next(line for line in said.splitlines() if line.startswith("DPA-P2PNet"))
    assert row.split()[-6:] == ["55.9", "43.7", "32.3", "32.3", "150", "151"]
    row = next(line for line in said.splitlines() if line.startswith("GL"))
    assert row.split()[-6:] == ["32.5", "-", "21.5", "21.5", "432", "432"]
    assert "not published: the training of ML-CellNet" in said

    torch.save({"weight": torch.zeros(1)}, tmp_path / "mae.pth")
    with_arch = dataclasses.replace(TINY, arch=None, init="imagenet")
    asked = config(tiles, tmp_path, "table7", with_arch, weights=(f"mae={tmp_path / 'mae.pth'}",), seeds=("0",))
    runs = {run.row.name: run.recipe for run in planned_runs(asked)}
    assert list(runs) == ["random_resnet50", "imagenet_resnet50", "random_vitb", "imagenet_vitb", "mae_vitb"]
    assert runs["mae_vitb"].init == str(tmp_path / "mae.pth")
    assert runs["imagenet_vitb"].arch == "vit_base_patch16_224"
    asked = dataclasses.replace(asked, rows=("random_resnet50", "swav_resnet50"), weights=())
    pretend(asked, {("random_resnet50", 0): (0.5, 0.4)})
    assert sweep(asked, stop) == 0
    said = capsys.readouterr().out
    assert "left out: swav_resnet50 " in said and "--weights swav_resnet50=FILE" in said


@pytest.mark.parametrize("table", TABLES)
def test_rows_are_told_apart_by_what_a_user_would_type(table: str, tiles: Path, tmp_path: Path) -> None:
    base = dataclasses.replace(TINY, arch=None, init="imagenet", ema=0.5, augment=AugmentConfig(scale=(0.7, 1.5)))
    files = ("moco_v2=a.pth", "swav=b.pth", "dino_vitb=c.pth", "dino_resnet50=d.pth", "mae=e.pth")
    asked = config(tiles, tmp_path, table, base, weights=files if table == "table7" else ())
    runs = planned_runs(asked)
    trained = sum(bool(row.recipe) for row in TABLES[table].rows)
    assert len(runs) == 3 * trained
    assert len({run.row.name for run in runs[:trained]}) == trained
    for run in runs:
        if not run.row.weights_of:  # it is not trained
            assert typed(words_of(run.recipe)) == run.recipe
    plain = [as_plain(run.recipe) for run in runs if run.recipe.seed == 0]
    decisive = [{**each, "run_dir": "", "out": ""} for each in plain]
    assert all(one != other for i, one in enumerate(decisive) for other in decisive[:i])


def test_rivals_keep_their_recipes_but_for_what_is_typed(tiles: Path, tmp_path: Path) -> None:
    base = dataclasses.replace(CommonRecipe(), init="r50.pth", batch_size=2, network=PointNetwork(channels=64))
    asked = config(tiles, tmp_path, "table3", base, weights=("gl=vgg19.pth",), seeds=("3",))
    recipes = {run.row.name: run.recipe for run in planned_runs(asked)}
    assert {recipe.batch_size for recipe in recipes.values()} == {2}
    inits = {name: recipe.init for name, recipe in recipes.items()}
    assert inits == {
        **dict.fromkeys(("deeplabv3plus", "ucsrnet", "cltr", "p2pnet", "e2e", "dpa_p2pnet"), "r50.pth"),
        **{"unet": "random", "mcspatnet": "imagenet", "fidt": "imagenet", "gl": "vgg19.pth", "otm": "imagenet"},
    }
    assert recipes["fidt"].criterion == RECIPES["fidt"].criterion and recipes["fidt"].learning_rate == 1e-4
    assert recipes["e2e"].network == PointNetwork(channels=64, multi_scale=False, deformable=False, summed=True)
    with pytest.raises(UserError, match="otm scores the weights of gl; name both"):
        planned_runs(dataclasses.replace(asked, rows=("otm",)))


def test_options_of_every_kind_are_typed(tiles: Path) -> None:
    recipe = Recipe(
        source=DataOptions(data=tiles, classes=("a=1", "b"), radius_um=2.5),
        network=PointNetwork(summed=True),
        clip_norm=1e-05,
    )
    assert typed(words_of(recipe)) == recipe
    assert words_of(RECIPES["demo"]) == ["demo"]


def typed(words: Sequence[str]) -> Recipe:
    """Return what `python -m finetune WORDS` would train."""
    return parse_beside(RECIPES, "dpa_p2pnet", "finetune", "", LAUNCH, words)[0]


@pytest.mark.parametrize("table", PRINTED)
def test_the_paper_s_numbers_are_those_it_prints(table: str) -> None:
    for data_set, printed in PRINTED[table].items():
        ours = [value for row in TABLES[table].rows for value in row.printed.get(data_set, ())]
        assert ours == [None if word == "-" else float(word) for word in printed.split()]


def test_numbers_of_the_data_set_that_is_trained_on() -> None:
    assert [TABLES["table3"].data_set(name) for name in ("consep", "bcdata", "points")] == [
        "CoNSeP",
        "BCData",
        "PD-L1",
    ]
    assert TABLES["table5"].data_set("consep") == "OCELOT"


def test_mean_and_spread() -> None:
    """Spread over n - 1, as of a sample."""
    assert mean_and_spread([]) == "-"
    assert mean_and_spread([71.26]) == "71.3"
    assert mean_and_spread([1.0, 2.0, 4.5]) == "2.5 +- 1.8"


def test_a_try_out_is_not_a_result_of_the_whole_run(tiles: Path, tmp_path: Path) -> None:
    asked = config(tiles, tmp_path, rows=("msd",), seeds=("0",))
    pretend(asked, {("msd", 0): (0.5, 0.4)})
    assert [run.is_finished for run in planned_runs(asked)] == [True]
    longer = dataclasses.replace(asked, recipe=dataclasses.replace(asked.recipe, max_steps=None))
    assert [run.is_finished for run in planned_runs(longer)] == [False]


@pytest.mark.parametrize(
    ("table", "changes", "sentence"),
    [
        ("table6", {"seeds": ("0,x",)}, "--seeds 0,x is not a list of whole numbers like 0,1,2"),
        ("table6", {"seeds": ("0", "0")}, "--seeds 0 0 must be at least one, and no seed twice"),
        ("table6", {"seeds": ("-1",)}, "--seeds -1 is out of range"),
        ("table6", {"rows": ("best",)}, "table6 has no row 'best'; choose from: p2pnet, msd, msd_dpp"),
        ("table6", {"weights": ("mae=a.pth",)}, "the rows of table6 take no --weights"),
        ("table6", {"summed": True}, "--summed is set by the rows of table6; leave it out"),
        ("table5", {"views": 2}, "--views is set by the rows of table5; leave it out"),
        ("table6", {"init": "none.pth"}, "there is no weights file none.pth"),
        ("table6", {"batch_size": 0}, "--batch-size 0 is out of range"),
        ("table6", {"source": DataOptions(data=Path("nowhere"))}, "nowhere"),
        ("table7", {"init": "imagenet", "arch": None, "rows": ("mae_vitb",)}, "no row of table7 is left to run"),
        ("table7", {"init": "imagenet", "arch": None, "weights": ("dino=a",)}, "does not name one row"),
        ("table7", {"init": "imagenet", "arch": None, "weights": ("mae=a.pth",)}, "no weights file a.pth"),
    ],
)
def test_wrong_use_is_refused_before_anything_is_written(
    table: str, changes: dict[str, Any], sentence: str, tiles: Path, tmp_path: Path, stop: StopSignal
) -> None:
    names = {field.name for kind in (Recipe, PointNetwork) for field in dataclasses.fields(kind)}
    asked = config(tiles, tmp_path, table, **{k: v for k, v in changes.items() if k not in names})
    own = {name: value for name, value in changes.items() if name in names}
    asked = dataclasses.replace(asked, recipe=with_settings(asked.recipe, own))
    with pytest.raises(UserError) as refused:
        sweep(asked, stop)
    assert sentence in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_other_settings_and_other_data_are_not_mixed_with_what_is_there(
    tiles: Path, tmp_path: Path, stop: StopSignal
) -> None:
    asked = config(tiles, tmp_path, rows=("msd",), seeds=("0",))
    pretend(asked, {("msd", 0): (0.5, 0.4)})
    other = dataclasses.replace(asked, recipe=dataclasses.replace(asked.recipe, epochs=9))
    with pytest.raises(UserError, match="was started with epochs=None, not 9; give another run folder"):
        sweep(other, stop)
    assert sweep(asked, stop) == 0
    settings = tmp_path / "sweeps/table6/settings.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "data": "of other tiles"}))
    with pytest.raises(UserError, match=r"are not those that .* began with"):
        sweep(asked, stop)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("test_scores.json", "", "test_scores.json is missing or damaged; remove .*seed-0, and the same command"),
        ("test_scores.json", '{"best": {"macro_f1": null}}', "test_scores.json lacks scores; remove it"),
        ("provenance.json", None, "provenance.json is missing or damaged"),
        ("config.json", None, "config.json is missing or damaged"),
        ("config.json", "[1]", "config.json is (missing or )?damaged"),
    ],
)
def test_damaged_files_of_a_finished_run_are_named(
    name: str, content: str | None, sentence: str, tiles: Path, tmp_path: Path, stop: StopSignal
) -> None:
    asked = config(tiles, tmp_path, rows=("msd",), seeds=("0",))
    pretend(asked, {("msd", 0): (0.5, 0.4)})
    path = tmp_path / "sweeps/table6/msd/seed-0" / name
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=sentence):
        sweep(asked, stop)


def test_an_unknown_table_is_answered_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse(SweepConfig, "sweep", args=["table9"])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert "'table9'" in said and all(name in said for name in TABLES)


def test_a_part_of_a_sweep_leaves_the_rest_of_its_tables(tiles: Path, tmp_path: Path, stop: StopSignal) -> None:
    whole = config(tiles, tmp_path, seeds=("0,1",))
    pretend(whole, {(row.name, seed): (0.5, 0.4) for row in TABLES["table6"].rows for seed in (0, 1)})
    assert sweep(dataclasses.replace(whole, rows=("msd",), seeds=("0",)), stop) == 0
    folder = tmp_path / "sweeps/table6"
    assert len(list(csv.DictReader((folder / "runs.csv").open()))) == 6
    assert [line["n"] for line in csv.DictReader((folder / "table6.csv").open())] == ["2", "2", "2"]


def test_what_would_fail_hours_later_is_refused_at_once(tiles: Path, tmp_path: Path, stop: StopSignal) -> None:
    tiny_vit = tmp_path / "trunk.pth"
    weights_file.write(tiny_vit, {"a": torch.zeros(1)}, {"kind": "backbone", "arch": "vit_tiny_patch16_224"})
    for changes, sentence in [
        ({"table": "table5"}, "lacks its wider view .*fov2.png, which 2 fields of view need"),
        ({"recipe": with_settings(TINY, {"interval": 12})}, "the interval must divide 16"),
        ({"table": "table7", "weights": (f"mae={tiny_vit}",)}, "holds a vit_tiny.*vit_base_patch16_224 is wanted"),
    ]:
        recipe = changes.pop("recipe", TINY)
        if "weights" in changes:
            recipe = dataclasses.replace(TINY, init=CommonRecipe().init, arch=CommonRecipe().arch)
        with pytest.raises(UserError, match=sentence):
            sweep(config(tiles, tmp_path, recipe=recipe, **changes), stop)
        assert not (tmp_path / "sweeps").exists()


def test_another_file_under_the_same_name_is_not_mixed_in(tiles: Path, tmp_path: Path, stop: StopSignal) -> None:
    trunk = tmp_path / "trunk.pth"
    metadata = {"kind": "backbone", "arch": "vit_tiny_patch16_224"}
    weights_file.write(trunk, {"a": torch.zeros(1)}, metadata)
    asked = config(tiles, tmp_path, recipe=dataclasses.replace(TINY, init=str(trunk)), rows=("msd",), seeds=("0",))
    pretend(asked, {("msd", 0): (0.5, 0.4)})
    assert sweep(asked, stop) == 0
    weights_file.write(trunk, {"a": torch.ones(1)}, metadata)
    with pytest.raises(UserError, match=r"trunk.pth has changed since runs in .*table6 began with it"):
        sweep(asked, stop)
