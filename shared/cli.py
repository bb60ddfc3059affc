"""From the command line to a frozen config; wrong input ends in one sentence and exit code 2."""

import ast
import dataclasses
import inspect
import itertools
import math
import multiprocessing
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, get_type_hints

import tyro

from shared.errors import DISK_FULL, REFUSED, UserError
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


def parse_beside(
    recipes: Mapping[str, Config],
    default: str,
    prog: str,
    description: str,
    beside: Beside,
    args: Sequence[str] | None = None,
) -> tuple[Config, Beside]:
    """Read `prog [RECIPE] [--flag value ...]`: a named config, and another dataclass whose options stand beside.

    Raises:
        UserError: the first word is not the name of a recipe.
    """
    recipe, words = _chosen(recipes, default, args)
    usage = _usage(recipes, default, description)
    return cli_beside(type(recipe), beside, f"{prog} [RECIPE]", usage, default=recipe, args=words)


def cli_beside(
    kind: type[Config],
    beside: Beside,
    prog: str,
    description: str | None = None,
    default: Config | None = None,
    args: Sequence[str] | None = None,
) -> tuple[Config, Beside]:
    """Read a config, with the options of another dataclass beside its own.

    Options inherited from base dataclasses are grouped by these in --help.

    Args:
        kind: The config.
        beside: Defaults of the other dataclass.
        prog: Name of the command.
        description: Description of the command; default: the config's.
        default: Defaults of the config, if it has any.
        args: Words instead of `sys.argv`.
    """
    unnamed = tyro.conf.arg(name="")
    both = dataclasses.make_dataclass(
        "both",
        [*_groups(kind, default), ("beside", Annotated[type(beside), unnamed], dataclasses.field(default=beside))],
        frozen=True,
    )
    read: Any = tyro.cli(
        both, prog=prog, description=inspect.cleandoc(description or kind.__doc__ or ""), args=args
    )
    groups = {name: value for name, value in vars(read).items() if name != "beside"}
    if "config" in groups:
        return groups["config"], read.beside
    return kind(**{name: value for group in groups.values() for name, value in vars(group).items()}), read.beside


def _groups(kind: type[Config], default: Config | None) -> list[tuple[str, Any, Any]]:
    """Return the fields of a dataclass for tyro: one per base dataclass if it has no other fields, or itself."""
    bases = [base for base in reversed(kind.__bases__) if dataclasses.is_dataclass(base)]
    if not bases or inspect.get_annotations(kind):
        first: Any = dataclasses.field() if default is None else dataclasses.field(default=default)
        return [("config", Annotated[kind, tyro.conf.arg(name="")], first)]
    given = default or kind()
    return [
        (base.__name__.removesuffix("Options").lower(), Annotated[group, tyro.conf.OmitArgPrefixes], group())
        for base in bases
        for group in [_group(base, given)]
    ]


def _group(base: type, given: Any) -> type:
    """Copy a dataclass of options with defaults and one-line help; tyro would keep line breaks of the source."""
    hints, help_of = get_type_hints(base, include_extras=True), _field_docs(base)
    options: list[tuple[str, Any, Any]] = [
        (name, Annotated[hints[name], tyro.conf.arg(help=help_of[name])], getattr(given, name)) for name in help_of
    ]
    return dataclasses.make_dataclass(base.__name__, options, namespace={"__doc__": base.__doc__}, frozen=True)


def _field_docs(kind: type) -> dict[str, str]:
    """Return the docstrings below the fields of a dataclass, each as one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: " ".join(str(ast.literal_eval(doc.value)).split())
        for field, doc in itertools.pairwise(body.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(doc, ast.Expr)
    }


def _chosen(recipes: Mapping[str, Config], default: str, args: Sequence[str] | None) -> tuple[Config, list[str]]:
    """The recipe that the first word names, and the other words."""
    words = list(sys.argv[1:] if args is None else args)
    name = words.pop(0) if words and not words[0].startswith("-") else default
    if name not in recipes:
        raise UserError(f"there is no recipe {name!r}; choose one of {', '.join(recipes)}")
    return recipes[name], words


def _usage(recipes: Mapping[str, Config], default: str, description: str) -> str:
    return f"{description}\n\nRecipes (first word, default {default}): {', '.join(recipes)}."


def check_range(option: str, value: float | None, least: float, most: float = math.inf) -> None:
    """Refuse a number that makes no sense; None, an option that was left alone, is fine.

    Raises:
        UserError: names the option and what it takes.
    """
    if value is None or least <= value <= most:
        return
    limits = f"from {least:.10g} to {most:.10g}" if math.isfinite(most) else f"of at least {least:.10g}"
    raise UserError(f"--{option} {value} is out of range; give a number {limits}")


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
    """A config for people: one `name = value` line a field, nested fields under dotted names."""
    return "\n".join(f"  {name} = {value}" for name, value in flat(as_plain(config)))


def as_plain(config: object) -> dict[str, object]:
    """A config as plain JSON-able values: nested dataclasses become dicts, paths become strings."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"{config!r} is not a dataclass instance")
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Nested settings as pairs of dotted name and value."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return as_plain(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if isinstance(value, str | int | float | bool | None) else str(value)
