"""`--launcher slurm`: the command that was typed, as a job, and this process waits for it."""

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared.launcher import Task
from shared.slurm_jobs import Slurm, are_left, run_in_slurm
from shared.slurm_states import SUCCEEDED
from shared.stop_signal import STOPPED, StopSignal

NOTHING_FAILED, SOME_FAILED = 0, 3


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Where a stage runs."""

    launcher: Literal["local", "slurm"] = "local"
    """local: in this process; slurm: as a job, which this process submits and waits for."""
    slurm: Slurm = Slurm()
    """What the job asks for."""


def typed_command(module: str, words: Sequence[str] | None = None) -> tuple[str, ...]:
    """The command line of this process, or these words, without the options of `Launch` and its kin."""
    kept, skips = [], False
    for word in sys.argv[1:] if words is None else words:
        if word.startswith("--"):
            name = word[2:].partition("=")[0]
            skips = name in ("launcher", "parts") or name.startswith("slurm.")
        if not skips:
            kept.append(word)
    return sys.executable, "-m", module, *kept


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
