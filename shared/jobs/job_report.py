"""What Slurm jobs came to: a table, and of each that failed the line that says why."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from shared.jobs.slurm_states import ENDED, SUCCEEDED
from shared.jobs.tasks import Task, last_line

# How a rank says why it failed; that another rank has ended, which it also says, is no reason.
REASON = re.compile(
    r"^(?:\[rank\d+\]: )?(error: (?!another rank has).*|[\w.]+(?:Error|Exception)\b.*)$", re.MULTILINE
)


class Job(NamedTuple):
    """A task that was submitted."""

    task: Task
    number: str
    """Slurm's: JOB, or JOB_INDEX in an array."""


def log_of_rank(task: Task, rank: int) -> Path:
    """Where a rank's output goes: the first one's is the task's log."""
    return task.log if not rank else task.log.with_name(f"{task.log.stem}-rank{rank}{task.log.suffix}")


def report(jobs: Sequence[Job], states: Mapping[str, str], folder: Path) -> str:
    """Name, number, state and log of every job, and the telling line of those that failed.

    Args:
        jobs: At least one.
        states: By the jobs' numbers.
        folder: Of submitit's files.
    """
    width = max(len(job.task.name) for job in jobs)
    lines = [f"\n{'run':<{width}}  {'job':<10}  {'state':<13}  log"]
    for job in jobs:
        state, log = states[job.number], job.task.log
        failed = state in ENDED and state != SUCCEEDED
        if failed:
            log, reason = _telling_log(job, folder)
        lines.append(f"{job.task.name:<{width}}  {job.number:<10}  {state:<13}  {log}")
        if failed:
            lines.append(f"  {reason or last_line(log) or 'nothing was printed'}")
    return "\n".join(lines)


def _telling_log(job: Job, folder: Path) -> tuple[Path, str]:
    """The log of the rank that failed, and its reason, empty if none says one.

    What Slurm and submitit say instead, if the job ended before the task began.
    """
    log = job.task.log
    around = folder.absolute() / f"{job.number}_0_log.err"
    if around.exists() and not log.exists():
        return around, ""
    others = sorted(log.parent.glob(log_of_rank(job.task, 0).stem + "-rank*" + log.suffix))
    return next(((path, reason) for path in (log, *others) if (reason := _reason(path))), (log, ""))


def _reason(log: Path) -> str:
    """The last reason in what the last attempt printed, each of which begins with its command."""
    text = log.read_bytes()[-8192:].decode(errors="replace").replace("\r", "\n") if log.exists() else ""
    found = REASON.findall(text.rpartition("\n$ ")[2])
    return found[-1] if found else ""
