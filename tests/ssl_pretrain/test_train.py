"""Whole runs: they learn, end, stop, die and go on exactly."""

import json
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

from shared import weights
from shared.distributed import World
from shared.stop_signal import MARKER, STOPPED, StopSignal
from ssl_pretrain.recipes import MAE_DEMO, Recipe
from ssl_pretrain.train import train
from tests.conftest import REPOSITORY
from tests.ssl_pretrain.conftest import SMALL, gradient, tissue, write_shards


def changed(config: object, **fields: object):
    return type(config)(**{**vars(config), **fields})


@pytest.fixture
def small(tmp_path: Path, shards: Path) -> Recipe:
    """A run of 20 steps that takes two seconds."""
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
    )


def run_again(recipe: Recipe, world: World, **fields: object) -> dict[str, Tensor]:
    """The weights of a run of this recipe; the folder says whether it is a new one."""
    assert train(changed(recipe, **fields), world, StopSignal()) == 0
    return weights.read(recipe.out).tensors


def elsewhere(recipe: Recipe, name: str) -> Recipe:
    folder = recipe.run_dir.parent
    return changed(recipe, run_dir=folder / name, out=folder / f"{name}.pth")


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_and_leaves_what_it_promises(tmp_path: Path, world: World, small: Recipe):
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
    assert pictures == [f"reconstruction-{step:09d}.png" for step in (0, 25, 50, 60)]
    exported = weights.read(recipe.out)
    assert exported.metadata["samples_seen"] == 960 and exported.metadata["method"] == "mae"
    assert exported.mean == (0.7, 0.6, 0.65) and exported.arch == "vit_tiny_patch16_224"
    timm.create_model(exported.arch, img_size=64, num_classes=0).load_state_dict(exported.tensors, strict=True)
    assert json.loads((recipe.run_dir / "config.json").read_text())["method"]["mask_ratio"] == 0.75
    assert json.loads((recipe.run_dir / "shards.json").read_text())["samples"] == 40


def test_twice_five_steps_are_ten(world: World, small: Recipe):
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
    world: World, small: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv(MARKER, str(tmp_path / "marker"))
    stop = StopSignal()
    os.kill(os.getpid(), signal.SIGUSR2)
    assert train(changed(small, log_every=3), world, stop) == STOPPED
    assert (tmp_path / "marker").exists() and not small.out.exists()
    assert [path.name for path in small.run_dir.glob("*.pt")] == ["checkpoint-000000003.pt"]
    resumed = run_again(small, world)
    assert_same(resumed, run_again(elsewhere(small, "undisturbed"), world))


def test_finished_run_says_so_and_does_nothing(world: World, small: Recipe, capsys: pytest.CaptureFixture[str]):
    run_again(small, world)
    before = {path: path.stat().st_mtime_ns for path in (small.out, *small.run_dir.glob("*.pt"))}
    capsys.readouterr()
    run_again(small, world)
    assert "finished already, after 20 steps" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    small.out.unlink()  # the copy is made again
    run_again(small, world)


def test_weights_of_another_run_are_kept(world: World, small: Recipe):
    run_again(small, world, max_steps=1)
    first = small.out.read_bytes()
    run_again(changed(small, run_dir=small.run_dir.parent / "other"), world, max_steps=1)
    assert small.out.with_name("out.pth.bak").read_bytes() == first


def test_other_workers_begin_a_new_epoch(world: World, small: Recipe, capsys: pytest.CaptureFixture[str]):
    run_again(small, world, max_steps=3)
    run_again(small, world, max_steps=6, loader=changed(small.loader, workers=2))
    assert "goes on after step 3, with a new epoch" in capsys.readouterr().out


def test_damaged_checkpoint_falls_back_to_the_one_before(
    world: World, small: Recipe, capsys: pytest.CaptureFixture[str]
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
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}

    def start(name: str) -> subprocess.Popen[bytes]:
        (tmp_path / name).mkdir(exist_ok=True)
        return subprocess.Popen(words, cwd=tmp_path / name, env=environment, stdout=subprocess.DEVNULL)

    undisturbed = start("whole")
    folder = tmp_path / "killed" / "runs" / "mae_demo"
    moment = random.uniform(4, 8)
    kill_when(start("killed"), lambda: steps_logged(folder) >= moment)
    kill_when(start("killed"), lambda: bool(list(folder.glob(".checkpoint-*.tmp"))))
    assert start("killed").wait(200) == 0 and undisturbed.wait(200) == 0
    assert_same(*(weights.read(tmp_path / name / "out.pth").tensors for name in ("killed", "whole")))
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
