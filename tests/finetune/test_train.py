"""The loop as users start it: resumed, killed, told to stop, given wrong input."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from finetune.__main__ import main
from finetune.datasets import DataOptions, load_data
from finetune.launch import LAUNCH
from finetune.recipes import RECIPES
from finetune.step import update
from finetune.train import begin, train
from finetune.training.augment import AugmentConfig
from finetune.training.criterion import Targets
from finetune.training.tile_loader import Batch, TileStream, tile_batches
from shared.cli import as_plain, parse_beside
from shared.errors import UserError
from shared.files import write_json
from shared.model.detector_file import load_detector
from shared.samples.sample_slides import write_tiles
from shared.signals import STOPPED, StopSignal
from shared.training.checkpoint import newest_step
from shared.training.distributed import World
from tests.conftest import ENVIRONMENT, Command, InProcess, free_port, signals_kept, stalling

TINY = (
    "--init",
    "random",
    "--arch",
    "vit_tiny_patch16_224",
    "--augment.crop",
    64,
    "--batch-size",
    2,
    "--workers",
    1,
)
# Four tiles, two a step in a pass each: an epoch is two steps. All that could make a resumed run another one.
FEW = (*TINY, "--ema", 0.9, "--accumulate", 2, "--precision", "bfloat16", "--epochs", 3)
FEW = (*FEW, "--evaluate-every", 1, "--checkpoint-every", 1)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    write_tiles(folder, tiles=(4, 1, 2), side=96)
    return folder


@pytest.fixture(scope="module")
def undisturbed(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    words = [sys.executable, "-m", "finetune", *map(str, FEW), "--data", str(tiles)]
    subprocess.run(words, cwd=folder, env=ENVIRONMENT, check=True, capture_output=True, timeout=200)
    return folder


def weights(folder: Path, name: str = "last.pth") -> dict[str, torch.Tensor]:
    return torch.load(folder / "runs/finetune" / name, weights_only=True)["state_dict"]


def assert_same_weights(first: Path, second: Path, name: str = "last.pth") -> None:
    a, b = weights(first, name), weights(second, name)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def steps_logged(folder: Path) -> list[int]:
    lines = (folder / "runs/finetune/metrics.jsonl").read_text().splitlines()
    return [line["step"] for line in map(json.loads, lines) if "loss" in line]


def test_a_run_leaves_weights_scores_curves_and_pictures(undisturbed: Path) -> None:
    run = undisturbed / "runs/finetune"
    names = {path.name for path in (run / "pictures").iterdir()}
    evaluated = {f"proposals-{step:06d}.png" for step in (0, 2, 4, 6)}
    assert names == {"augmented.png", "comparison-best.png", "comparison-last.png", *evaluated}
    assert set(json.loads((run / "test_scores.json").read_text())) == {"best", "last"}
    assert json.loads((run / "config.json").read_text())["learning_rate"] == 3e-4
    assert steps_logged(undisturbed) == [1, 2, 3, 4, 5, 6]
    assert (undisturbed / "detector.pth").read_bytes() == (run / "best.pth").read_bytes()
    metadata = json.loads(torch.load(undisturbed / "detector.pth", weights_only=True)["metadata"])
    assert metadata["classes"] == ["negative", "positive"]
    assert {"mpp", "recipe", "git_commit", "versions", "seed", "config"} <= metadata.keys()
    assert 0 < metadata["operating_point"]["threshold"] < 1
    assert not list(undisturbed.rglob("*.tmp"))


def test_two_halves_equal_the_whole(command: Command, tiles: Path, tmp_path: Path, undisturbed: Path) -> None:
    done = command("finetune", *FEW, "--data", tiles, "--max-steps", 3)
    assert done.returncode == 0, done.stderr
    assert steps_logged(tmp_path) == [1, 2, 3]
    done = command("finetune", *FEW, "--data", tiles)
    assert "goes on after step 3" in done.stdout, done.stderr
    assert_same_weights(tmp_path, undisturbed)
    assert_same_weights(tmp_path, undisturbed, "best.pth")
    assert steps_logged(tmp_path) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR2, signal.SIGTERM])
def test_a_killed_run_goes_on(
    number: signal.Signals, command: Command, tiles: Path, tmp_path: Path, undisturbed: Path
) -> None:
    words = [sys.executable, "-m", "finetune", *map(str, FEW), "--data", str(tiles)]
    with subprocess.Popen(words, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.DEVNULL) as process:
        metrics = tmp_path / "runs/finetune/metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and '"step": 3' in metrics.read_text()):
            time.sleep(0.01)
        process.send_signal(number)
        code = process.wait(60)
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 85)
    done = command("finetune", *FEW, "--data", tiles)
    assert done.returncode == 0, done.stderr
    assert "goes on after step" in done.stdout
    assert_same_weights(tmp_path, undisturbed)
    assert steps_logged(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_a_killed_loader_process_ends_the_run_in_one_sentence(tiles: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "finetune", *map(str, TINY), "--data", str(tiles)]
    with subprocess.Popen(words, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        metrics = tmp_path / "runs/finetune/metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and '"step": 3' in metrics.read_text()):
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in map(int, children):
            os.kill(child, signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "error: a loader process was killed" in errors
    assert "Traceback" not in errors


def test_a_damaged_checkpoint_costs_one_checkpoint(
    command: Command, tiles: Path, tmp_path: Path, undisturbed: Path
) -> None:
    command("finetune", *FEW, "--data", tiles, "--max-steps", 4)
    newest = max((tmp_path / "runs/finetune").glob("checkpoint-*.pt"))
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    done = command("finetune", *FEW, "--data", tiles)
    assert f"{newest.name} is damaged" in done.stderr
    assert "goes on after step 2" in done.stdout
    assert_same_weights(tmp_path, undisturbed)


def test_another_detector_is_kept_as_bak(command: Command, tiles: Path, tmp_path: Path, undisturbed: Path) -> None:
    (tmp_path / "detector.pth").write_bytes((undisturbed / "detector.pth").read_bytes())
    done = command("finetune", *TINY, "--data", tiles, "--epochs", 0)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "detector.pth.bak").read_bytes() == (undisturbed / "detector.pth").read_bytes()


def test_two_ranks_train_as_one(tiles: Path, tmp_path: Path) -> None:
    """Two ranks see one's samples and begin with its weights; dropout and the means over proposals differ."""
    words = ["-m", "finetune", *map(str, TINY), "--data", str(tiles), "--epochs", "1", "--learning-rate", "1e-3"]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    losses = {}
    for name, start in {"one": [], "two": launcher}.items():
        run = ["--run-dir", name, "--out", f"{name}.pth"]
        done = subprocess.run(
            [sys.executable, *start, *words, *run], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\ntrunk ") == 1
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses[name] = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
    assert len(losses["two"]) == 2
    assert losses["two"][0] == pytest.approx(losses["one"][0], rel=0.02)
    assert losses["two"][1] == pytest.approx(losses["one"][1], rel=0.2)


def test_what_fails_on_one_rank_ends_all_in_one_sentence(tiles: Path, tmp_path: Path) -> None:
    """Only the first rank writes into the run folder, and finds that it is none."""
    (tmp_path / "runs/finetune").mkdir(parents=True)
    (tmp_path / "runs/finetune/slide.svs").touch()
    words = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    words += ["-m", "finetune", *map(str, TINY), "--data", str(tiles)]
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stderr.count("error: runs/finetune is no run folder (it holds slide.svs)") == 1
    assert "Connection closed" not in done.stderr and "finetune/train.py" not in done.stderr


def test_other_data_are_not_gone_on_with(command: Command, tiles: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiles, data)
    assert command("finetune", *FEW, "--max-steps", 1).returncode == 0
    path = next(data.glob("train/points/*.csv"))
    path.write_text(path.read_text() + "5,5,1\n")
    done = command("finetune", *FEW)
    assert done.returncode == 2
    assert "the tiles or cells of --data have changed since step 1 of runs/finetune" in done.stderr


def test_the_ranks_of_a_step_get_different_tiles(tiles: Path) -> None:
    data = load_data(DataOptions(data=tiles)).splits["train"]
    stream = TileStream(data, RECIPES["demo"].augment, seed=0)
    cpu = torch.device("cpu")
    alone = [batch.image_BCHW for batch in tile_batches(stream, 4, range(2), World(0, 0, 1, cpu), 0)]
    ranks = [
        [batch.image_BCHW for batch in tile_batches(stream, 4, range(2), World(rank, rank, 2, cpu), 0)]
        for rank in (0, 1)
    ]
    for step, whole_BCHW in enumerate(alone):
        dealt_BCHW = torch.stack([ranks[0][step], ranks[1][step]], dim=1).flatten(0, 1)
        assert torch.equal(dealt_BCHW, whole_BCHW)
        assert len(dealt_BCHW.flatten(1).unique(dim=0)) == 4


def test_loaded_batch_norms_keep_their_statistics_and_learn_their_scale(
    command: Command, tiles: Path, tmp_path: Path
) -> None:
    before = timm.create_model("resnet50").state_dict()
    torch.save(before, tmp_path / "resnet.pth")
    words = ("--init", "resnet.pth", "--data", tiles, "--augment.crop", 64, "--batch-size", 2)
    done = command("finetune", *words, "--epochs", 1, "--max-steps", 2, "--learning-rate", 1e-2)
    assert done.returncode == 0, done.stderr
    after = weights(tmp_path)
    for name in ("bn1", "layer2.3.bn2", "layer4.2.bn3"):
        trained = {
            part: after[f"backbone.trunk.{name}.{part}"] for part in ("running_mean", "running_var", "weight")
        }
        assert torch.equal(trained["running_mean"], before[f"{name}.running_mean"])
        assert torch.equal(trained["running_var"], before[f"{name}.running_var"])
        assert not torch.equal(trained["weight"], before[f"{name}.weight"])


@pytest.mark.parametrize(("arch", "views"), [("resnet50", 2), ("vit_tiny_patch16_224", 1)])
def test_batch_norms_train_unless_their_statistics_were_loaded(
    arch: str, views: int, tiles: Path, tmp_path: Path
) -> None:
    """ResNet-50's are held in the trunk of every view; a ViT has none, and its adapter's start from chance."""
    torch.save(timm.create_model(arch).state_dict(), tmp_path / "trunk.pth")
    network = dataclasses.replace(RECIPES["dpa_p2pnet"].network, views=views)
    common = {"arch": arch, "network": network, "augment": AugmentConfig(crop=64)}
    data = load_data(DataOptions(data=tiles))
    for split, each in data.splits.items():
        data.splits[split] = [dataclasses.replace(tile, wider=(tile.image,) * (views - 1)) for tile in each]
    for init in ("random", str(tmp_path / "trunk.pth")):
        recipe = dataclasses.replace(RECIPES["dpa_p2pnet"], init=init, **common)
        training, _ = begin(recipe, data, World(0, 0, 1, torch.device("cpu")))
        training.detector.eval()
        training.training_mode()
        norms = [m for m in training.detector.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
        in_trunks = {m for trunk in training.detector.trunks() for m in trunk.modules()}
        held = [m for m in norms if m in in_trunks] if init != "random" else []
        assert len(held) == (53 * views if (arch, init != "random") == ("resnet50", True) else 0)
        assert [m.training for m in norms] == [m not in held for m in norms]
        assert len(norms) >= 4


@pytest.mark.parametrize("option", [{"freeze_trunk": True}, {"lora": 2}])
def test_a_network_without_a_trunk_has_nothing_to_freeze(option: dict[str, Any], tiles: Path) -> None:
    recipe = dataclasses.replace(RECIPES["unet"], init="random", **option)
    with pytest.raises(UserError, match="unet has no trunk"):
        begin(recipe, load_data(DataOptions(data=tiles)), World(0, 0, 1, torch.device("cpu")))


def test_without_a_validation_no_f1_is_stated(tmp_path: Path, in_process: InProcess) -> None:
    write_tiles(tmp_path / "data", tiles=(2, 0, 0), side=96)
    words = ("--init", "random", "--arch", "regnetx_002", "--data", tmp_path / "data", "--augment.crop", 64)
    words += ("--epochs", 1, "--batch-size", 2, "--workers", 0, "--run-dir", tmp_path / "run")
    code, printed, progress = in_process(main, *words, "--out", tmp_path / "d.pth")
    assert code == 0, printed + progress
    assert "best_f1=-," in progress
    metadata = json.loads(torch.load(tmp_path / "d.pth", weights_only=True)["metadata"])
    assert metadata["best_validation_f1"] is None


def test_the_best_weights_are_those_of_the_best_validation(undisturbed: Path) -> None:
    lines = map(json.loads, (undisturbed / "runs/finetune/metrics.jsonl").read_text().splitlines())
    scores = {line["step"]: line["val/macro_f1"] for line in lines if "val/macro_f1" in line and line["step"]}
    metadata = json.loads(torch.load(undisturbed / "detector.pth", weights_only=True)["metadata"])
    assert metadata["step"] == max(scores, key=lambda step: (scores[step], step))  # ties keep the later weights
    assert metadata["best_validation_f1"] == pytest.approx(max(scores.values()))


def test_training_starts_from_a_detector(command: Command, tiles: Path, undisturbed: Path, tmp_path: Path) -> None:
    words = ("--batch-size", 2, "--workers", 0, "--augment.crop", 64, "--epochs", 0, "--data", tiles)
    done = command("finetune", *words, "--init", undisturbed / "detector.pth", "--out", "same.pth")
    assert done.returncode == 0, done.stderr
    assert "negative, positive" in done.stdout
    files = (undisturbed / "detector.pth", tmp_path / "same.pth")
    first, second = (torch.load(path, weights_only=True)["state_dict"] for path in files)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_validation_tiles_without_cells_choose_no_weights(command: Command, tiles: Path, tmp_path: Path) -> None:
    shutil.copytree(tiles, tmp_path / "data")
    for points in (tmp_path / "data/val/points").iterdir():
        points.write_text("x,y,class\n")
    done = command("finetune", *TINY, "--epochs", 2, "--evaluate-every", 1)
    assert done.returncode == 0, done.stderr
    assert "val tiles of data" in done.stdout
    metadata = json.loads(torch.load(tmp_path / "detector.pth", weights_only=True)["metadata"])
    assert metadata["step"] == 4  # the last


def test_the_optimiser_gets_the_recipe_s_numbers(tiles: Path) -> None:
    """One AdamW step by hand: clipped gradient, decay and rate of the recipe."""
    recipe = dataclasses.replace(
        RECIPES["dpa_p2pnet"],
        init="random",
        arch="vit_tiny_patch16_224",
        source=DataOptions(data=tiles),
        clip_norm=1e-3,
        weight_decay=0.5,
        learning_rate=0.01,
    )
    data = load_data(recipe.source)
    training, _ = begin(recipe, data, World(0, 0, 1, torch.device("cpu")))
    name, parameter = next(iter(training.detector.named_parameters()))
    before = parameter.detach().clone()
    targets = [Targets(torch.rand(5, 2) * 64, torch.zeros(5, dtype=torch.long))]
    image_BCHW = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    logged = update(recipe, training, Batch(image_BCHW, targets), 0.01)
    gradients = [p.grad for p in training.detector.parameters() if p.grad is not None]
    assert logged["gradient_norm"] > 1e-2
    assert torch.stack([g.norm() for g in gradients]).norm().item() == pytest.approx(1e-3, rel=1e-3)
    assert parameter.grad is not None, name
    # First step of AdamW: both moments are unbiased to the gradient itself and its square.
    by_hand = before * (1 - 0.01 * 0.5) - 0.01 * parameter.grad / (parameter.grad.abs() + 1e-8)
    assert torch.allclose(parameter.detach(), by_hand, atol=1e-6)


def test_weights_for_other_suffixes_are_rewritten(
    command: Command, tiles: Path, tmp_path: Path, undisturbed: Path
) -> None:
    done = command("finetune", *TINY, "--data", tiles, "--epochs", 0, "--out", "a.safetensors")
    assert done.returncode == 0, done.stderr
    detector, metadata = load_detector(tmp_path / "a.safetensors")
    assert metadata["classes"] == ["negative", "positive"]
    assert torch.equal(detector.state_dict()["neck.lateral.0.weight"], weights(tmp_path)["neck.lateral.0.weight"])


def test_wrong_input_is_one_sentence_and_leaves_nothing(command: Command, tmp_path: Path) -> None:
    done = command("finetune", "--init", "random")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "--data" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("nonsense",), "there is no recipe 'nonsense'; choose one of dpa_p2pnet"),
        (("--init", "none.pth"), "there is no weights file none.pth"),
        ((*TINY, "--interval", 64), "more than proposals at 64 px; give --interval 16"),
        ((*TINY, "--interval", 0), "--interval 0 is out of range"),
        ((*TINY, "--batch-size", 0), "--batch-size 0 is out of range"),
        ((*TINY, "--epochs", -1), "--epochs -1 is out of range"),
        ((*TINY, "--seed", -1), "--seed -1 is out of range"),
        ((*TINY, "--augment.crop", 0), "--augment.crop 0 is out of range"),
        ((*TINY, "--augment.scale", 2, 1), "--augment.scale 2.0 is out of range"),
        ((*TINY, "--slide-mpp", 0), "--slide-mpp"),
        ((*TINY, "--out", "."), "is a folder; give the name of a weights file"),
        ((*TINY, "--out", "detector.pt"), "does not end in .pth or .safetensors"),
        ((*TINY, "--out", "/proc/detector.pth"), "/proc/detector.pth cannot be written ("),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_written(
    words: tuple, sentence: str, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(sentence)):
        start(*words, "--data", tiles)
    assert not list(tmp_path.iterdir())


def test_the_weights_to_start_from_are_not_overwritten(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mae.pth").write_bytes(b"weights")
    with pytest.raises(UserError, match=r"--out mae\.pth is the file of --init; give the detector another name"):
        start(*TINY, "--data", tiles, "--init", "mae.pth", "--out", "mae.pth")
    assert (tmp_path / "mae.pth").read_bytes() == b"weights" and len(list(tmp_path.iterdir())) == 1


def test_a_loss_that_is_not_finite_ends_the_run_in_a_sentence(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"not a number at step [2-4]; .* lower --learning-rate"):
        start(*TINY, "--data", tiles, "--learning-rate", 1e30)
    assert not (tmp_path / "detector.pth").exists()


@pytest.mark.parametrize("name", RECIPES)
def test_the_saved_config_of_a_run_gives_its_recipe(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    write_json(path, as_plain(RECIPES[name]))
    recipe, _ = parse_beside(RECIPES, "dpa_p2pnet", "finetune", "", LAUNCH, ["--config", str(path)])
    assert recipe == RECIPES[name]


def test_a_run_is_not_resumed_with_other_settings(tiles: Path, undisturbed: Path) -> None:
    with pytest.raises(UserError, match=r"was started with epochs=3, not 9; give another run folder"):
        start(*FEW, "--data", tiles, "--run-dir", undisturbed / "runs/finetune", "--epochs", 9)


def start(*words: object) -> int:
    """`python -m finetune WORDS`, in this process."""
    recipe, _ = parse_beside(RECIPES, "dpa_p2pnet", "finetune", "", LAUNCH, [str(word) for word in words])
    stop = StopSignal()
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)  # the tests themselves can still be told to stop
    return train(recipe, World(0, 0, 1, torch.device("cpu")), stop)


def test_a_run_with_lora_resumes_and_publishes_plain_weights(
    tiles: Path, tmp_path: Path, stop: StopSignal
) -> None:
    """Saved, validated and averaged between steps, it goes on; of the trunk only attention has changed."""
    recipe = dataclasses.replace(
        RECIPES["dpa_p2pnet"],
        init="random",
        arch="vit_tiny_patch16_224",
        source=DataOptions(data=tiles),
        augment=AugmentConfig(crop=64),
        batch_size=2,
        workers=0,
        epochs=2,
        evaluate_every=1,
        checkpoint_every=1,
        lora=2,
        learning_rate=0.01,
        run_dir=tmp_path / "run",
        out=tmp_path / "detector.pth",
    )
    world = World(0, 0, 1, torch.device("cpu"))
    for max_steps in (2, None):
        assert train(dataclasses.replace(recipe, max_steps=max_steps), world, stop) == 0
    state, _ = begin(recipe, load_data(recipe.source), world)
    drawn = state.detector.backbone.trunk.state_dict()
    trained = load_detector(recipe.run_dir / "last.pth")[0].backbone.trunk.state_dict()
    kept = {name for name in trained if name in drawn and torch.equal(trained[name], drawn[name])}
    others = {name.removesuffix(".weight") for name in trained.keys() - kept}
    assert others == {f"blocks.{block}.attn.{layer}" for block in range(12) for layer in ("qkv", "proj")}
    original = drawn["blocks.0.attn.qkv.parametrizations.weight.original"]
    assert not torch.equal(trained["blocks.0.attn.qkv.weight"], original)


def test_a_signal_during_a_stall_of_the_loader_ends_the_run_at_a_checkpoint(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [str(word) for word in (*FEW, "--data", tiles)]
    recipe, _ = parse_beside(RECIPES, "dpa_p2pnet", "finetune", "", LAUNCH, words)
    with monkeypatch.context() as patched, signals_kept():
        patched.setattr(TileStream, "_augmented", stalling(TileStream._augmented, after=6))
        assert train(recipe, World(0, 0, 1, torch.device("cpu")), StopSignal()) == STOPPED
    assert newest_step(recipe.run_dir) == 3
    assert start(*words) == 0
    assert steps_logged(tmp_path) == [1, 2, 3, 4, 5, 6]
