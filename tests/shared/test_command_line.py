"""From words to a config, from an error to an exit code."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shared.command_line import UserError, as_plain, parse, run, settings_text


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


def words(*args: str) -> Config:
    return parse(RECIPES, "small", "python -m stage", "What it does.", args)


def test_a_recipe_is_a_named_default_with_fields_overridden() -> None:
    assert words() == RECIPES["small"]
    assert words("large", "--out", "x") == dataclasses.replace(RECIPES["large"], out=Path("x"))
    assert words("--inner.rate", "3").inner.rate == 3.0
    with pytest.raises(UserError, match="no recipe 'medium'; choose one of small, large"):
        words("medium")


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


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // 0)
