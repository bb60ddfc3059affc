"""Files are whole or absent."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.files import NO_LOCKS, atomic_path, file_lock, own_path, write_json
from tests.conftest import ENVIRONMENT, locked_elsewhere


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


@pytest.mark.parametrize(("theirs", "mine", "refused"), [(0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 0)])
def test_a_lock_keeps_others_out_unless_all_share_it(tmp_path: Path, theirs: int, mine: int, refused: int) -> None:
    path = tmp_path / ".lock"
    with locked_elsewhere(path, shared=bool(theirs)):
        if refused:
            with pytest.raises(BlockingIOError), file_lock(path, shared=bool(mine)):
                pass
        else:
            with file_lock(path, shared=bool(mine)):
                pass
    with file_lock(path):  # the other process has ended
        pass


@pytest.mark.parametrize("number", NO_LOCKS)
def test_file_systems_without_locks_get_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    monkeypatch.setattr(fcntl, "lockf", refusing(number))
    with file_lock(tmp_path / ".lock"):
        pass
    assert str(tmp_path) in capsys.readouterr().out


def refusing(number: int):
    def lockf(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    return lockf


def test_all_stages_lock_this_way() -> None:
    root = Path(__file__).parents[2]
    stages = ("shared", "patch_extraction", "ssl_pretrain", "finetune")
    users = [path.name for stage in stages for path in (root / stage).rglob("*.py") if "fcntl" in path.read_text()]
    assert users == ["files.py"]


def test_own_files_are_replaced_and_those_of_users_kept(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"

    def write(text: str) -> None:
        with own_path(path) as temporary:
            temporary.write_text(text)

    path.write_text("a user's")
    write("first")
    write("second")
    assert (tmp_path / "table.csv.bak").read_text() == "a user's"
    path.write_text("second, edited")
    write("third")
    assert (tmp_path / "table.csv.bak2").read_text() == "second, edited"
    path.write_text("")  # an empty file is no loss
    write("fourth")
    assert sorted(each.name for each in tmp_path.glob("[!.]*")) == ["table.csv", "table.csv.bak", "table.csv.bak2"]
    assert path.read_text() == "fourth"
