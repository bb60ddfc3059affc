"""`--launcher slurm` of the training stages, and the states of jobs on a cluster with accounting."""

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.jobs.launcher import typed_command
from shared.jobs.slurm import Slurm, run_in_slurm
from shared.jobs.slurm_states import job_states
from shared.samples.sample_slides import write_tiles
from shared.signals import StopSignal
from shared.weights import weights_file
from tests.slurm.accounting import why_no_accounting
from tests.slurm.checkout import MAE, ONE_CORE, make_checkout
from tests.slurm.cluster import Cluster
from tests.slurm.test_jobs import python

FORGETFUL = "#!/bin/sh\necho slurm_load_jobs error: Invalid job id specified >&2\nexit 1\n"


def test_the_options_of_the_launcher_are_not_the_jobs():
    mine = ("--launcher", "slurm", "--slurm.options", "qos=high", "mem=64G")
    words = ("mae_vitb", *mine, "--out", "a.pth", "--slurm.gpus=2", "--seed", "3")
    assert typed_command("ssl_pretrain", words)[1:] == (
        *("-m", "ssl_pretrain", "mae_vitb", "--out", "a.pth", "--seed", "3"),
    )
    file = ("--config", "run.toml")  # which may name the launcher
    assert typed_command("finetune", file)[1:] == ("-m", "finetune", *file, "--launcher", "local")


@pytest.fixture
def accounted(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start a cluster with accounting (`slurm` only says whether there is Slurm at all)."""
    if reason := why_no_accounting():
        if os.environ.get("REQUIRE_SLURM") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    cluster = Cluster(tmp_path_factory.mktemp("accounted"), accounting=True)
    yield cluster
    cluster.stop()
    assert not cluster.strays()


@pytest.mark.slow
def test_accounting_remembers_what_squeue_has_forgotten(
    accounted: Cluster, tmp_path: Path, stop: StopSignal, monkeypatch: pytest.MonkeyPatch
):
    accounted.log_in(monkeypatch, tmp_path)
    codes = {
        "good": "print(1)",
        "bad": "import sys; sys.exit(2)",
        "killed": "import os, signal; os.kill(os.getppid(), signal.SIGKILL)",
    }
    tasks = [python(name, code, tmp_path) for name, code in codes.items()]
    states = {"good": "COMPLETED", "bad": "FAILED", "killed": "FAILED"}
    assert run_in_slurm(tasks, tmp_path / "jobs", Slurm(gpus=1, cpus=1, hours=0.1), stop) == states
    numbers = json.loads((tmp_path / "jobs" / "jobs.json").read_text())
    forgetful = tmp_path / "bin" / "squeue"
    forgetful.parent.mkdir()
    forgetful.write_text(FORGETFUL)
    forgetful.chmod(forgetful.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{forgetful.parent}:{accounted.environment['PATH']}")
    wanted = {numbers[name]: state for name, state in states.items()}
    accounted.wait_until(lambda: job_states(numbers.values()) == wanted, 20)  # the daemons' lag


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pre_training_in_two_ranks_that_is_waited_for(slurm: Cluster, tmp_path: Path):
    folder = make_checkout(tmp_path / "checkout")
    asked = ("mae_vitb", *MAE, *ONE_CORE, "--slurm.nodes", "2")

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        return slurm.stage("ssl_pretrain", *asked, *words, cwd=folder)

    # Refused before anything is queued.
    done = command("--batch-size", "9")
    assert done.returncode == 2 and "a batch of 9 cannot be shared evenly by 2 ranks" in done.stderr
    done = command("--shards", "nowhere")
    assert done.returncode == 2 and "there is no folder of shards nowhere" in done.stderr
    assert not (folder / "runs").exists()

    done = command("--max-steps", "3", "--loader.workers", "0")
    log = folder / "runs" / "mae_vitb.log"
    assert done.returncode == 0, done.stdout + done.stderr + log.read_text()
    assert "mae_vitb" in done.stdout and "COMPLETED" in done.stdout and "runs/mae_vitb.log" in done.stdout
    assert "8 images = 2 rank(s) x 4 x 1 accumulated" in log.read_text()
    assert weights_file.read(folder / "mae.pth").metadata["steps"] == 3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fine_tuning_that_fails_is_reported_with_its_last_line(slurm: Cluster, tmp_path: Path):
    folder = make_checkout(tmp_path / "checkout")
    write_tiles(folder / "data", tiles=(4, 2, 2))
    done = slurm.stage("finetune", "--init", "none.pth", *ONE_CORE, cwd=folder)
    assert done.returncode == 3, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("dpa_p2pnet") and "FAILED" in line)
    assert lines[at].endswith("runs/finetune.log") and lines[at + 1].startswith("  error: ")
    assert "none.pth" in lines[at + 1]
