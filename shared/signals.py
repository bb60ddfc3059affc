"""SIGUSR2 and SIGTERM set a flag at which a run stops; imports nothing heavy, to be ready before torch is."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

# What a training process returns when it has stopped at a checkpoint because it was told to.
STOPPED = 85
# Environment variable with the path of a file that tells the batch script "stopped at a checkpoint, requeue me".
MARKER = "REQUEUE_MARKER"


class StopSignal:
    """Raised by the scheduler's warning (USR2) or its order to end (TERM); the loop asks for it regularly.

    The handler only sets a flag: the training loop writes its checkpoint at the end of a step, on all ranks
    at the same one. USR2 rather than USR1, which NCCL may take for itself. Make it first thing in the
    process: the default action of USR2 is to kill it. A command that runs others by turns also names INT
    (Ctrl-C), so that it can let the one that runs come to its checkpoint.
    """

    def __init__(self, *more: signal.Signals) -> None:
        self.received: str | None = None
        for number in (signal.SIGUSR2, signal.SIGTERM, *more):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name


def leave_marker(where: str = "") -> None:
    """Leave the batch script, if there is one, a file: this attempt ended at a checkpoint and is worth requeueing.

    A file rather than the exit code: `srun --kill-on-bad-exit` turns one rank's code into another.

    Args:
        where: Progress of the work, as "after step 7"; a run that stops there repeatedly is given up.
    """
    if path := os.environ.get(MARKER):
        Path(path).write_text(where, encoding="utf-8")


def leave_when_told(where: Callable[[], str]) -> None:
    """Leave at once on the signals to stop, with code 85 and a marker: for work that is saved piece by piece.

    Args:
        where: Returns the progress of the work, as `leave_marker` takes it.
    """

    def leave(number: int, _frame: FrameType | None) -> None:
        for signal_number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(signal_number, signal.SIG_IGN)
        leave_marker(at := where())
        print(f"stopped {at} by {signal.Signals(number).name}; the same command goes on", file=sys.stderr)
        raise SystemExit(STOPPED)

    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, leave)


def ignore_from_now_on() -> None:
    """Keep the exit code of a process that is ending: Python gives handled signals their deadly default back.

    With torch loaded that leaves seconds in which a second warning would kill the process, checkpoint or not.
    """
    for number in (signal.SIGUSR2, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_DFL:
            signal.signal(number, signal.SIG_IGN)


def ignore_signals_in_worker(_worker: int = 0) -> None:
    """`worker_init_fn` of data loaders: a worker must outlive the warning that is meant for its parent."""
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
