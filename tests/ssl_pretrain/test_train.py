"""Whole runs: they learn, end, stop, die and go on exactly."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from shared.errors import UserError
from shared.signals import MARKER, STOPPED, StopSignal
from shared.training.distributed import World
from shared.weights import weights_file
from ssl_pretrain.data import shard_loader
from ssl_pretrain.methods import Step
from ssl_pretrain.methods.mae import MAE
from ssl_pretrain.recipe import PretrainingRecipe
from ssl_pretrain.recipes import MAE_DEMO
from ssl_pretrain.train import train
from tests.conftest import ENVIRONMENT, stalling
from tests.ssl_pretrain import stub
from tests.ssl_pretrain.conftest import SMALL, gradient, jpeg, tissue, write_samples, write_shards
from tests.ssl_pretrain.stub import changed


@pytest.fixture
def small(tmp_path: Path, shards: Path) -> PretrainingRecipe:
    """Return a run of 20 steps that takes two seconds."""
    return changed(
        MAE_DEMO,
        shards=shards,
        run_dir=tmp_path / "run",
        out=tmp_path / "out.pth",
        method=changed(MAE_DEMO.method, image_size=64, decoder_dim=32, decoder_depth=1),
        optimiser=changed(MAE_DEMO.optimiser, warmup_samples=32),
        batch_size=8,
        samples_seen=160,
        loader=changed(MAE_DEMO.loader, workers=0),
        log_every=1,
        monitor_every=0,
    )


def run_again(recipe: PretrainingRecipe, world: World, **fields: object) -> dict[str, Tensor]:
    """Return the weights of a run of this recipe; the folder says whether it is a new one."""
    assert train(changed(recipe, **fields), world, StopSignal()) == 0
    return weights_file.read(recipe.out).tensors


def elsewhere(recipe: PretrainingRecipe, name: str) -> PretrainingRecipe:
    folder = recipe.run_dir.parent
    return changed(recipe, run_dir=folder / name, out=folder / f"{name}.pth")


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_and_leaves_what_it_promises(tmp_path: Path, world: World, small: PretrainingRecipe):
    recipe = changed(
        small,
        shards=write_shards(tmp_path / "gradients", [40], gradient),
        samples_seen=960,
        batch_size=16,
        checkpoint_every=25,
        method=changed(small.method, norm_pix_loss=False),
        optimiser=changed(small.optimiser, base_lr=0.05, warmup_samples=64),
    )
    run_again(recipe, world)
    lines = metrics(recipe.run_dir)
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert lines[0].keys() >= {"loss", "lr", "images_per_second", "data_wait_percent", "samples"}
    first, last = (sum(line["loss"] for line in part) / 5 for part in (lines[:5], lines[-5:]))
    assert last < 0.5 * first
    pictures = sorted(path.name for path in (recipe.run_dir / "pictures").iterdir())
    assert pictures.pop(0) == "augmented-000000000.png"
    assert pictures == [f"reconstruction-{step:09d}.png" for step in (0, 25, 50, 60)]
    exported = weights_file.read(recipe.out)
    assert exported.metadata["samples_seen"] == 960 and exported.metadata["method"] == "mae"
    assert exported.mean == (0.7, 0.6, 0.65) and exported.arch == "vit_tiny_patch16_224"
    timm.create_model(exported.arch, img_size=64, num_classes=0).load_state_dict(exported.tensors, strict=True)
    assert json.loads((recipe.run_dir / "config.json").read_text())["method"]["mask_ratio"] == 0.75
    assert json.loads((recipe.run_dir / "shards.json").read_text())["samples"] == 40


def test_twice_five_steps_are_ten(world: World, small: PretrainingRecipe):
    """Bit for bit, with accumulation, over the end of an epoch (5 steps of 8 images), with a worker."""
    recipe = changed(small, micro_batch=4, loader=changed(small.loader, workers=1))
    run_again(recipe, world, max_steps=5)
    resumed = run_again(recipe, world, max_steps=10)
    assert_same(resumed, run_again(elsewhere(recipe, "straight"), world, max_steps=10))
    lines = metrics(recipe.run_dir)
    assert [line["step"] for line in lines] == list(range(1, 11))
    losses = [line["loss"] for line in lines]
    assert losses == [line["loss"] for line in metrics(recipe.run_dir.parent / "straight")]


def test_told_to_stop_it_stops_at_a_checkpoint_and_goes_on(
    world: World, small: PretrainingRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Twice; at the next look, which is due after the first step of an attempt and then at every third."""
    marker = tmp_path / "marker"
    monkeypatch.setenv(MARKER, str(marker))
    due = {1: signal.SIGTERM, 3: signal.SIGUSR2}  # during the second step, and during the fourth

    def told(_method: MAE, step: Step) -> None:
        if step.number in due:
            os.kill(os.getpid(), due.pop(step.number))

    monkeypatch.setattr(MAE, "after_step", told)
    for last in (3, 4):
        assert train(changed(small, log_every=3), world, StopSignal()) == STOPPED
        assert marker.exists() and not small.out.exists()
        marker.unlink()
        assert max(path.name for path in small.run_dir.glob("*.pt")) == f"checkpoint-{last:09d}.pt"
    resumed = run_again(small, world)
    assert not marker.exists()
    assert_same(resumed, run_again(elsewhere(small, "undisturbed"), world))


def test_accumulated_passes_add_up_to_the_whole_batch(world: World, shards: Path, tmp_path: Path):
    ends = []
    for name, micro_batch in (("whole", 40), ("halves", 20), ("eighths", 5)):
        recipe = stub.recipe(shards, tmp_path / name, micro_batch=micro_batch)
        assert train(recipe, world, StopSignal()) == 0
        losses = [line["loss"] for line in metrics(recipe.run_dir)]
        ends.append((losses, recipe.method.built[-1].linear.weight.detach()))
    for losses, weight in ends[1:]:
        assert losses == pytest.approx(ends[0][0], rel=1e-5)
        torch.testing.assert_close(weight, ends[0][1], rtol=0, atol=1e-6)


def test_each_step_is_taken_with_the_learning_rate_that_is_logged(world: World, shards: Path, tmp_path: Path):
    """Six steps of 40 images: linearly from 0 to 3e-3 * 40 / 256 in two, then half a cosine wave to 0 in four."""
    recipe = stub.recipe(shards, tmp_path)
    assert train(recipe, world, StopSignal()) == 0
    peak = 3e-3 * 40 / 256
    expected = [0, peak / 2, *(peak * (1 + math.cos(math.pi * n / 4)) / 2 for n in range(4))]
    assert recipe.optimiser.built[-1].rates == pytest.approx(expected)
    assert [line["lr"] for line in metrics(recipe.run_dir)] == pytest.approx(expected)


@pytest.mark.gpu
def test_matrix_products_are_in_bfloat16_on_a_gpu_and_in_float32_on_a_cpu(shards: Path, tmp_path: Path):
    for device, expected in (("cuda", torch.bfloat16), ("cpu", torch.float32)):
        recipe = stub.recipe(shards, tmp_path / device)
        assert train(recipe, World(0, 0, 1, torch.device(device)), StopSignal()) == 0
        assert recipe.method.built[-1].dtypes == {expected}


def test_finished_run_says_so_and_does_nothing(
    world: World, small: PretrainingRecipe, capsys: pytest.CaptureFixture[str]
):
    run_again(small, world)
    before = {path: path.stat().st_mtime_ns for path in (small.out, *small.run_dir.glob("*.pt"))}
    capsys.readouterr()
    run_again(small, world)
    assert "finished already, after 20 steps" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    small.out.unlink()  # the copy is made again
    run_again(small, world)


def test_an_undecodable_image_is_survived_and_named_in_log_and_model_card(
    tmp_path: Path, world: World, small: PretrainingRecipe, capsys: pytest.CaptureFixture[str]
):
    def sample(n: int) -> dict[str, bytes]:
        return {"jpg": jpeg(tissue(n))[: 300 if n == 3 else None]}

    shards = write_samples(tmp_path / "bad", [24, 16], sample)
    run_again(small, world, shards=shards, max_steps=8, checkpoint_every=4)
    run_again(small, world, shards=shards, max_steps=10)
    name = "shard-000000.tar: patch_3"
    assert capsys.readouterr().err.count(f"warning: {name}") == 1
    assert weights_file.read(small.out).metadata["undecodable_images"] == [name]
    assert (
        f"1 could not be decoded and were replaced by their neighbours: `{name}`"
        in small.out.with_suffix(".md").read_text()
    )


def test_learning_rate_clipping_and_precision_may_change_on_resume_and_are_recorded(
    world: World, small: PretrainingRecipe
):
    run_again(small, world, max_steps=4)
    calmer = changed(small.optimiser, base_lr=1e-4, clip=1.0)
    run_again(small, world, optimiser=calmer, precision="bfloat16", max_steps=8)
    changes = json.loads((small.run_dir / "provenance.json").read_text())["changes"]
    recorded = {change["setting"]: (change["after_step"], change["now"]) for change in changes}
    assert recorded["optimiser.base_lr"] == (4, 1e-4) and recorded["optimiser.clip"] == (4, 1.0)
    assert recorded["precision"] == (4, "bfloat16")
    assert metrics(small.run_dir)[-1]["lr"] < 1e-4
    assert "optimiser.base_lr 0.004 -> 0.0001 after step 4" in small.out.with_suffix(".md").read_text()
    with pytest.raises(UserError, match=r"optimiser\.base_lr=0\.0001"):  # the run is finished with that rate
        run_again(small, world, optimiser=small.optimiser, precision="bfloat16", max_steps=8)
    with pytest.raises(UserError, match="batch_size=8"):
        run_again(small, world, batch_size=16)


def test_precision_of_the_recipe_is_that_of_matrix_products(world: World, shards: Path, tmp_path: Path):
    for precision, expected in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        recipe = stub.recipe(shards, tmp_path / precision, precision=precision)
        assert train(recipe, world, StopSignal()) == 0
        assert recipe.method.built[-1].dtypes == {expected}


def test_exhausted_gpu_memory_is_a_sentence_with_the_options(
    world: World, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def loss(*_arguments: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(stub.Line, "loss", loss)
    with pytest.raises(UserError, match=r"--micro-batch.*--checkpoint-activations"):
        train(stub.recipe(shards, tmp_path), world, StopSignal())


def test_weights_of_another_run_are_kept(world: World, small: PretrainingRecipe):
    run_again(small, world, max_steps=1)
    first = small.out.read_bytes()
    run_again(changed(small, run_dir=small.run_dir.parent / "other"), world, max_steps=1)
    assert small.out.with_name("out.pth.bak").read_bytes() == first


def test_number_of_workers_is_kept_unless_another_is_asked_for(
    world: World, small: PretrainingRecipe, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """A requeued job may find another number of cores."""
    cores = changed(small, loader=changed(small.loader, workers=None))
    monkeypatch.setattr(shard_loader, "_spare_cores", lambda: 2)
    run_again(cores, world, max_steps=3)
    monkeypatch.setattr(shard_loader, "_spare_cores", lambda: 0)
    run_again(cores, world, max_steps=4)
    out = capsys.readouterr().out
    assert "2 loader worker(s) a rank" in out and "0 loader worker(s) a rank" in out
    assert "goes on after step 3\n" in out
    run_again(small, world, max_steps=6)
    assert "goes on after step 4, with a new epoch because its division has changed" in capsys.readouterr().out


def test_a_signal_during_a_stall_of_the_loader_ends_the_run_at_a_checkpoint(
    world: World, small: PretrainingRecipe, monkeypatch: pytest.MonkeyPatch
):
    recipe = changed(small, loader=changed(small.loader, workers=1), max_steps=6, samples_seen=48)
    with monkeypatch.context() as patched:
        patched.setattr(shard_loader, "cut_batch", stalling(shard_loader.cut_batch, after=3))
        assert train(recipe, world, StopSignal()) == STOPPED
    assert [line["step"] for line in metrics(recipe.run_dir)] == [1, 2, 3]
    assert_same(run_again(recipe, world), run_again(elsewhere(recipe, "straight"), world))


@pytest.mark.parametrize(
    "change", [{"networks": {"other": torch.zeros(1)}}, {"layout": {"lanes": 2}}, {"position": 3}]
)
def test_a_checkpoint_of_another_version_says_what_to_do(
    world: World, small: PretrainingRecipe, change: dict[str, object]
):
    run_again(small, world, max_steps=1)
    (path,) = small.run_dir.glob("checkpoint-*.pt")
    torch.save(torch.load(path, weights_only=True) | change, path)
    with pytest.raises(UserError, match=r"another version.*--run-dir"):
        run_again(small, world, max_steps=2)


def test_settings_of_another_version_say_what_to_do(world: World, small: PretrainingRecipe):
    run_again(small, world, max_steps=1)
    path = small.run_dir / "config.json"
    config = json.loads(path.read_text())
    del config["method"]["mask_ratio"]
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"another version.*without the setting method\.mask_ratio; .*--run-dir"):
        run_again(small, world, max_steps=2)


def test_damaged_checkpoint_falls_back_to_the_one_before(
    world: World, small: PretrainingRecipe, capsys: pytest.CaptureFixture[str]
):
    run_again(small, world, max_steps=10, checkpoint_every=5)
    newest = small.run_dir / "checkpoint-000000010.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    resumed = run_again(small, world)
    streams = capsys.readouterr()
    assert f"warning: {newest} is damaged" in streams.err and "goes on after step 5" in streams.out
    assert_same(resumed, run_again(elsewhere(small, "whole"), world))


def test_killed_twice_it_ends_with_the_same_weights(tmp_path: Path):
    """Killed at a random step, then while it writes a checkpoint; the third attempt ends as an undisturbed run."""
    shards = write_shards(tmp_path / "shards", [24, 16], tissue)
    words = [sys.executable, "-m", "ssl_pretrain", "mae_demo", *SMALL, "--loader.workers", "1"]
    words += ["--shards", shards, "--checkpoint-every", "3", "--out", "out.pth"]

    def start(name: str) -> subprocess.Popen[bytes]:
        (tmp_path / name).mkdir(exist_ok=True)
        return subprocess.Popen(words, cwd=tmp_path / name, env=ENVIRONMENT, stdout=subprocess.DEVNULL)

    undisturbed = start("whole")
    folder = tmp_path / "killed" / "runs" / "mae_demo"
    moment = random.uniform(4, 8)
    kill_when(start("killed"), lambda: steps_logged(folder) >= moment)
    kill_when(start("killed"), lambda: bool(list(folder.glob(".checkpoint-*.tmp"))))
    assert start("killed").wait(200) == 0 and undisturbed.wait(200) == 0
    assert_same(*(weights_file.read(tmp_path / name / "out.pth").tensors for name in ("killed", "whole")))
    assert not list(folder.glob(".*.tmp"))
    assert [line["step"] for line in metrics(folder)] == list(range(1, 21))


def kill_when(process: subprocess.Popen[bytes], due: Callable[[], bool]) -> None:
    while not due():
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.001)
    process.kill()
    process.wait()


def steps_logged(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0
