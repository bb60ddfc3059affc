"""From the command line to a frozen config; wrong input ends in one sentence and exit code 2."""

import dataclasses
import inspect
import math
import multiprocessing
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

from shared.config_file import config_path, did_you_mean, flat, read_settings, with_settings
from shared.errors import DISK_FULL, REFUSED, UserError
from shared.options import defaults_of, options_of, parse_options
from shared.signals import ignore_from_now_on

Config = TypeVar("Config")
Beside = TypeVar("Beside")


def run(command: Callable[[], int | None]) -> NoReturn:
    """Call a stage's main function and leave the process with its exit code (None means 0)."""
    try:
        code = _code_of(command)
        sys.stdout.flush()  # at the interpreter's exit a closed pipe would be complained about
    except BrokenPipeError:  # the reader of our output (`| head`) went away
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
        code = 141
    finally:
        # Loader workers ignore the signal by which Python would end them, and it would wait for them for ever.
        for worker in multiprocessing.active_children():
            worker.kill()
        ignore_from_now_on()
    sys.exit(code)


def _code_of(command: Callable[[], int | None]) -> int | str | None:
    try:
        return command() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    except OSError as error:
        if error.filename is None and error.errno not in DISK_FULL:
            raise  # no file that the user could look after
        place = error.filename or "what was being written"
        print(f"error: cannot read or write {place}: {error.strerror}; mend it and start again", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("interrupted; a run or harvest goes on from what it saved last", file=sys.stderr)
        return 130
    except SystemExit as left:  # after --help, or from the parser of options
        return left.code


def parse(
    kind: type[Config], prog: str, description: str | None = None, args: Sequence[str] | None = None
) -> Config:
    """Read a config from `prog [--flag value ...]`.

    Args:
        kind: The config.
        prog: Name of the command.
        description: Description of the command; default: the config's.
        args: Words instead of `sys.argv`.

    Raises:
        UserError: the file of `--config` cannot be used.
    """
    config: Config = _parsed([defaults_of(kind)], prog, description or kind.__doc__ or "", args)[0]
    return config


def cli_beside(
    kind: type[Config], beside: Beside, prog: str, args: Sequence[str] | None = None
) -> tuple[Config, Beside]:
    """Read a config, with the options of another dataclass (its defaults are given) beside its own.

    Raises:
        UserError: as `parse`.
    """
    config, other = _parsed([defaults_of(kind), beside], prog, kind.__doc__ or "", args)
    return config, other


def parse_beside(  # noqa: PLR0913
    recipes: Mapping[str, Config],
    default: str,
    prog: str,
    description: str,
    beside: Beside,
    args: Sequence[str] | None = None,
) -> tuple[Config, Beside]:
    """Read `prog [RECIPE] [--flag value ...]`: a named config, and another dataclass whose options stand beside.

    Args:
        recipes: By name.
        default: Name of the recipe if none is given.
        prog: Name of the command.
        description: Description of the command.
        beside: Defaults of the other dataclass.
        args: Words instead of `sys.argv`.

    Raises:
        UserError: the first word is not the name of a recipe, or as `parse`.
    """
    words = list(sys.argv[1:] if args is None else args)
    name = words.pop(0) if words and not words[0].startswith("-") else _recipe_in_file(words) or default
    if name not in recipes:
        listed = f"choose one of {', '.join(recipes)}"
        raise UserError(f"there is no recipe {name!r}; {listed}{did_you_mean(name, recipes)}")
    usage = f"{description}\n\nRecipes (first word, default {default}): {', '.join(recipes)}."
    recipe, other = _parsed([recipes[name], beside], f"{prog} [RECIPE]", usage, words)
    return recipe, other


def parse_command(
    commands: Mapping[str, type[Any]], prog: str, description: str, args: Sequence[str] | None = None
) -> Any:
    """Read `prog COMMAND [--flag value ...]`: the config of one of several commands, chosen by the first word.

    Raises:
        UserError: the first word is none of the commands, or as `parse`.
    """
    words = list(sys.argv[1:] if args is None else args)
    name = words.pop(0).replace("_", "-") if words else "--help"
    if name in ("-h", "--help"):
        print(f"usage: {prog} COMMAND [-h] [OPTIONS]\n\n{inspect.cleandoc(description)}\n")
        for command, kind in commands.items():
            print(f"  {command:<12}{inspect.cleandoc(kind.__doc__ or '').splitlines()[0]}")
        raise SystemExit(0)
    if name not in commands:
        raise UserError(f"there is no command {name!r}; choose one of {', '.join(commands)}")
    return parse(commands[name], f"{prog} {name}", args=words)


def _recipe_in_file(words: Sequence[str]) -> str | None:
    """Name of the recipe in the file of `--config`, if it has one."""
    path = config_path(words)
    name = None if path is None else read_settings(path).get("name")
    return None if name is None else str(name)


def _parsed(configs: Sequence[Any], prog: str, description: str, args: Sequence[str] | None) -> list[Any]:
    words = list(sys.argv[1:] if args is None else args)
    _require_lists_once(configs, words)
    if path := config_path(words):
        settings = read_settings(path)
        configs = with_settings(configs, settings, path)
    # tyro would join lines that begin with a letter, without wrapping them again, and double lines that are empty.
    wrapper = textwrap.TextWrapper(shutil.get_terminal_size().columns, initial_indent=" ", subsequent_indent=" ")
    paragraphs = map(wrapper.fill, inspect.cleandoc(description).split("\n\n"))
    return parse_options(configs, prog, "\n\N{ZERO WIDTH SPACE}\n".join(paragraphs), words)


def _require_lists_once(configs: Sequence[Any], words: Sequence[str]) -> None:
    """Refuse an option with a list of values that is given twice: only the last list would count."""
    for option in (option for config in configs for option in options_of(config)):
        hint = get_args(option.hint)[0] if option.markers else option.hint
        given = sum(word.partition("=")[0] == f"--{option.name}" for word in words)
        if Ellipsis in get_args(hint) and given > 1:
            raise UserError(f"--{option.name} is given {given} times; give all values after one --{option.name}")


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers that a field takes, both limits included: `Annotated[int, Range(1)]`; None is always allowed."""

    least: float
    most: float = math.inf


def validate(config: object, prefix: str = "") -> None:
    """Compare the numbers of a config, nested ones too, with the ranges of their fields.

    Args:
        config: The config.
        prefix: Put before the names of its options, if it is nested in another.

    Raises:
        UserError: names the first option that is out of range and its range.
    """
    for option in options_of(config, prefix=prefix):
        for limits in (marker for marker in option.markers if isinstance(marker, Range)):
            for value in option.default if isinstance(option.default, tuple) else (option.default,):
                check_range(option.name, value, limits.least, limits.most)


def check_range(option: str, value: float | None, least: float, most: float = math.inf) -> None:
    """Refuse a number that makes no sense; None, an option that was left alone, is fine.

    Raises:
        UserError: names the option and what it takes.
    """
    if value is None or least <= value <= most:
        return
    limits = f"from {least:.10g} to {most:.10g}" if math.isfinite(most) else f"of at least {least:.10g}"
    raise UserError(f"--{option} {value} is out of range; give a number {limits}")


def require_paths(**paths: Path | None) -> None:
    """Refuse options whose file or folder is absent; None, an option that was left alone, is fine.

    Raises:
        UserError: names the option and its path.
    """
    for option, path in paths.items():
        if path is not None and not path.exists():
            raise UserError(f"there is no file or folder --{option} {path}; check the path")


def make_folder(folder: Path, what: str) -> None:
    """Make a folder for what a command writes.

    Raises:
        UserError: it cannot be made; `what` says whose folder it is.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror
        raise UserError(f"cannot make the folder {what} {folder}: {reason}; give another") from error


def settings_text(config: object) -> str:
    """Format a config for people: one `name = value` line a field, nested fields under dotted names."""
    return "\n".join(f"  {name} = {value}" for name, value in flat(as_plain(config)))


def as_plain(config: object) -> dict[str, object]:
    """Convert a config to plain JSON-able values: nested dataclasses become dicts, paths become strings."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"{config!r} is not a dataclass instance")
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return as_plain(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if isinstance(value, str | int | float | bool | None) else str(value)
