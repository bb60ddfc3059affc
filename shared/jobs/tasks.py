"""Command lines with names and logs, run one after another on this machine; `shared.jobs.slurm` queues them."""

import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.cli import make_folder
from shared.signals import STOPPED, StopSignal

Process = subprocess.Popen[bytes]


@dataclass(frozen=True)
class Task:
    """A command line with a name."""

    name: str
    words: tuple[str, ...]
    log: Path
    """File to which the command's output is appended."""

    def __str__(self) -> str:
        """Command line for display."""
        own = self.words[0] == sys.executable
        return shlex.join(["python", *self.words[1:]] if own else self.words)


def run_task(task: Task, stop: StopSignal) -> int:
    """Run a task and forward a stop signal; returns its exit code (negative: signal)."""
    return wait_for(start_task(task), stop)


def start_task(task: Task) -> Process:
    """Start the command of a task, with its log as output."""
    make_folder(task.log.parent, "of logs")
    with task.log.open("ab") as log:
        log.write(f"$ {task}\n".encode())
        log.flush()
        # Ctrl-C reaches the whole process group; the command gets TERM instead and checkpoints.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            return subprocess.Popen(task.words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        finally:
            signal.signal(signal.SIGINT, handler)


def wait_for(process: Process, stop: StopSignal, hangs: Callable[[], bool] = lambda: False) -> int:
    """Wait for a process, forward a stop signal once, kill it if it hangs; returns its code (negative: signal)."""
    is_forwarded = False
    while True:
        try:
            return process.wait(0.2)
        except subprocess.TimeoutExpired:
            if stop.received and not is_forwarded:
                is_forwarded = True
                process.send_signal(signal.SIGUSR2 if stop.received == "SIGUSR2" else signal.SIGTERM)
            if hangs():
                process.kill()


def run_here(tasks: Sequence[Task], stop: StopSignal, ended: Callable[[Task, int], None]) -> bool:
    """Run tasks one after another; returns True if a signal stopped them, the rest not begun.

    Args:
        tasks: In order.
        stop: Stop signal.
        ended: Called with each task and its exit code, except one that was stopped.
    """
    for number, task in enumerate(tasks, 1):
        if stop.received:
            return True
        print(f"[{number}/{len(tasks)}] {task.name}: {task}", flush=True)
        code = run_task(task, stop)
        if code == STOPPED or (code and stop.received):
            return True
        ended(task, code)
    return False


def failed_line(task: Task, code: int = 0) -> str:
    """Reason of a failed task: the signal that killed it, or the last line of its log."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name} ({task.log})"
    return f"{last_line(task.log) or 'it printed nothing'} ({task.log})"


def last_line(path: Path) -> str:
    """Last line that is not empty, without the progress bars drawn over it."""
    if not path.exists():
        return ""
    lines = path.read_bytes()[-8192:].decode(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
