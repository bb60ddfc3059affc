"""Report of Slurm jobs: a table of states, and the reason of each failure."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from shared.jobs.slurm_states import ENDED, SUCCEEDED
from shared.jobs.tasks import Task, last_line
from shared.reporting.tables import table

# Lines in which a rank reports its failure; that another rank has ended is not the cause.
REASON = re.compile(
    r"^(?:\[rank\d+\]: )?(error: (?!another rank has).*|[\w.]+(?:Error|Exception)\b.*)$", re.MULTILINE
)


class Job(NamedTuple):
    """A task that was submitted."""

    task: Task
    number: str
    """Slurm's: JOB, or JOB_INDEX in an array."""


def log_of_rank(task: Task, rank: int) -> Path:
    """Log file of a rank; the first rank's is the task's log."""
    return task.log if not rank else task.log.with_name(f"{task.log.stem}-rank{rank}{task.log.suffix}")


def report(jobs: Sequence[Job], states: Mapping[str, str], folder: Path) -> str:
    """Format name, number, state and log of every job, and the reason of failed ones.

    Args:
        jobs: At least one.
        states: By the jobs' numbers.
        folder: Of submitit's files.
    """
    rows, reasons = [], []
    for job in jobs:
        state, log, reason = states[job.number], job.task.log, ""
        if state in ENDED and state != SUCCEEDED:
            log, reason = _telling_log(job, folder)
            reason = f"\n  {reason or last_line(log) or 'nothing was printed'}"
        rows.append((job.task.name, job.number, state, log))
        reasons.append(reason)
    header, *lines = table(("run", "job", "state", "log"), rows).splitlines()
    return "\n".join(["", header, *(line + reason for line, reason in zip(lines, reasons, strict=True))])


def _telling_log(job: Job, folder: Path) -> tuple[Path, str]:
    """Log of the rank that failed and the reason in it; empty if there is none.

    If the job ended before the task began, the log of Slurm and submitit.
    """
    log = job.task.log
    around = folder.absolute() / f"{job.number}_0_log.err"
    if around.exists() and not log.exists():
        return around, ""
    others = sorted(log.parent.glob(log_of_rank(job.task, 0).stem + "-rank*" + log.suffix))
    return next(((path, reason) for path in (log, *others) if (reason := _reason(path))), (log, ""))


def _reason(log: Path) -> str:
    """Last reason in the output of the last attempt; each attempt begins with its command."""
    text = log.read_bytes()[-8192:].decode(errors="replace").replace("\r", "\n") if log.exists() else ""
    found = REASON.findall(text.rpartition("\n$ ")[2])
    return found[-1] if found else ""
