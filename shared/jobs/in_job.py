"""Run a command as a task of a Slurm job and requeue the job if the command stops at a checkpoint.

Batch scripts use `srun python -m shared.jobs.in_job MODULE [WORD ...]`, submitit uses `RunInJob`. The command
of the first task reports a checkpoint by the marker file that `shared.signals.leave_marker` writes. An exit code
would be lost if a second signal arrives while the interpreter shuts down, or if another task ends first.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shared.cli import run
from shared.jobs.job_report import log_of_rank
from shared.jobs.slurm_states import job_states
from shared.jobs.tasks import Process, Task, start_task, wait_for
from shared.signals import MARKER, STOPPED, StopSignal

# Seconds that a task may continue after its checkpoint is written, or after another task has ended.
GRACE_S = 120
# A command that stops this often at the same step makes no progress within the time limit.
MAX_STOPS_AT_ONE_STEP = 3


@dataclass(frozen=True)
class RunInJob:
    """Run a task inside a Slurm job, under submitit; each rank has its own log."""

    task: Task

    def __call__(self) -> None:
        """Run the task and exit with its code."""
        task = dataclasses.replace(self.task, log=log_of_rank(self.task, _rank()))

        def warn(sentence: str) -> None:
            with task.log.open("a", encoding="utf-8") as log:
                log.write(f"{sentence}\n")

        if code := run_in_job(lambda: start_task(task), task.log.parent, warn):
            raise SystemExit(code)


def main() -> int:
    """Run `python -m` with the words of this command line; returns its exit code."""
    words = (sys.executable, "-m", *sys.argv[1:])
    return run_in_job(lambda: subprocess.Popen(words), Path(), lambda text: print(text, file=sys.stderr))


def run_in_job(start: Callable[[], Process], folder: Path, warn: Callable[[str], None]) -> int:
    """Run a command in this task of the job, and requeue the job if it stopped at a checkpoint; returns its code.

    Args:
        start: Starts the command.
        folder: Folder for the marker and the list of stops; seen by all nodes.
        warn: Called with a sentence about a command that hangs or makes no progress.
    """
    stop = StopSignal()  # replaces submitit's handlers
    rank, marker = _rank(), _marker(folder)
    if rank == 0:
        marker.unlink(missing_ok=True)
        os.environ[MARKER] = str(marker)
    _set_meeting_point()
    code = wait_for(start(), stop, (lambda: False) if rank else _hang_detector(marker, warn))
    if rank and (code == STOPPED or marker.exists()):
        return 0  # otherwise srun would end the first task before it has requeued the job
    if rank == 0 and marker.exists():
        place = marker.read_text(encoding="utf-8")
        marker.unlink()
        if _makes_progress(folder, place, warn) and _requeue():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(60)  # until the requeue ends this process; an exit code would end the job
    if rank == 0:
        _stops(folder).unlink(missing_ok=True)
    return code if code >= 0 else 128 - code


def _rank() -> int:
    return int(os.environ.get("SLURM_PROCID", 0))


def _marker(folder: Path) -> Path:
    """Marker file of this attempt; that of another attempt has another name."""
    attempt = os.environ.get("SLURM_RESTART_COUNT", 0)
    return folder.absolute() / f".requeue-{os.environ.get('SLURM_JOB_ID')}-{attempt}"


def _stops(folder: Path) -> Path:
    return folder.absolute() / f".attempts-{os.environ.get('SLURM_JOB_ID')}"


def _set_meeting_point() -> None:
    """Set MASTER_ADDR to the first node, and a port that differs between jobs that share it.

    The port is below those that Linux gives to outgoing connections.
    """
    environment = os.environ
    if "SLURM_JOB_NODELIST" not in environment:
        return
    command = ["scontrol", "show", "hostnames", environment["SLURM_JOB_NODELIST"]]
    hosts = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):  # of a shell that torchrun was used in
        environment.pop(name, None)
    environment["MASTER_ADDR"] = hosts[0]
    environment.setdefault("MASTER_PORT", str(20_000 + int(environment["SLURM_JOB_ID"]) % 12_000))


def _hang_detector(marker: Path, warn: Callable[[str], None]) -> Callable[[], bool]:
    """Return a function that is True once a command has continued too long after its checkpoint."""
    grace, deadline = float(os.environ.get("GRACE", GRACE_S)), float("inf")

    def hangs() -> bool:
        nonlocal deadline
        if deadline == float("inf") and marker.exists():
            deadline = time.monotonic() + grace
        if time.monotonic() < deadline:
            return False
        warn("the run hangs although its checkpoint is written; ending it")
        return True

    return hangs


def _makes_progress(folder: Path, place: str, warn: Callable[[str], None]) -> bool:
    """Record a stop of this job; False if the last ones were all at this step."""
    with _stops(folder).open("a", encoding="utf-8") as stops:
        stops.write(f"{place}\n")
    last = _stops(folder).read_text(encoding="utf-8").splitlines()[-MAX_STOPS_AT_ONE_STEP:]
    if not place or last != [place] * MAX_STOPS_AT_ONE_STEP:
        return True
    warn(f"error: three attempts stopped {place}, so the job is not queued again; give it more time")
    return False


def _requeue() -> bool:
    """Requeue this job, unless Slurm is cancelling or preempting it."""
    environment = os.environ
    number = environment.get("SLURM_JOB_ID")
    if number is None:
        return False
    if array := environment.get("SLURM_ARRAY_JOB_ID"):
        number = f"{array}_{environment['SLURM_ARRAY_TASK_ID']}"  # the array's own number would be all of it
    for wait_s in (0, 5, 5):  # the controller may be busy
        time.sleep(wait_s)
        if states := job_states([number]):
            break
    if states.get(number) != "RUNNING":
        return False
    print(f"queueing job {number} again", file=sys.stderr, flush=True)
    return subprocess.run(["scontrol", "requeue", number], check=False).returncode == 0


if __name__ == "__main__":
    run(main)
