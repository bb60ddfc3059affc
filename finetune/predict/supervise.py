"""Survive a slide that kills its process: OpenSlide aborts on some damaged files, and memory can run out.

The prediction runs in a forked process. When that is killed, the slide in progress has failed and another process
goes on behind it. The parent loads no detector and opens no slide.
"""

import faulthandler
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from types import FrameType

BEGUN, DONE, INCOMPLETE, FAILED = "begun", "done", "incomplete", "failed"
KILLED = "killed by "
# Signals that request the end of a process: no fault of the slide.
REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class SlideLog:
    """Outcome of every slide by number, in an unnamed file that outlives the process that predicts."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile("a+")  # noqa: SIM115 - open as long as the process
        self.trace = tempfile.TemporaryFile("a+")  # noqa: SIM115 - Python's stack at a fatal signal

    def note(self, number: int, outcome: str) -> None:
        """Record the state of a slide."""
        self._file.write(f"{number}\t{outcome}\n")
        self._file.flush()

    def outcomes(self) -> dict[int, str]:
        """Return the last state of each slide."""
        self._file.seek(0)
        return {int(number): outcome for number, outcome in (line.rstrip("\n").split("\t") for line in self._file)}

    def last_trace(self) -> str:
        """Text of the fault handler, which is empty after SIGKILL."""
        self.trace.seek(0)
        return self.trace.read()


def supervise(predict: Callable[[], int], log: SlideLog) -> int:
    """Call `predict` in a child process, again after each slide that kills it; returns its exit code.

    In the child this returns what `predict` returns; both processes then end in the same way.
    """
    parent = os.getpid()
    while True:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            faulthandler.enable(log.trace)
            threading.Thread(target=_stop_without, args=(parent,), daemon=True).start()
            return predict()
        code = _wait(child)
        number = next((each for each, outcome in log.outcomes().items() if outcome == BEGUN), None)
        if code >= 0 or number is None or -code in REQUESTS:
            return code if code >= 0 else 128 - code
        log.note(number, KILLED + (signal.strsignal(-code) or f"signal {-code}"))


def _stop_without(parent: int) -> None:
    """Ask this process to stop when its parent has died: nothing would wait for it or pass signals on."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def _wait(child: int) -> int:
    """Exit code of a child, negative if a signal killed it; signals to this process are passed on."""

    def forward(number: int, _frame: FrameType | None) -> None:
        os.kill(child, number)

    handlers = {number: signal.signal(number, forward) for number in REQUESTS[1:]}
    handlers[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the child by itself
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
