"""`--config FILE`: options from a TOML file or from the `config.json` of a run."""

import difflib
import itertools
import json
import tomllib
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from shared.errors import UserError
from shared.options import options_of, with_values


def config_path(words: Sequence[str]) -> Path | None:
    """Return the last value of `--config` on a command line; None: it is not given."""
    found = None
    for word, after in itertools.pairwise([*words, ""]):
        name, has_value, value = word.partition("=")
        if name == "--config":
            found = Path(value if has_value else after)
    return found


def read_settings(path: Path) -> dict[str, Any]:
    """Read a TOML or JSON file.

    Raises:
        UserError: it cannot be read or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
        settings = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise UserError(f"cannot read --config {path}: {error.strerror}; check the path") from error
    except (ValueError, RecursionError) as error:
        kind = "TOML" if path.suffix == ".toml" else "JSON"
        raise UserError(f"--config {path} is not valid {kind} ({error}); correct it") from error
    if not isinstance(settings, dict):
        raise UserError(f"--config {path} holds no names of options; give NAME.toml or a config.json")
    return settings


def with_settings(configs: Sequence[Any], settings: Mapping[str, Any], path: Path) -> list[Any]:
    """Replace the values of configs by those of a file.

    Keys are the names of options or of fields, nested ones in tables or with dots.

    Raises:
        UserError: the file has an unknown name, or a value of another type.
    """
    options, values = {}, {}
    for number, config in enumerate(configs):
        for option in options_of(config, (f"config{number}",)):
            for name in (option.name, ".".join(option.path[1:])):
                options[_key(name)] = option
    for name, value in flat(settings):
        if (key := _key(name)) not in options:
            raise UserError(f"--config {path} has {name}, which is no option{did_you_mean(key, options)}")
        option = options[key]
        if option.is_fixed and value != option.default:
            raise UserError(f"--config {path} has {name} = {value!r}, which is fixed to {option.default!r}")
        try:
            values[option.path] = _typed(option.hint, value)
        except ValueError as error:
            raise UserError(f"--config {path} has {name} = {value!r}; give {error}") from error
    return [with_values(config, values, (f"config{number}",)) for number, config in enumerate(configs)]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown name: the most similar known one, if there is any."""
    similar = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {similar[0]}?)" if similar else ""


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield nested settings as pairs of dotted name and value."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _key(name: str) -> str:
    return name.replace("-", "_")


def _typed(hint: Any, value: Any) -> Any:
    """Convert a plain value to the type of a field.

    Raises:
        ValueError: it cannot be; the message describes what would do.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _typed(parts[0], value)
    if origin in (Union, types.UnionType):
        return _first_typed(parts, value)
    if origin is Literal:
        if value not in parts:
            raise ValueError(f"one of {', '.join(map(repr, parts))}")
        return value
    if origin is tuple:
        return _typed_items(parts, value)
    if (hint, type(value)) in ((Path, str), (float, int)):
        return hint(value)
    if type(value) is not hint:
        raise ValueError("a path" if hint is Path else f"a value of type {hint.__name__}")
    return value


def _typed_items(hints: Sequence[Any], values: Any) -> tuple[Any, ...]:
    """Convert a list to a tuple."""
    if not isinstance(values, list):
        raise ValueError("a list")
    each = [hints[0]] * len(values) if hints[-1] is Ellipsis else hints
    if len(each) != len(values):
        raise ValueError(f"a list of {len(each)}")
    return tuple(_typed(hint, value) for hint, value in zip(each, values, strict=True))


def _first_typed(hints: Sequence[Any], value: Any) -> Any:
    """Convert a plain value to the first of several types that takes it."""
    reasons = []
    for hint in hints:
        try:
            return _typed(hint, value)
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError(reasons[0])
