"""From words to a config, from an error to an exit code."""

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import pytest
import tyro

from shared.cli import as_plain, cli_beside, parse, parse_beside, parse_command, run, settings_text
from shared.errors import UserError
from tests.conftest import ENVIRONMENT


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1


@dataclass(frozen=True)
class Config:
    name: str = "small"
    out: Path = Path("out")
    inner: Inner = field(default_factory=Inner)
    scale: tuple[float, float] = (0.5, 2.0)


RECIPES = {"small": Config(), "large": Config(name="large", inner=Inner(0.9))}


@dataclass(frozen=True)
class Machine:
    cores: int = 1


def words(*args: str) -> Config:
    return typed(*args)[0]


def typed(*args: str) -> tuple[Config, Machine]:
    return parse_beside(RECIPES, "small", "python -m stage", "What it does.", Machine(), args)


def test_a_recipe_is_a_named_default_with_fields_overridden() -> None:
    assert words() == RECIPES["small"]
    assert words("large", "--out", "x") == dataclasses.replace(RECIPES["large"], out=Path("x"))
    assert words("--inner.rate", "3").inner.rate == 3.0
    assert typed("large", "--cores", "2") == (RECIPES["large"], Machine(2))
    with pytest.raises(UserError, match="no recipe 'medium'; choose one of small, large"):
        words("medium")


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """Files to read."""

    folder: Path = Path("in")
    """Folder of files, searched with
    its subfolders."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Processes."""

    workers: int = 1
    """Number of processes."""


@dataclass(frozen=True, kw_only=True)
class Grouped(RunOptions, InputOptions):
    """Read files."""


def test_inherited_options_are_grouped_by_their_class(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--workers", "3", "--cores", "2"]
    assert cli_beside(Grouped, Machine(), "stage", args=args) == (Grouped(workers=3), Machine(2))
    with pytest.raises(SystemExit):
        cli_beside(Grouped, Machine(), "stage", args=["--help"])
    text = capsys.readouterr().out
    for part in ("input options", "Files to read", "--folder", "run options", "Processes", "--workers"):
        assert part in text
    assert "Folder of files, searched with its" in text


def test_plain_values_for_json_and_for_people() -> None:
    assert as_plain(Config()) == {"name": "small", "out": "out", "inner": {"rate": 0.1}, "scale": [0.5, 2.0]}
    assert "  inner.rate = 0.1" in settings_text(Config()).splitlines()


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [(UserError("a.svs is no slide"), 2, "error: a.svs is no slide\n"), (KeyboardInterrupt(), 130, "interrupted")],
)
def test_errors_become_exit_codes(
    raised: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise raised

    with pytest.raises(SystemExit) as left:
        run(fails)
    assert left.value.code == code
    assert capsys.readouterr().err.startswith(said)


def test_the_command_s_own_code_is_kept() -> None:
    for returned, code in [(None, 0), (0, 0), (3, 3)]:
        with pytest.raises(SystemExit) as left:
            run(lambda returned=returned: returned)
        assert left.value.code == code


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (lambda folder: folder.open("w"), "cannot read or write {folder}: Is a directory"),
        (lambda folder: (folder / "a/b").mkdir(), "cannot read or write {folder}/a/b: No such file or directory"),
        (lambda _: os.write(os.open("/dev/full", os.O_WRONLY), b"x"), "what was being written: No space left"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(
    error: Callable[[Path], object], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        run(lambda: error(tmp_path) and None)
    printed = capsys.readouterr().err
    assert left.value.code == 2 and said.format(folder=tmp_path) in printed and printed.count("\n") == 1


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // 0)
    with pytest.raises(OSError, match="Bad file"):
        run(lambda: os.close(987654))


PROGRAM = """
import sys, time
from shared.cli import run
from shared.errors import UserError

def command():
    if "wait" in sys.argv:
        print("waiting", flush=True)
        time.sleep(60)
    print(sys.argv[1] * int(sys.argv[2]))
    if "exit" in sys.argv:
        sys.exit(0)
    if "error" in sys.argv:
        raise UserError("what nobody reads")

run(command)
"""


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize(
    "words", [("short", "1"), ("long", "100000"), ("help", "1", "exit"), ("no", "1", "error")]
)
def test_a_reader_that_went_away_is_no_error(words: tuple[str, ...], buffered: bool) -> None:
    """As in `python -m stage | head -1`, and with `2>&1` before the pipe."""
    environment = {**ENVIRONMENT, "PYTHONUNBUFFERED": "" if buffered else "1"}
    for also_errors in (False, True):
        reader, writer = os.pipe()
        os.close(reader)
        errors = writer if also_errors else subprocess.PIPE
        with subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *words], stdout=writer, stderr=errors, env=environment, text=True
        ) as process:
            os.close(writer)
            said = process.communicate(timeout=60)[1]
        assert process.returncode == 141
        assert also_errors or not said.replace("error: what nobody reads\n", "")


def test_ctrl_c_is_one_sentence() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "wait"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        text=True,
        # Whoever runs the tests in the background of a shell has them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout and process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert errors.startswith("interrupted; ") and errors.count("\n") == 1


@dataclass(frozen=True)
class Ordered:
    """Command with groups named by fields."""

    help_groups: ClassVar = {"first": "input", "third": "run"}

    first: int = 1
    """First."""
    second: int = 2
    """Second, with
    `code` on the next line."""
    third: int = 3
    """Third."""
    fixed: Annotated[int, tyro.conf.Fixed] = 4
    """Fixed."""


def test_help_is_grouped_by_named_fields_and_leaves_out_fixed_ones(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        parse(Ordered, "command", args=["--help"])
    text = capsys.readouterr().out.partition("show this help")[2]
    places = [text.index(word) for word in ("input options", "--first", "--second", "run options", "--third")]
    assert places == sorted(places) and "fixed" not in text.lower().replace("prefixed", "")
    assert "Second, with `code` on the next line." in text and max(map(len, text.splitlines())) <= 100


def test_descriptions_are_wrapped_to_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit):
        parse(Ordered, "command", "word " * 30 + "\n\nSecond paragraph.", ["--help"])
    lines = capsys.readouterr().out.splitlines()
    words = [line for line in lines if line.startswith(" word")]
    assert len(words) == 3 and max(map(len, words)) <= 60 and " Second paragraph." in lines


def test_a_command_is_chosen_by_its_first_word(capsys: pytest.CaptureFixture[str]) -> None:
    commands = {"grouped": Grouped, "ordered": Ordered}
    assert parse_command(commands, "stage", "What.", ["ordered", "--first", "7"]) == Ordered(first=7)
    with pytest.raises(UserError, match="no command 'order'; choose one of grouped, ordered"):
        parse_command(commands, "stage", "What.", ["order"])
    for words in ([], ["--help"]):
        with pytest.raises(SystemExit):
            parse_command(commands, "stage", "What.", words)
        assert "ordered     Command with groups" in capsys.readouterr().out


@dataclass(frozen=True)
class Listed:
    """Take names and a pair."""

    names: tuple[str, ...] = ()
    """Names."""
    pair: tuple[float, float] = (1.0, 2.0)
    """Two numbers."""


def test_a_list_given_twice_is_refused() -> None:
    """Only the last one would count, silently."""
    assert parse(Listed, "x", args=["--names", "a", "b"]).names == ("a", "b")
    assert parse(Listed, "x", args=["--pair", "1", "2", "--pair", "3", "4"]).pair == (3.0, 4.0)  # overrides
    for words in (["--names", "a", "--names", "b"], ["--names=a", "--names", "b"]):
        with pytest.raises(UserError, match="--names is given 2 times; give all values after one --names"):
            parse(Listed, "x", args=words)


@dataclass(frozen=True)
class Positional:
    """Read a folder."""

    data: tyro.conf.Positional[Path]
    """Folder."""


def test_an_argument_without_a_name_can_be_given_by_its_name() -> None:
    assert parse(Positional, "prog", args=["--data", "tiles"]).data == Path("tiles")
    assert parse(Positional, "prog", args=["--data=a=b"]).data == Path("a=b")
    assert parse(Positional, "prog", args=["tiles"]).data == Path("tiles")
