"""SwAV with few images at once: the published recipe for 4096 makes way for the one for 256, which has a queue.

What counts is what shares the prototypes: the images of one pass on all ranks together, of which gradient
accumulation makes no more.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from shared.cli import as_plain, flat, parse_beside
from shared.errors import UserError
from shared.training.distributed import World
from shared.training.rank_errors import together
from ssl_pretrain.methods.swav import BATCH_WITHOUT_QUEUE
from ssl_pretrain.recipe import Recipe, check
from ssl_pretrain.recipes import RECIPES
from ssl_pretrain.run.batch_plan import BatchPlan
from ssl_pretrain.run.setup import has_begun

Beside = TypeVar("Beside")
# A recipe, and the one that takes its place.
SMALL_BATCH = {"swav_resnet50": "swav_resnet50_256", "swav_resnet50_ihc": "swav_resnet50_256_ihc"}


@dataclass(frozen=True)
class RecipeChoice:
    """What was typed, before it is known on how many ranks it runs."""

    recipe: Recipe
    """The recipe with the options that were given."""
    small: Recipe | None = None
    """The one that takes its place where few images are seen at once, with the same options."""

    def on(self, ranks: int) -> Recipe:
        """The recipe that so many ranks train with; a run that has begun stays what it is.

        Raises:
            UserError: an option is out of range, the batch cannot be shared evenly by the ranks, or the run
                folder's config is damaged.
        """
        if self.small is None:
            return self.recipe
        check(self.recipe)
        if has_begun(self.recipe):
            return self.small if _trained_in(self.recipe) == self.small.name else self.recipe
        micro_batch, _ = BatchPlan.divide(self.recipe, ranks)
        return self.small if ranks * micro_batch < BATCH_WITHOUT_QUEUE else self.recipe

    def on_these(self, world: World) -> Recipe:
        """`on` the ranks that are there; called on each.

        Raises:
            AllRanksError: as `on`.
        """
        with together(world):
            return self.on(world.size)


def parse_asked(
    prog: str, description: str, beside: Beside, args: Sequence[str] | None = None
) -> tuple[RecipeChoice, Beside]:
    """`prog [RECIPE] [--flag value ...]`, with the options of another dataclass beside those of the recipe.

    Raises:
        UserError: the first word is not the name of a recipe.
    """
    recipe, told = parse_beside(RECIPES, "mae_vitb", prog, description, beside, args)
    if recipe.name not in SMALL_BATCH:
        return RecipeChoice(recipe), told
    published = RECIPES[recipe.name]
    small = replace(RECIPES[SMALL_BATCH[recipe.name]], run_dir=published.run_dir, out=published.out)
    # The same words over the other recipe's numbers: whatever was given is the same in both.
    small, _ = parse_beside({recipe.name: small}, recipe.name, prog, description, beside, args)
    return RecipeChoice(recipe, _in_place_of(recipe, small)), told


def _in_place_of(recipe: Recipe, small: Recipe) -> Recipe:
    """`small`, which says what it has taken the place of and in what they differ.

    Rates follow the images of a step, however many passes they take: with as many as published they stay.
    """
    if small.batch_size >= BATCH_WITHOUT_QUEUE:
        small = replace(small, optimiser=recipe.optimiser)
    before = dict(flat(as_plain(recipe)))
    now = dict(flat(as_plain(small)))
    changes = [f"{name}={now[name]}" for name in now if name != "name" and now[name] != before[name]]
    says = ", ".join(changes) or "no option changes, all were given"
    return replace(
        small, in_place_of=f"{recipe.name}, which is for {BATCH_WITHOUT_QUEUE:,} images at once: {says}"
    )


def _trained_in(recipe: Recipe) -> str:
    """The name of the recipe that a run folder was begun with."""
    path = recipe.run_dir / "config.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["name"])
    except FileNotFoundError:
        return recipe.name
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged; give another run folder with --run-dir") from error
