"""Tasks as an array of Slurm jobs through submitit: submitted, waited for, reported; accounting is not needed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from shared.atomic import write_json
from shared.command_line import UserError, check_range, make_folder
from shared.launcher import Task, last_line, run_task
from shared.stop_signal import MARKER, StopSignal

# From the warning to the end of a job: a step, its checkpoint and the scores may take as long.
WARNING_S = 180
# For an answer of the controller.
PATIENCE_S = 20
SUCCEEDED = "COMPLETED"
# States in which a job stays; GONE is ours: the controller has forgotten it, so it ended long ago.
ENDED = {SUCCEEDED, "BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "GONE", "NODE_FAIL", "OUT_OF_MEMORY"}
ENDED |= {"PREEMPTED", "TIMEOUT"}
JOBS = "jobs.json"


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """What every Slurm job asks for."""

    partition: str | None = None
    """Default: the cluster's."""
    account: str | None = None
    """Default: the user's."""
    gpus: int = 1
    """GPUs of a job."""
    cpus: int = 4
    """CPU cores of a job."""
    hours: float = 24.0
    """Time limit; a job that needs longer is queued again and goes on from its checkpoint."""
    parallel: int = 16
    """Jobs that run at the same time, at most."""
    options: tuple[str, ...] = ()
    """Other options of sbatch, each NAME=VALUE, e.g. qos=high constraint=a100 mem=64G."""


@dataclass(frozen=True)
class InJob:
    """What submitit calls inside a job."""

    task: Task

    def __call__(self) -> None:
        """Run the task and end this process with its exit code; stopped at a checkpoint, be queued again.

        The command says that it stopped by `leave_marker`: its exit code is lost if a second signal comes while
        its interpreter shuts down, which takes seconds after torch.
        """
        marker = self.task.log.with_name(f".{self.task.log.name}.requeue").absolute()
        marker.unlink(missing_ok=True)
        os.environ[MARKER] = str(marker)
        code = run_task(self.task, StopSignal())  # in the place of submitit's handlers
        stopped = marker.exists()
        marker.unlink(missing_ok=True)
        if stopped and _requeue_this_job():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(60)  # be ended by the requeue, do not race it with an exit code
        if code:
            raise SystemExit(code if code > 0 else 128 - code)


class Job(NamedTuple):
    """A task that was submitted."""

    task: Task
    number: str
    """Slurm's: JOB, or JOB_INDEX in an array."""


def check(slurm: Slurm) -> None:
    """Refuse numbers and words that make no sense.

    Raises:
        UserError: names the option and what it takes, or Slurm is not there.
    """
    check_range("slurm.gpus", slurm.gpus, 0)
    check_range("slurm.cpus", slurm.cpus, 1)
    check_range("slurm.hours", slurm.hours, 1 / 60)
    check_range("slurm.parallel", slurm.parallel, 1)
    _options(slurm)
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError("--launcher slurm needs Slurm's commands (sbatch, srun, squeue), which are not here")


def run_in_slurm(tasks: Sequence[Task], folder: Path, slurm: Slurm, stop: StopSignal) -> bool:
    """Submit tasks as one array, wait, report; returns whether a signal ended the waiting.

    The jobs do not end with this process: the same call waits again for those that are still queued or run.

    Args:
        tasks: In any order; each by a name of its own.
        folder: For the list of jobs and submitit's files; must be seen by all nodes.
        slurm: What each job asks for.
        stop: The wish to stop waiting.

    Raises:
        UserError: Slurm refuses the jobs.
    """
    jobs = _still_queued(tasks, folder)
    waiting = {job.task.name for job in jobs}
    jobs += _submit([task for task in tasks if task.name not in waiting], folder, slurm)
    if not jobs:
        return False
    write_json(folder / JOBS, {job.task.name: job.number for job in jobs})
    states = _wait(jobs, stop)
    print(_report(jobs, states, folder), flush=True)
    if left := sorted({job.number.split("_")[0] for job in jobs if states[job.number] not in ENDED}):
        print(f"the jobs stay with Slurm (end them with: scancel {' '.join(left)})")
    return bool(left)


def job_states(numbers: Iterable[str]) -> dict[str, str]:
    """States of jobs as squeue tells them, which works without accounting; empty if it cannot be asked now."""
    wanted = list(numbers)
    ids = ",".join(sorted({number.split("_")[0] for number in wanted}))
    command = ["squeue", "--states=all", "--array", "--noheader", "--format=%i|%T", f"--jobs={ids}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:  # squeue itself would wait for its controller for minutes
        return {}
    if done.returncode and "Invalid job id" not in done.stderr:
        return {}
    listed = dict(line.strip().split("|", 1) for line in done.stdout.splitlines() if "|" in line)
    return {number: listed.get(number, "GONE") for number in wanted}


def _still_queued(tasks: Iterable[Task], folder: Path) -> list[Job]:
    """Jobs of an earlier call that have not ended."""
    path = folder / JOBS
    if not path.exists():
        return []
    numbers = json.loads(path.read_text(encoding="utf-8"))
    jobs = [Job(task, numbers[task.name]) for task in tasks if task.name in numbers]
    if not jobs:
        return []
    while not (states := job_states(job.number for job in jobs)):
        time.sleep(2)  # the controller is busy; to submit again what runs would spoil it
    left = [job for job in jobs if states[job.number] not in ENDED]
    for job in left:
        print(f"  {job.task.name}: job {job.number} is with Slurm already")
    return left


def _submit(tasks: Sequence[Task], folder: Path, slurm: Slurm) -> list[Job]:
    """One array of all tasks."""
    if not tasks:
        return []
    import submitit  # takes a second, and only this needs it

    make_folder(folder, "of jobs")
    executor = submitit.AutoExecutor(folder, cluster="slurm")
    executor.update_parameters(**_parameters(slurm))
    try:
        with executor.batch():
            submitted = [executor.submit(InJob(task)) for task in tasks]
    except submitit.core.utils.FailedJobError as error:
        reason = "; ".join(str(error).replace("sbatch: ", "").replace("error: ", "").strip().splitlines())
        raise UserError(f"Slurm refuses the jobs ({reason}); change what they ask for with --slurm.*") from error
    jobs = [Job(task, job.job_id) for task, job in zip(tasks, submitted, strict=True)]
    for job in jobs:
        print(f"  {job.task.name}: job {job.number}: {job.task}")
    return jobs


def _parameters(slurm: Slurm) -> dict[str, Any]:
    """What submitit makes the head of the batch script of."""
    asked: dict[str, Any] = {
        "name": "dpa-p2pnet",
        "timeout_min": round(60 * slurm.hours),
        "cpus_per_task": slurm.cpus,
        "slurm_array_parallelism": slurm.parallel,
        "slurm_signal_delay_s": WARNING_S,
        "slurm_srun_args": ["--kill-on-bad-exit=1"],
        "slurm_additional_parameters": {"requeue": True, **_options(slurm)},
    }
    if slurm.gpus:
        asked["gpus_per_node"] = slurm.gpus
    named = {"slurm_partition": slurm.partition, "slurm_account": slurm.account}
    return asked | {name: value for name, value in named.items() if value is not None}


def _options(slurm: Slurm) -> dict[str, str]:
    pairs = [word.partition("=") for word in slurm.options]
    for name, _, value in pairs:
        if not name or not value:
            raise UserError(f"--slurm.options {name} is not NAME=VALUE; give e.g. qos=high")
    return {name.removeprefix("--"): value for name, _, value in pairs}


def _wait(jobs: Sequence[Job], stop: StopSignal) -> dict[str, str]:
    """Wait until all jobs have ended or a signal comes, saying what changes; the last state of each."""
    states = dict.fromkeys([job.number for job in jobs], "PENDING")
    began = time.monotonic()
    while not stop.received:
        now = job_states(number for number, state in states.items() if state not in ENDED)
        for job in jobs:
            if (state := now.get(job.number, states[job.number])) != states[job.number]:
                print(f"  {job.task.name}: {state.lower()}", flush=True)
        states |= now
        if all(state in ENDED for state in states.values()):
            break
        # Often at first, when jobs fail; later every half minute is enough, and easy on the controller.
        _sleep(min(30.0, 0.5 + 0.05 * (time.monotonic() - began)), stop)
    return states


def _sleep(seconds: float, stop: StopSignal) -> None:
    """Sleep that a signal cuts short (Python goes on sleeping after a handler returns)."""
    end = time.monotonic() + seconds
    while not stop.received and time.monotonic() < end:
        time.sleep(0.2)


def _report(jobs: Sequence[Job], states: dict[str, str], folder: Path) -> str:
    """Name, number, state and log of every job, and the last line of those that failed."""
    width = max(len(job.task.name) for job in jobs)
    lines = [f"\n{'run':<{width}}  {'job':<10}  {'state':<13}  log"]
    for job in jobs:
        state = states[job.number]
        log = _telling_log(job, folder)
        lines.append(f"{job.task.name:<{width}}  {job.number:<10}  {state:<13}  {log}")
        if state in ENDED and state != SUCCEEDED:
            lines.append(f"  {last_line(log) or 'nothing was printed'}")
    return "\n".join(lines)


def _telling_log(job: Job, folder: Path) -> Path:
    """The task's log; but what Slurm and submitit say, if the job ended before the task began."""
    around = folder.absolute() / f"{job.number}_0_log.err"
    return around if around.exists() and not job.task.log.exists() else job.task.log


def _requeue_this_job() -> bool:
    """Queue the job again that this process runs in; not if it is being cancelled or preempted: Slurm decides."""
    environment = os.environ
    if "SLURM_JOB_ID" not in environment:
        return False
    number = environment["SLURM_JOB_ID"]
    if array := environment.get("SLURM_ARRAY_JOB_ID"):
        number = f"{array}_{environment['SLURM_ARRAY_TASK_ID']}"
    if job_states([number]).get(number) != "RUNNING":
        return False
    print(f"queueing job {number} again", file=sys.stderr, flush=True)
    return subprocess.run(["scontrol", "requeue", number], check=False).returncode == 0
