"""Files are whole or absent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.files import atomic_path, write_json
from tests.conftest import ENVIRONMENT


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"ü": 1})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text(encoding="utf-8") == '{\n  "ü": 1\n}\n'
    assert list(path.parent.iterdir()) == [path]


def test_a_killed_writer_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from shared.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as t:\n    t.write_text('half'); print(flush=True); time.sleep(60)"
    )
    words = [sys.executable, "-c", program, str(tmp_path / "shard.tar")]
    with subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    time.sleep(0.05)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".")
    assert left.name.endswith(".tmp")
    assert not list(tmp_path.glob("*.tar"))
