"""Training state on disk: saved atomically, resumed from the newest file that is whole."""

import json
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from shared.config_file import flat
from shared.errors import UserError
from shared.files import atomic_path

NAME = re.compile(r"checkpoint-(\d{9})\.pt")
FORMAT = "dpa-p2pnet training state"
OTHER_VERSION = "finish the run with that version, or begin another with --run-dir"
DETAIL = 100  # characters of an error that are shown
KEPT = 2  # if the newest is damaged, there is another


def save(folder: Path, step: int, recipe: str, state: dict[str, Any], keep_every: int | None = None) -> Path:
    """Write `folder/checkpoint-STEP.pt` atomically, then drop all but the two newest.

    Args:
        folder: The run folder.
        step: Optimiser steps done so far.
        recipe: Name of the recipe; `resume` refuses another.
        state: Tensors and plain Python values only, so that `weights_only` loading accepts it.
        keep_every: Those of every multiple of this step stay as well.

    Raises:
        UserError: the disk is full or cannot be written.
    """
    path = folder / f"checkpoint-{step:09d}.pt"
    try:
        with atomic_path(path) as temporary:
            torch.save({"format": FORMAT, "recipe": recipe, "step": step, **state}, temporary)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError if the disk is full
        raise UserError(
            f"cannot write {path} ({str(error).splitlines()[0]}); the checkpoints before it are kept: "
            "make room, and the same command goes on from them"
        ) from error
    for old in _newest_first(folder)[KEPT:]:
        if keep_every is None or _step_of(old) % keep_every:
            old.unlink()
    return path


def resume(folder: Path, recipe: str) -> dict[str, Any] | None:
    """Read the newest whole training state in `folder` (on the CPU), or None if there is none yet.

    A file that cannot be read is named on stderr and the next older one is taken.

    Raises:
        UserError: the newest state belongs to another recipe, or none of the files can be read.
    """
    paths = _newest_first(folder)
    for path in paths:
        state = _read(path)
        if state is None:
            print(f"warning: {path} is damaged; trying the one before it", file=sys.stderr)
            continue
        if state["recipe"] != recipe:
            raise UserError(
                f"{path} belongs to recipe {state['recipe']!r}, not {recipe!r}; "
                "give another run folder with --run-dir, or remove this one"
            )
        return state
    if paths:
        raise UserError(f"no checkpoint in {folder} can be read; give another run folder with --run-dir")
    return None


@contextmanager
def explain_other_version(folder: Path) -> Iterator[None]:
    """Turn errors of restoring a checkpoint's contents, which another version has written, into a UserError.

    Args:
        folder: The run folder.

    Raises:
        UserError: a part of the state is missing, or does not fit the networks.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        detail = f"{type(error).__name__}: {' '.join(str(error).split())[:DETAIL]}"
        raise UserError(
            f"the checkpoints in {folder} are of another version of this program ({detail}); {OTHER_VERSION}"
        ) from error


def newest_step(folder: Path) -> int | None:
    """Return the step of the newest checkpoint in `folder`; None if there is none."""
    paths = _newest_first(folder)
    return _step_of(paths[0]) if paths else None


def refuse_other_settings(folder: Path, settings: Mapping[str, Any], free: Collection[str]) -> None:
    """Compare a run's saved `config.json` with the settings of the command that would resume it.

    Args:
        folder: The run folder; one without `config.json` accepts anything.
        settings: The resolved config as plain values.
        free: Fields that may change between attempts; nested ones by dotted name.

    Raises:
        UserError: a field that decides the result differs, or `config.json` is damaged.
    """
    path = folder / "config.json"
    if not path.exists():
        return
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged; give another run folder with --run-dir") from error
    decisive = {name: value for name, value in settings.items() if name not in free and name in before}
    # Through JSON and back, as the saved ones went: tuples become lists.
    now = {name: value for name, value in flat(json.loads(json.dumps(decisive))) if name not in free}
    then = {name: value for name, value in flat({name: before[name] for name in decisive}) if name not in free}
    for name in sorted(now.keys() | then.keys(), key=lambda name: (name != "name", name)):  # the recipe first
        if (now.keys() ^ then.keys()) & {name}:
            without = "without" if name in now else "with"
            raise UserError(
                f"{folder} was started by another version of this program, {without} the setting {name}; "
                f"{OTHER_VERSION}"
            )
        if now[name] != then[name]:
            raise UserError(
                f"{folder} was started with {name}={then[name]}, not {now[name]}; "
                "give another run folder with --run-dir, or remove this one"
            )


def _newest_first(folder: Path) -> list[Path]:
    paths = [path for path in folder.glob("checkpoint-*.pt") if NAME.fullmatch(path.name)]
    return sorted(paths, reverse=True)


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("checkpoint-"))


def _read(path: Path) -> dict[str, Any] | None:
    """Read the state in `path`, or None if the file is cut short, or is something else."""
    try:
        path.open("rb").close()
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError) as error:  # of the machine, not of the file: it must not be thought damaged
        raise UserError(f"{path} cannot be read now ({error}); nothing is lost, try again") from error
    except Exception:  # torch raises a dozen types for damaged archives; all mean the same here
        return None
    return state if isinstance(state, dict) and state.get("format") == FORMAT else None
