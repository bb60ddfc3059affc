"""What is looked at before a job is queued, on a login node."""

import dataclasses
from pathlib import Path

import pytest

from shared.errors import UserError
from shared.jobs.slurm import Slurm
from ssl_pretrain.launch import LAUNCH, train_in_slurm
from ssl_pretrain.recipes import RECIPES
from tests.ssl_pretrain.conftest import tissue, write_shards


def test_the_gpus_that_count_are_the_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = RECIPES["mae_vitb"]
    recipe = dataclasses.replace(
        recipe,
        shards=write_shards(tmp_path / "shards", [8], tissue),
        run_dir=tmp_path / "run",
        out=tmp_path / "mae.pth",
        batch_size=8,
        loader=dataclasses.replace(recipe.loader, decode="gpu"),
    )
    monkeypatch.setattr("ssl_pretrain.launch.check_slurm", lambda slurm: None)
    monkeypatch.setattr("shared.jobs.launcher.wait_in_slurm", lambda tasks, folder, slurm: 0)
    assert train_in_slurm(recipe, LAUNCH) == 0
    with pytest.raises(UserError, match=r"--loader\.decode gpu needs a GPU"):
        train_in_slurm(recipe, dataclasses.replace(LAUNCH, slurm=Slurm(gpus=0)))
