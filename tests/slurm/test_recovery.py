"""Preempted, requeued, out of time, crashed, killed: a run of `mae_vitb.sh` ends as an undisturbed one does.

Real training in two ranks on two nodes. Each takes minutes: `pytest -m slow tests/slurm`.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shared.weights import weights_file
from tests.slurm.checkout import ENDS, MAE, TWO_NODES, make_checkout, metrics, wait_for_steps
from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SCRIPT = Path("slurm/mae_vitb.sh")
# Long enough to be disturbed in the middle; a checkpoint now and then for what comes without warning.
RUN = (*MAE, "--samples-seen", "1200", "--checkpoint-every", "15")
STEPS = 150


@pytest.fixture(scope="module")
def undisturbed(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Return the weights that everything else must end with."""
    folder = make_checkout(tmp_path_factory.mktemp("undisturbed") / "checkout")
    job = slurm.submit(SCRIPT, *RUN, cwd=folder, options=TWO_NODES)
    assert slurm.wait(job, *ENDS)["JobState"] == "COMPLETED"
    return weights_file.read(folder / "mae.pth").tensors


def assert_equal(folder: Path, undisturbed: dict[str, torch.Tensor]) -> None:
    ended = weights_file.read(folder / "mae.pth")
    assert ended.metadata["steps"] == STEPS
    assert all(torch.equal(tensor, ended.tensors[name]) for name, tensor in undisturbed.items())
    assert [line["step"] for line in metrics(folder)] == list(range(1, STEPS + 1))
    left = {path.name for path in folder.iterdir() if path.name.startswith((".requeue", ".attempts", ".mae"))}
    assert not left


def more_urgent(slurm: Cluster, _job: int) -> None:
    slurm.run(
        *("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1")
    )


def requeued(slurm: Cluster, job: int) -> None:
    slurm.run("scontrol", "requeue", job)


def without_power(slurm: Cluster, job: int) -> None:
    slurm.crash_node("n2")
    slurm.wait(job, "PENDING")
    slurm.start_node("n2")


@pytest.mark.parametrize(
    ("disturb", "options", "history", "said"),
    [
        pytest.param(more_urgent, (), ["PREEMPTED", "COMPLETED"], "by SIGTERM", id="preempted"),
        pytest.param(
            *(more_urgent, ("--partition=patient",), ["PENDING", "COMPLETED"], "by SIGTERM"),
            id="preempted with a grace time",
        ),
        pytest.param(requeued, (), ["PENDING", "COMPLETED"], "by SIGTERM", id="requeued from outside"),
        pytest.param(without_power, (), ["NODE_FAIL", "COMPLETED"], "", id="a node crashes"),
    ],
)
def test_it_goes_on_and_ends_the_same(
    slurm: Cluster,
    tmp_path: Path,
    undisturbed: dict[str, torch.Tensor],
    disturb: Callable[[Cluster, int], None],
    options: tuple[str, ...],
    history: list[str],
    said: str,
):
    folder = make_checkout(tmp_path / "checkout")
    job = slurm.submit(SCRIPT, *RUN, cwd=folder, options=(*TWO_NODES, *options))
    wait_for_steps(folder, 20)
    disturb(slurm, job)
    end = slurm.wait(job, *(state for state in ENDS if state != "NODE_FAIL"), timeout=300)
    log = (folder / f"mae_vitb-{job}.out").read_text()
    assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "1"), log
    assert slurm.history(job) == history
    assert said in log and "goes on after step" in log
    assert_equal(folder, undisturbed)


def test_a_killed_rank_ends_the_job_and_the_same_command_goes_on(
    slurm: Cluster, tmp_path: Path, undisturbed: dict[str, torch.Tensor]
):
    folder = make_checkout(tmp_path / "checkout")
    job = slurm.submit(SCRIPT, *RUN, cwd=folder, options=TWO_NODES)
    wait_for_steps(folder, 20)
    os.kill(process_of_rank(1, job), signal.SIGKILL)
    end = slurm.wait(job, *ENDS)
    log = (folder / f"mae_vitb-{job}.out").read_text()
    assert (end["JobState"], end["Restarts"]) == ("FAILED", "0"), log
    assert end["ExitCode"] in ("137:0", "143:0")  # the killed rank's, or the other's, if srun is first to end it
    assert slurm.history(job) == ["FAILED"]
    assert "task 1: Exited with exit code 137" in log and "Traceback" not in log
    run = folder / "runs" / "mae_vitb"
    assert (run / "checkpoint-000000015.pt").exists() and not (folder / "mae.pth").exists()
    again = slurm.submit(SCRIPT, *RUN, cwd=folder, options=TWO_NODES)
    assert slurm.wait(again, *ENDS)["JobState"] == "COMPLETED"
    assert_equal(folder, undisturbed)


def test_out_of_time_it_is_queued_again(slurm: Cluster, tmp_path: Path):
    """Slurm looks at limits twice a minute, and sends the warning up to half a minute early."""
    folder = make_checkout(tmp_path / "checkout")
    run = (*MAE, "--samples-seen", "8000000")
    job = slurm.submit(SCRIPT, *run, cwd=folder, options=(*TWO_NODES, "--time=1", "--signal=USR2@25"))
    slurm.wait_until(lambda: slurm.job(job)["Restarts"] == "1" and slurm.job(job)["JobState"] == "RUNNING", 150)
    log = folder / f"mae_vitb-{job}.out"
    slurm.wait_until(lambda: "goes on after step" in log.read_text(), 60)
    slurm.run("scancel", job)
    assert slurm.wait(job, *ENDS)["JobState"] == "CANCELLED"
    assert slurm.history(job) == ["PENDING", "CANCELLED"]
    assert "stopped after step" in log.read_text() and "by SIGUSR2" in log.read_text()


def process_of_rank(rank: int, job: int) -> int:
    """Find the process that trains, neither its parent in the job nor its loader worker: the oldest other."""
    wanted = {f"SLURM_PROCID={rank}".encode(), f"SLURM_JOB_ID={job}".encode()}
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = set((process / "environ").read_bytes().split(b"\0"))
            command = (process / "cmdline").read_bytes()
            if wanted <= environment and b"ssl_pretrain" in command and b"in_job" not in command:
                found.append(int(process.name))
        except OSError:
            continue
    return min(found)
