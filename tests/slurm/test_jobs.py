"""Tasks as Slurm jobs, through submitit, on a cluster without accounting."""

import dataclasses
import json
import re
import sys
import threading
import time
from pathlib import Path

import pytest
import submitit

from shared.errors import UserError
from shared.jobs.in_job import RunInJob
from shared.jobs.slurm import Slurm, are_left, run_in_slurm
from shared.jobs.slurm_states import job_states
from shared.jobs.tasks import Task
from shared.signals import StopSignal
from tests.conftest import REPOSITORY
from tests.slurm.cluster import Cluster

ASKED = Slurm(gpus=1, cpus=1, hours=0.1)
# Stops at a "checkpoint" when it is told to, and is done the second time. A second signal kills it on its way out.
STOPS_ONCE = """
import os, pathlib, signal, sys, time
from shared.signals import leave_marker
def stop(*_):
    pathlib.Path("saved").touch()
    leave_marker()
    os.kill(os.getpid(), signal.SIGKILL)
signal.signal(signal.SIGUSR2, stop)
if pathlib.Path("saved").exists():
    print("went on", flush=True)
    sys.exit()
print("began", flush=True)
time.sleep(100)
"""


@pytest.fixture
def here(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make this process one on a login node, in a folder of its own."""
    slurm.log_in(monkeypatch, tmp_path)
    return tmp_path


def python(name: str, code: str, folder: Path) -> Task:
    return Task(name, (sys.executable, "-c", code), folder / f"{name}.log")


def test_an_array_with_a_failing_and_a_dying_job_is_reported(
    here: Path, stop: StopSignal, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = {
        "good": "import os; print('gpu', os.environ['CUDA_VISIBLE_DEVICES'])",
        "bad": "import sys; print('error: no such file x.pth', file=sys.stderr); sys.exit(2)",
        # Not only the command: submitit's process goes with it, so that nobody writes a result.
        "killed": "import os, signal; print('half way', flush=True); os.kill(os.getppid(), signal.SIGKILL)",
    }
    tasks = [python(name, code, here / "logs") for name, code in codes.items()]
    monkeypatch.setenv("SBATCH_EXPORT", "NONE")  # the custom of some clusters
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "4000")  # as within a job
    asked = dataclasses.replace(ASKED, options=("mem=1G",))
    ended = {"good": "COMPLETED", "bad": "FAILED", "killed": "FAILED"}
    assert run_in_slurm(tasks, here / "jobs", asked, stop) == ended
    numbers = json.loads((here / "jobs/jobs.json").read_text())
    assert {number.partition("_")[2] for number in numbers.values()} == {"0", "1", "2"}
    assert job_states(numbers.values()) == {numbers[name]: state for name, state in ended.items()}
    said = capfd.readouterr().out.splitlines()
    log = (here / "logs/good.log").read_text()
    assert log.startswith("$ python -c") and re.search(r"^gpu [0-7]$", log, re.MULTILINE)
    for name, line in (("bad", "  error: no such file x.pth"), ("killed", "  half way")):
        at = next(i for i, text in enumerate(said) if text.startswith(f"{name} ") and "FAILED" in text)
        assert f"{here}/logs/{name}.log" in said[at] and said[at + 1] == line
    script = next((here / "jobs").glob("*_submission.sh")).read_text()
    assert "--array=0-2%3" in script and "--signal=USR2@180" in script and "--requeue" in script


def test_warned_it_is_queued_again_and_cancelled_it_stays_cancelled(
    slurm: Cluster, here: Path, stop: StopSignal
) -> None:
    tasks = [python("warned", STOPS_ONCE, here), python("cancelled", STOPS_ONCE.replace("saved", "-"), here)]

    def disturb() -> None:
        for task in tasks:
            until(lambda task=task: task.log.exists() and "began" in task.log.read_text().splitlines())
        numbers = json.loads((here / "jobs/jobs.json").read_text())
        slurm.run("scancel", "--signal=USR2", numbers["warned"])
        slurm.run("scancel", numbers["cancelled"])

    other = threading.Thread(target=disturb)
    other.start()
    assert not are_left(run_in_slurm(tasks, here / "jobs", ASKED, stop))
    other.join()
    numbers = json.loads((here / "jobs/jobs.json").read_text())
    assert tasks[0].log.read_text().splitlines()[-1] == "went on"
    assert slurm.job(numbers["warned"])["Restarts"] == "1" and not list(here.glob(".requeue-*"))
    assert job_states(numbers.values()) == {numbers["warned"]: "COMPLETED", numbers["cancelled"]: "CANCELLED"}


@pytest.mark.slow
def test_a_job_that_gets_nowhere_is_not_queued_for_ever(
    slurm: Cluster, here: Path, stop: StopSignal, capfd: pytest.CaptureFixture[str]
) -> None:
    stuck = "from shared.signals import leave_marker\nleave_marker('before its first step')\nraise SystemExit(85)"
    assert run_in_slurm([python("stuck", stuck, here)], here / "jobs", ASKED, stop) == {"stuck": "FAILED"}
    number = json.loads((here / "jobs/jobs.json").read_text())["stuck"]
    assert slurm.history(number) == ["PENDING", "PENDING", "FAILED"]
    said = capfd.readouterr().out.splitlines()[-1]
    assert said.startswith("  error: three attempts stopped before its first step, so the job is not queued again")
    assert not list(here.glob(".*"))


def test_where_the_controller_does_not_answer_nothing_is_submitted(
    here: Path, stop: StopSignal, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "jobs").mkdir()
    (here / "jobs/jobs.json").write_text('{"a": "7"}')
    monkeypatch.setattr("shared.jobs.slurm.job_states", lambda numbers: {})
    monkeypatch.setattr("shared.jobs.slurm.time.sleep", lambda seconds: None)
    with pytest.raises(UserError, match=r"Slurm does not say .*jobs\.json are .*nothing was submitted"):
        run_in_slurm([python("a", "", here)], here / "jobs", ASKED, stop)


RANKS = """
import os, pathlib, signal, sys, time
from shared.signals import STOPPED, leave_marker
environment = os.environ
rank = int(environment["SLURM_PROCID"])
signal.signal(signal.SIGUSR2, lambda *_: (rank or leave_marker("here"), sys.exit(STOPPED)))
print(rank, "of", environment["SLURM_NTASKS"], "at", environment["MASTER_ADDR"], len(environment["MASTER_PORT"]),
      "cores", environment["SRUN_CPUS_PER_TASK"], flush=True)
if "SLURM_RESTART_COUNT" not in environment:
    time.sleep(100)
"""


def test_several_ranks_meet_are_queued_again_as_one_and_others_wait_for_them(
    slurm: Cluster, here: Path, stop: StopSignal
) -> None:
    ranks, last = python("ranks", RANKS, here), python("last", "print('packed')", here)

    def warn() -> None:
        logs = [here / "ranks.log", here / "ranks-rank1.log"]
        until(lambda: all(log.exists() and " of 2 " in log.read_text() for log in logs))
        slurm.run("scancel", "--signal=USR2", json.loads((here / "jobs/jobs.json").read_text())["ranks"])

    other = threading.Thread(target=warn)
    other.start()
    asked = Slurm(nodes=2, gpus=1, cpus=3, hours=0.1)
    states = run_in_slurm([ranks], here / "jobs", asked, stop, then=last)
    other.join()
    assert states == {"ranks": "COMPLETED", "last": "COMPLETED"}
    numbers = json.loads((here / "jobs/jobs.json").read_text())
    assert slurm.history(numbers["ranks"]) == ["PENDING", "COMPLETED"]
    assert slurm.job(numbers["last"])["StartTime"] >= slurm.job(numbers["ranks"])["EndTime"]
    for rank, log in enumerate(("ranks.log", "ranks-rank1.log")):
        said = [line for line in (here / log).read_text().splitlines() if line[0] == str(rank)]
        assert said == [f"{rank} of 2 at n1 5 cores 3"] * 2


def test_told_to_stop_it_leaves_the_jobs_and_waits_for_the_same_ones_next_time(
    here: Path, stop: StopSignal, capfd: pytest.CaptureFixture[str]
) -> None:
    waits = "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.05)"
    tasks = [python("one", waits, here), python("two", "print(1)", here)]
    timer = threading.Timer(3, lambda: setattr(stop, "received", "SIGINT"))
    timer.start()
    assert are_left(run_in_slurm(tasks, here / "jobs", ASKED, stop))
    numbers = json.loads((here / "jobs/jobs.json").read_text())
    assert f"scancel {numbers['one'].split('_')[0]})" in capfd.readouterr().out
    stop.received = None
    threading.Timer(1, lambda: (here / "go").touch()).start()
    assert run_in_slurm(tasks[:1], here / "jobs", ASKED, stop) == {"one": "COMPLETED"}
    assert json.loads((here / "jobs/jobs.json").read_text()) == {"one": numbers["one"]}
    assert f"one: job {numbers['one']} is with Slurm already" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (Slurm(partition="none", gpus=0), "invalid partition specified: none"),
        (Slurm(gpus=9), "Requested node configuration is not available"),
        (Slurm(gpus=0, options=("frobnicate=1",)), "unrecognized option '--frobnicate=1'"),
    ],
)
def test_what_slurm_refuses_is_one_sentence(asked: Slurm, reason: str, here: Path, stop: StopSignal) -> None:
    with pytest.raises(UserError, match="Slurm refuses the jobs") as refused:
        run_in_slurm([python("a", "", here), python("b", "", here)], here / "jobs", asked, stop)
    assert reason in str(refused.value), refused.value
    assert not (here / "jobs/jobs.json").exists()


def test_jobs_that_slurm_has_forgotten_are_gone(here: Path) -> None:
    assert job_states(["99999", "99999_3"]) == {"99999": "GONE", "99999_3": "GONE"}


def test_a_task_runs_under_submitit_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    executor = submitit.AutoExecutor(tmp_path / "jobs", cluster="local")
    executor.update_parameters(timeout_min=2)
    tasks = [python("good", "print('hello')", tmp_path), python("bad", "raise SystemExit(4)", tmp_path)]
    good, bad = [executor.submit(RunInJob(task)) for task in tasks]
    assert good.result() is None
    assert tasks[0].log.read_text().endswith("\nhello\n")
    until(bad.done)
    assert not bad.paths.result_pickle.exists()


def until(due, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not due():
        assert time.monotonic() < end
        time.sleep(0.05)
