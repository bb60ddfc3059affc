"""A folder that looks like a fresh clone after `make setup`, to submit batch scripts from."""

import json
import sys
import time
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.ssl_pretrain.conftest import SMALL, tissue, write_shards

ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
TWO_TASKS = ("--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1")
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1")
ONE_TASK = ("--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1")
ONE_CORE = ("--launcher", "slurm", "--slurm.gpus", "0", "--slurm.cpus", "1", "--slurm.hours", "0.2")
MAE = ("--method.arch", "vit_tiny_patch16_224", *SMALL, "--loader.workers", "1", "--samples-seen", "200")


def make_checkout(folder: Path) -> Path:
    """Make the packages, the scripts, a `.venv/bin/python` without GPUs (theirs are pretended), two shards."""
    folder.mkdir()
    for name in ("shared", "ssl_pretrain", "finetune", "patch_extraction", "slurm"):
        (folder / name).symlink_to(REPOSITORY / name)
    make_python(folder, f'CUDA_VISIBLE_DEVICES= exec {sys.executable} "$@"')
    write_shards(folder / "shards", [24, 16], tissue)
    return folder


def make_python(folder: Path, lines: str) -> None:
    """Make a `.venv/bin/python` of these lines of bash."""
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/bash\n{lines}\n")
    python.chmod(0o755)


def make_shell_stages(folder: Path, stage: str) -> Path:
    """Make a checkout whose stages are a few lines of shell; these get the name of the stage and its words."""
    make_python(folder, f'exec {sys.executable} "$@"')
    for name in ("slurm", "shared"):
        (folder / name).symlink_to(REPOSITORY / name)
    for name in ("ssl_pretrain", "patch_extraction"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").touch()
        words = f'["bash", "-c", {stage!r}, "bash", "{name}", *sys.argv[1:]]'
        (folder / name / "__main__.py").write_text(f'import os, sys\nos.execvp("bash", {words})\n')
    return folder


def wait_for_steps(checkout: Path, steps: int) -> None:
    """Wait until the run of `mae_vitb` has logged so many."""
    end = time.monotonic() + 100
    while len(metrics(checkout)) < steps:
        assert time.monotonic() < end, [path.read_text() for path in checkout.glob("*.out")]
        time.sleep(0.05)


def metrics(checkout: Path) -> list[dict]:
    path = checkout / "runs" / "mae_vitb" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
