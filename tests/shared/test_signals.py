"""The wish to stop, in a process that is about to end."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.signals import MARKER, STOPPED
from tests.conftest import ENVIRONMENT

# Ends slowly, as a process with torch does: an object that is cleared last keeps the interpreter.
PROGRAM = """
import sys, time
from shared.cli import run
from shared.signals import StopSignal

class Slow:
    def __del__(self, sleep=time.sleep): sleep(2)

sys.slow = Slow()
stop = StopSignal()

def main():
    print("ready", flush=True)
    while not stop.received:
        time.sleep(0.01)
    print("stopped", flush=True)
    return 85

run(main)
"""


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_second_warning_does_not_change_the_exit_code(number: signal.Signals) -> None:
    words = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "stopped\n"
        while process.poll() is None:
            process.send_signal(number)
            time.sleep(0.05)
    assert process.returncode == 85


KEPT_PIECE_BY_PIECE = """
import time
from shared.cli import run
from shared.signals import leave_when_told

def main():
    leave_when_told(lambda: "with 3 pieces done")
    try:
        print("ready", flush=True)
        time.sleep(100)
    finally:
        print("cleaned up", flush=True)

run(main)
"""


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_work_kept_piece_by_piece_is_left_at_once(number: signal.Signals, tmp_path: Path) -> None:
    words = [sys.executable, "-c", KEPT_PIECE_BY_PIECE]
    environment = {**ENVIRONMENT, MARKER: str(tmp_path / "marker")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, env=environment, **pipes) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "cleaned up\n"
        assert (
            process.stderr.readline() == f"stopped with 3 pieces done by {number.name}; the same command goes on\n"
        )
    assert process.returncode == STOPPED
    assert (tmp_path / "marker").read_text() == "with 3 pieces done"
