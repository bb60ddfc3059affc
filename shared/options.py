"""Options of the command line: one for each field of a config, shown in groups by `--help`.

A group is a base dataclass named `...Options`, a nested dataclass, or the fields from one that the class variable
`help_groups` names to the next.
"""

import ast
import dataclasses
import inspect
import itertools
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_type_hints

import tyro

Config = TypeVar("Config")
CONFIG_FILE = "Read options from a TOML file or from the config.json of a run; options given here win over it."


class Group(NamedTuple):
    """A box of `--help`."""

    title: str
    description: str = ""


# Between the names of a path where it has to be one name.
BETWEEN = "__"
UNGROUPED = Group("")


class Option(NamedTuple):
    """One field of a config."""

    path: tuple[str, ...]
    """Names of the fields that lead to it."""
    name: str
    """Name on the command line, without dashes in front."""
    hint: Any
    help: str
    default: Any
    group: Group
    is_fixed: bool
    """True for a field that users cannot set."""

    @property
    def markers(self) -> tuple[Any, ...]:
        """Annotations of its type."""
        return get_args(self.hint)[1:] if hasattr(self.hint, "__metadata__") else ()


def defaults_of(kind: type[Config]) -> Config:
    """Make a config of defaults; required fields are `tyro.MISSING`."""
    fields = (field for field in dataclasses.fields(kind) if field.init)  # type: ignore[arg-type]
    missing = (dataclasses.MISSING, dataclasses.MISSING)
    return kind(**{f.name: tyro.MISSING for f in fields if (f.default, f.default_factory) == missing})


def options_of(
    config: Any, path: tuple[str, ...] = (), prefix: str = "", group: Group = UNGROUPED
) -> Iterator[Option]:
    """Yield the options of a config and of the dataclasses nested in it.

    Args:
        config: Holds the defaults.
        path: Fields that lead to it.
        prefix: Put before the names of options.
        group: Group of fields that have none of their own.
    """
    docs, owners = _field_docs(type(config)), _owners(type(config))
    groups: Mapping[str, str] = getattr(type(config), "help_groups", {})
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        if name not in owners:
            continue  # a class variable
        if name in groups:
            group = Group(groups[name])
        elif owners[name].__name__.endswith("Options") and len(path) <= 1:
            title = owners[name].__name__.removesuffix("Options").lower()
            group = Group(title, inspect.getdoc(owners[name]) or "")
        value, markers = getattr(config, name), getattr(hint, "__metadata__", ())
        if dataclasses.is_dataclass(value):
            inner = prefix if any(getattr(m, "name", None) == "" for m in markers) else f"{prefix}{name}."
            nested = group if inner == prefix else Group(inner[:-1].replace("_", "-"), docs.get(name, ""))
            yield from options_of(value, (*path, name), inner, nested)
        else:
            shown = f"{prefix}{name}".replace("_", "-")
            yield Option((*path, name), shown, hint, docs.get(name, ""), value, group, tyro.conf.Fixed in markers)


def with_values(config: Config, values: Mapping[tuple[str, ...], Any], path: tuple[str, ...] = ()) -> Config:
    """Copy a config with other values of some fields, by the path of their option."""
    changes = {}
    for name in (each.name for each in dataclasses.fields(config)):  # type: ignore[arg-type]
        place, value = (*path, name), getattr(config, name)
        if place in values:
            changes[name] = values[place]
        elif dataclasses.is_dataclass(value):
            changes[name] = with_values(value, values, place)
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def parse_options(configs: Sequence[Any], prog: str, description: str, words: Sequence[str] | None) -> list[Any]:
    """Parse the command line into configs whose options stand beside each other.

    Args:
        configs: Hold the defaults.
        prog: Name of the command.
        description: Paragraphs above the options.
        words: Instead of `sys.argv`.
    """
    boxes: dict[str, _Box] = {}
    for number, config in enumerate(configs):
        for option in options_of(config, (f"config{number}",)):
            box = boxes.setdefault(option.group.title, _Box())
            box.description = box.description or option.group.description
            if not option.is_fixed:
                box.options.append(option)
    file = Annotated[Path | None, tyro.conf.arg(name="config", metavar="FILE", help=CONFIG_FILE)]
    fields: list[tuple[str, Any, Any]] = [("config_file", file, None)]
    for number, (title, box) in enumerate(boxes.items()):
        kind, shown = box.as_dataclass(), tyro.conf.arg(name=title)
        fields.append((f"box{number}", Annotated[kind, tyro.conf.OmitArgPrefixes, shown], kind()))
    everything = dataclasses.make_dataclass("Everything", fields, frozen=True)
    # `--data DIR` names the argument that is given without its name, too.
    unnamed = {f"--{o.name}" for box in boxes.values() for o in box.options if tyro.conf.Positional in o.markers}
    parts = [(word, *word.partition("=")) for word in (sys.argv[1:] if words is None else words)]
    words = [value if name in unnamed else word for word, name, _, value in parts if word not in unnamed]
    parsed: Any = tyro.cli(everything, prog=prog, description=description, args=words)
    found = (vars(getattr(parsed, name)) for name, *_ in fields[1:])
    values = {tuple(key.split(BETWEEN)): value for box in found for key, value in box.items()}
    return [with_values(config, values, (f"config{number}",)) for number, config in enumerate(configs)]


@dataclass
class _Box:
    """Options of one group."""

    description: str = ""
    options: list[Option] = field(default_factory=list)

    def as_dataclass(self) -> type:
        """Make a dataclass from which tyro makes these options."""
        fields: list[tuple[str, Any, Any]] = [
            (BETWEEN.join(o.path), Annotated[o.hint, tyro.conf.arg(name=o.name, help=o.help)], o.default)
            for o in self.options
        ]
        return dataclasses.make_dataclass("Box", fields, namespace={"__doc__": self.description}, frozen=True)


def _owners(kind: type) -> dict[str, type]:
    """Map the fields of a dataclass to the base that declares them last."""
    return {
        field.name: next(base for base in kind.__mro__ if field.name in inspect.get_annotations(base))
        for field in dataclasses.fields(kind)
    }


def _field_docs(kind: type) -> dict[str, str]:
    """Return the docstrings below the fields of a dataclass, each as one line; tyro keeps some of their breaks."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for pair in itertools.pairwise(body.body):
            match pair:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    docs[name] = " ".join(text.split())
    return docs
