"""The scripts of slurm/, as they are, on a real Slurm: tiny networks, pretended GPUs, everything else real."""

from pathlib import Path

import pytest
import torch

from shared.weights import weights_file
from tests.conftest import REPOSITORY
from tests.slurm.checkout import MAE, ONE_TASK, TWO_TASKS, make_checkout, metrics, wait_for_steps
from tests.slurm.cluster import Cluster

SCRIPTS = sorted(path for path in (REPOSITORY / "slurm").glob("*.sh") if path.name != "launch.sh")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return what a fresh clone looks like after `make setup` and a harvest."""
    return make_checkout(tmp_path / "checkout")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_header_is_accepted_as_it_is(slurm: Cluster, script: Path):
    done = slurm.run("sbatch", "--test-only", "--partition=large", script, check=False)
    assert done.returncode == 0 and "to start at" in done.stderr, done.stderr


def test_warned_before_the_end_it_is_requeued_and_ends_with_the_same_weights(slurm: Cluster, tmp_path: Path):
    """Two tasks on a node each time; one run undisturbed, one warned with USR2 after its second step."""
    folders = [make_checkout(tmp_path / name) for name in ("whole", "warned")]
    whole, warned = (slurm.submit(Path("slurm/mae_vitb.sh"), *MAE, cwd=f, options=TWO_TASKS) for f in folders)
    wait_for_steps(folders[1], 2)
    slurm.run("scancel", "--signal=USR2", warned)
    for job, folder, restarts in ((whole, folders[0], "0"), (warned, folders[1], "1")):
        log = folder / f"mae_vitb-{job}.out"
        end = slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
        assert (end["JobState"], end["Restarts"]) == ("COMPLETED", restarts), log.read_text()
    text = (folders[1] / f"mae_vitb-{warned}.out").read_text()
    assert "stopped after step" in text and "by SIGUSR2" in text and "goes on after step" in text
    assert "8 images = 2 rank(s) x 4 x 1 accumulated" in text
    ends = [weights_file.read(folder / "mae.pth") for folder in folders]
    assert ends[0].metadata["steps"] == 25 == ends[1].metadata["steps"]
    assert all(torch.equal(tensor, ends[1].tensors[name]) for name, tensor in ends[0].tensors.items())
    assert [line["step"] for line in metrics(folders[1])] == list(range(1, 26))
    assert not list(folders[1].glob(".requeue-*"))


def test_cancelled_it_stays_cancelled(slurm: Cluster, checkout: Path):
    job = slurm.submit(Path("slurm/mae_vitb.sh"), *MAE, cwd=checkout, options=ONE_TASK)
    wait_for_steps(checkout, 2)
    slurm.run("scancel", job)
    end = slurm.wait(job, "CANCELLED")
    slurm.wait_until_idle()
    assert slurm.job(job)["JobState"] == "CANCELLED" and end["Restarts"] == "0"
    assert not (checkout / "mae.pth").exists() and not list(checkout.glob(".requeue-*"))


def test_failure_at_the_start_is_not_requeued(slurm: Cluster, checkout: Path):
    (checkout / "shards" / "index.json").unlink()
    for path in (checkout / "shards").glob("*.tar"):
        path.unlink()
    job = slurm.submit(Path("slurm/mae_vitb.sh"), *MAE, cwd=checkout, options=ONE_TASK)
    end = slurm.wait(job, "FAILED", "COMPLETED")
    text = (checkout / f"mae_vitb-{job}.out").read_text()
    assert (end["JobState"], end["ExitCode"], end["Restarts"]) == ("FAILED", "2:0", "0"), text
    assert "error: there are no shards in shards; make them with: python -m patch_extraction" in text
