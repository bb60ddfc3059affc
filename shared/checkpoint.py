"""Training state on disk: saved atomically, resumed from the newest file that is whole."""

import json
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from shared.atomic import atomic_path
from shared.command_line import UserError

NAME = re.compile(r"checkpoint-(\d{9})\.pt")
FORMAT = "dpa-p2pnet training state"


def save(folder: Path, step: int, recipe: str, state: dict[str, Any], keep: int = 2) -> Path:
    """Write `folder/checkpoint-STEP.pt` atomically, then drop all but the `keep` newest.

    Args:
        folder: The run folder.
        step: Optimiser steps done so far.
        recipe: Name of the recipe; `resume` refuses another.
        state: Tensors and plain Python values only, so that `weights_only` loading accepts it.
        keep: How many checkpoints stay.
    """
    path = folder / f"checkpoint-{step:09d}.pt"
    with atomic_path(path) as temporary:
        torch.save({"format": FORMAT, "recipe": recipe, "step": step, **state}, temporary)
    for old in _newest_first(folder)[keep:]:
        old.unlink()
    return path


def resume(folder: Path, recipe: str) -> dict[str, Any] | None:
    """The newest whole training state in `folder` (on the CPU), or None if there is none yet.

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
        raise UserError(f"no checkpoint in {folder} can be read; remove the folder to start anew")
    return None


def refuse_other_settings(folder: Path, settings: Mapping[str, Any], free: Collection[str]) -> None:
    """Compare a run's saved `config.json` with the settings of the command that would resume it.

    Args:
        folder: The run folder; one without `config.json` accepts anything.
        settings: The resolved config as plain values.
        free: Top-level fields that may change between attempts.

    Raises:
        UserError: a field that decides the result differs.
    """
    path = folder / "config.json"
    if not path.exists():
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    for name, value in settings.items():
        # Through JSON and back, as the saved one went: tuples become lists.
        if name not in free and name in before and before[name] != json.loads(json.dumps(value)):
            raise UserError(
                f"{folder} was started with {name}={before[name]}, not {value}; "
                "give another run folder with --run-dir, or remove this one"
            )


def rng_state() -> dict[str, torch.Tensor]:
    """State of torch's generators: `cpu`, and `cuda` of the current device where there is one."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_rng(state: dict[str, torch.Tensor]) -> None:
    """Put torch's generators back to `rng_state()`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _newest_first(folder: Path) -> list[Path]:
    paths = [path for path in folder.glob("checkpoint-*.pt") if NAME.fullmatch(path.name)]
    return sorted(paths, reverse=True)


def _read(path: Path) -> dict[str, Any] | None:
    """The state in `path`, or None if the file is cut short, or is something else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises a dozen types for damaged archives; all mean the same here
        return None
    return state if isinstance(state, dict) and state.get("format") == FORMAT else None
