"""From the command line to a frozen config; wrong input ends in one sentence and exit code 2."""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NoReturn, TypeVar

import tyro

Config = TypeVar("Config")


class UserError(Exception):
    """Input that only the user can mend; the message is one sentence with the file and the fix."""


def run(command: Callable[[], int | None]) -> NoReturn:
    """Call a stage's main function and leave the process with its exit code (None means 0)."""
    try:
        code = command() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of our output (`| head`) went away
        sys.stderr.close()
        code = 141
    sys.exit(code)


def parse(
    recipes: Mapping[str, Config],
    default: str,
    prog: str,
    description: str,
    args: Sequence[str] | None = None,
) -> Config:
    """Read `prog [RECIPE] [--flag value ...]`: a named config, with single fields overridden.

    Raises:
        UserError: the first word is not the name of a recipe.
    """
    words = list(sys.argv[1:] if args is None else args)
    name = words.pop(0) if words and not words[0].startswith("-") else default
    if name not in recipes:
        raise UserError(f"there is no recipe {name!r}; choose one of {', '.join(recipes)}")
    recipe = recipes[name]
    usage = f"{description}\n\nRecipes (first word, default {default}): {', '.join(recipes)}."
    return tyro.cli(type(recipe), prog=f"{prog} [RECIPE]", description=usage, default=recipe, args=words)


def settings_text(config: object) -> str:
    """A config for people: one `name = value` line a field, nested fields under dotted names."""
    return "\n".join(f"  {name} = {value}" for name, value in _flat(as_plain(config)))


def as_plain(config: object) -> dict[str, object]:
    """A config as plain JSON-able values: nested dataclasses become dicts, paths become strings."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"{config!r} is not a dataclass instance")
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
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
