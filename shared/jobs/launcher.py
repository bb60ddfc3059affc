"""`--launcher slurm`: submit this command as one job or as parts, and wait for it."""

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from shared.cli import check_range
from shared.config_file import config_path
from shared.errors import NOTHING_FAILED, SOME_FAILED
from shared.jobs.slurm import Slurm, are_left, run_in_slurm
from shared.jobs.slurm_states import SUCCEEDED
from shared.jobs.tasks import Task
from shared.signals import STOPPED, StopSignal


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Launcher options of a stage."""

    help_groups: ClassVar = {"launcher": "slurm"}

    launcher: Literal["local", "slurm"] = "local"
    """local: in this process; slurm: as a job, which this process submits and waits for."""
    slurm: Slurm = Slurm()
    """Resources of a job."""


@dataclass(frozen=True, kw_only=True)
class PartsLaunch(Launch):
    """Launcher options of a stage whose slides can be divided among jobs."""

    help_groups: ClassVar = {"launcher": "slurm", "parts": "slurm"}

    parts: int = 16
    """With `launcher slurm`: maximum number of jobs that share the slides."""


def typed_command(module: str, words: Sequence[str] | None = None) -> tuple[str, ...]:
    """Command line of this process, or of `words`, without the launcher options."""
    kept, skips = [], False
    for word in sys.argv[1:] if words is None else words:
        if word.startswith("--"):
            name = word[2:].partition("=")[0]
            skips = name in ("launcher", "parts") or name.startswith("slurm.")
        if not skips:
            kept.append(word)
    if config_path(kept):  # the file may name a launcher, which is not the job's
        kept += ["--launcher", "local"]
    return sys.executable, "-m", module, *kept


def part_tasks(command: tuple[str, ...], folder: Path, parts: int, slides: int) -> list[Task]:
    """Make a task with `--part I/N` for each part, at most one per slide; logs go to `folder`.

    Raises:
        UserError: the number of parts is out of range.
    """
    check_range("parts", parts, 1, 999_999)
    count = min(parts, slides)
    digits = len(str(count))
    return [
        Task(f"part-{n:0{digits}}", (*command, "--part", f"{n}/{count}"), folder / f"part-{n}.log")
        for n in range(1, count + 1)
    ]


def wait_for_run(module: str, name: str, run_dir: Path, slurm: Slurm) -> int:
    """Submit the typed command as the one job of a run, and `wait_in_slurm`; returns that exit code.

    The log and the list of jobs lie beside the run folder, which is begun empty.

    Raises:
        UserError: Slurm refuses the job.
    """
    task = Task(name, typed_command(module), run_dir.with_name(f"{run_dir.name}.log"))
    return wait_in_slurm([task], run_dir.with_name(f"{run_dir.name}.jobs"), slurm)


def wait_in_slurm(tasks: Sequence[Task], folder: Path, slurm: Slurm, then: Task | None = None) -> int:
    """`run_in_slurm`, as a command; returns its exit code: 0, 3 (some failed) or 85 (they stay with Slurm).

    Raises:
        UserError: Slurm refuses the jobs.
    """
    stop = StopSignal(signal.SIGINT)
    states = run_in_slurm(tasks, folder, slurm, stop, then)
    if are_left(states):
        print("the same command waits for them again")
        return STOPPED
    return NOTHING_FAILED if set(states.values()) == {SUCCEEDED} else SOME_FAILED
