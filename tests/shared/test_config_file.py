"""Options from a file: types as on the command line, flags win, unknown names are one sentence."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from shared.cli import Range, as_plain, parse, parse_beside, validate
from shared.errors import UserError


@dataclass(frozen=True)
class Inner:
    rate: Annotated[float, Range(0, 1)] = 0.1
    """Rate."""
    scale: Annotated[tuple[float, float], Range(0.5)] = (0.5, 2.0)
    """Scale."""


@dataclass(frozen=True)
class Data:
    data: Path = Path("data")
    """Folder."""


@dataclass(frozen=True)
class Outer:
    name: Annotated[str, tyro.conf.Fixed] = "small"
    batch_size: Annotated[int | None, Range(1)] = None
    """Images."""
    mode: Literal["a", "b"] = "a"
    """Mode."""
    words: tuple[str, ...] = ()
    """Words."""
    inner: Inner = Inner()
    """Numbers."""
    source: Annotated[Data, tyro.conf.arg(name="")] = Data()
    """Data."""


@dataclass(frozen=True)
class Machine:
    cores: int = 1
    """Cores."""


@dataclass(frozen=True)
class Required:
    place: tyro.conf.Positional[Path]
    """Place."""
    out: Path
    """Output."""


RECIPES = {"small": Outer(), "large": Outer(name="large", batch_size=7, inner=Inner(0.9))}


def typed(*words: object) -> tuple[Outer, Machine]:
    return parse_beside(RECIPES, "small", "stage", "What it does.", Machine(), [str(word) for word in words])


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(
        'batch-size = 3\nmode = "b"\nwords = ["x", "y"]\ndata = "d"\ncores = 4\n[inner]\nscale = [1, 3]\n'
    )
    return path


def test_a_file_sets_options_of_all_configs(toml: Path) -> None:
    outer, machine = typed("--config", toml)
    source, inner = Data(Path("d")), Inner(scale=(1.0, 3.0))
    assert outer == Outer(batch_size=3, mode="b", words=("x", "y"), inner=inner, source=source)
    assert machine == Machine(4) and isinstance(outer.inner.scale[0], float)


def test_flags_win_wherever_they_stand(toml: Path) -> None:
    for words in (("--batch-size", 5, "--config", toml), (f"--config={toml}", "--batch-size", "None")):
        outer, _ = typed(*words)
        assert outer.batch_size == (5 if 5 in words else None) and outer.mode == "b"


def test_the_config_of_a_run_gives_the_run(tmp_path: Path) -> None:
    run = dataclasses.replace(RECIPES["large"], words=("x",), source=Data(tmp_path))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(as_plain(run)))
    assert typed("--config", path) == (run, Machine())
    with pytest.raises(UserError, match=r"config\.json has name = 'large', which is fixed to 'small'"):
        typed("small", "--config", path)


def test_a_file_gives_required_options(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"place": "p", "out": "o"}')
    words = ["--config", str(tmp_path / "c.json")]
    assert parse(Required, "command", args=words) == Required(Path("p"), Path("o"))
    assert parse(Required, "command", args=[*words, "q"]).place == Path("q")
    with pytest.raises(SystemExit):
        parse(Required, "command", args=["q"])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("batch-siz = 3", r"has batch-siz, which is no option \(did you mean batch_size\?\)"),
        ("[inner]\nsmooth = 3", r"has inner\.smooth, which is no option"),
        ('batch-size = "many"', "has batch-size = 'many'; give a value of type int"),
        ("batch-size = true", "has batch-size = True; give a value of type int"),
        ('mode = "c"', "has mode = 'c'; give one of 'a', 'b'"),
        ("words = 3", "has words = 3; give a list"),
        ("inner.scale = [1]", r"has inner\.scale = \[1\]; give a list of 2"),
        ("data = 3", "has data = 3; give a path"),
        ("batch-size 3", "is not valid TOML"),
    ],
)
def test_what_a_file_must_not_hold(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"^--config {path} {sentence}"):
        typed("--config", path)


def test_a_missing_file_and_one_of_json_without_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read --config none\.toml: No such file"):
        typed("--config", "none.toml")
    (tmp_path / "c.json").write_text("[1]")
    with pytest.raises(UserError, match="holds no names of options"):
        typed("--config", tmp_path / "c.json")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (Outer(batch_size=0), "--batch-size 0 is out of range; give a number of at least 1"),
        (Outer(inner=Inner(rate=1.5)), r"--inner\.rate 1\.5 is out of range; give a number from 0 to 1"),
        (Outer(inner=Inner(scale=(1, 0.25))), r"--inner\.scale 0\.25 is out of range"),
    ],
)
def test_declared_ranges_are_validated(config: Outer, sentence: str) -> None:
    validate(Outer())
    with pytest.raises(UserError, match=f"^{sentence}"):
        validate(config)
    with pytest.raises(UserError, match=r"^--method\.rate 2 "):
        validate(Inner(rate=2), "method.")
