"""What the tests share: the real data where it is there, the commands as users type them, sample slides."""

import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import get_worker_info

from shared.cli import run as run_stage
from shared.signals import StopSignal

REPOSITORY = Path(__file__).parent.parent
# Processes started by tests: this checkout, no GPU, one thread each (two would spin on busy cores).
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
Command = Callable[..., subprocess.CompletedProcess[str]]
# Of a main function and its words; exit code, stdout, stderr.
InProcess = Callable[..., tuple[int, str, str]]


def free_port() -> int:
    """Find a port that nobody listens on, below those that the kernel hands out to connections meanwhile."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real slides and annotations, which lies beside the checkout; users do not have it."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Run `python -m MODULE ARGS...` in a process of its own, in `tmp_path` unless `cwd` is given."""

    def run(module: str, *args: object, cwd: Path = tmp_path, timeout: float = 280, **env: str):
        words = [sys.executable, "-m", module, *map(str, args)]
        return subprocess.run(
            words,
            cwd=cwd,
            env={**ENVIRONMENT, **env},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InProcess:
    """As `command`, of a main function in this process, which saves the start of one."""

    def call(main: Callable[[], int | None], *args: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", [main.__module__, *map(str, args)])
        capsys.readouterr()
        with signals_kept(), pytest.raises(SystemExit) as end:
            run_stage(main)
        return int(end.value.code or 0), *capsys.readouterr()

    return call


def stalling(read: Callable[..., Any], after: int) -> Callable[..., Any]:
    """Make a function of loader workers hang after so many calls, and have its parent told to stop meanwhile."""
    calls = itertools.count()

    def stall(*words: Any, **options: Any) -> Any:
        if get_worker_info() is not None and next(calls) >= after:
            time.sleep(3)  # in which the parent comes to wait for this batch
            os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(100)
        return read(*words, **options)

    return stall


LOCKING = """
import sys
from pathlib import Path
from shared.files import file_lock
with file_lock(Path(sys.argv[1]), shared=sys.argv[2] == "True"):
    print(flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def locked_elsewhere(path: Path, shared: bool = False) -> Iterator[None]:
    """Hold a lock in another process: in this one it would keep nothing out."""
    words = [sys.executable, "-c", LOCKING, str(path), str(shared)]
    with subprocess.Popen(words, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        yield
        other.kill()


@contextlib.contextmanager
def signals_kept() -> Iterator[None]:
    """Around what installs handlers for its process: signals do afterwards what they did before."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@pytest.fixture
def stop() -> Iterator[StopSignal]:
    """Give a stop signal that has not been received; afterwards signals do what they did before."""
    with signals_kept():
        yield StopSignal()
