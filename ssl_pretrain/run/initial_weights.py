"""`--init`: the trunk goes on from weights of any project; all else of the networks starts fresh."""

import dataclasses
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from shared.errors import UserError
from shared.files import sha256
from shared.weights.weights_file import LoadReport, load_into, read
from ssl_pretrain.methods import Method
from ssl_pretrain.recipe import PretrainingRecipe


class Origin(NamedTuple):
    """Weights that a run goes on from, without their tensors."""

    file: str
    sha256: str
    found: str
    """Description of the names' origin."""
    arch: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@lru_cache(maxsize=1)
def origin_of(path: Path) -> Origin:
    """Read what a weights file says of itself.

    Raises:
        UserError: there is no such file, or it holds no backbone of a known architecture.
    """
    weights = read(path)
    if weights.metadata.get("kind") == "detector":
        raise UserError(f"--init {path} is a whole detector; give the weights of a backbone")
    return Origin(str(path), sha256(path), weights.found, weights.arch, weights.mean, weights.std)


def check_init(recipe: PretrainingRecipe) -> None:
    """Check that the weights of `--init` are the recipe's architecture.

    Raises:
        UserError: they are another one's, or cannot be read.
    """
    if recipe.init is None:
        return
    arch = origin_of(recipe.init).arch
    if arch != recipe.method.arch:
        way_out = f"add --method.arch {arch}" if _can_train(recipe, arch) else "take a recipe for it"
        raise UserError(
            f"--init {recipe.init} is a {arch}, but the recipe trains a {recipe.method.arch}; "
            f"{way_out}, or give other weights"
        )


def _can_train(recipe: PretrainingRecipe, arch: str) -> bool:
    try:
        dataclasses.replace(recipe.method, arch=arch).check()
    except UserError:
        return False
    return True


def load_init(recipe: PretrainingRecipe, method: Method) -> LoadReport | None:
    """Copy the weights of `--init` into all trunks of a method (teachers and key networks too).

    Raises:
        UserError: they do not fit.
    """
    if recipe.init is None:
        return None
    weights = read(recipe.init)
    report, *_ = [load_into(trunk, weights) for trunk in method.trunks()]
    return report


def describe_init(recipe: PretrainingRecipe) -> str:
    """Describe what goes on and what starts fresh, in one line; empty without `--init`."""
    if recipe.init is None:
        return ""
    origin = origin_of(recipe.init)
    return f"{recipe.method.fresh} fresh, {recipe.method.arch} from {origin.file} ({origin.found})"
