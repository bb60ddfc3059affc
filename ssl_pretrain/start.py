"""The beginning of a run: its folder, its shards, and what it comes to."""

import torch

from shared.checkpoint import refuse_other_settings
from shared.command_line import UserError, as_plain
from shared.distributed import World, wait_for_all
from shared.runs import Run
from shared.weights import IMAGENET_MEAN, IMAGENET_STD
from ssl_pretrain.methods import Method
from ssl_pretrain.plan import Plan
from ssl_pretrain.recipes import Recipe
from ssl_pretrain.shards import ShardSet, check_sums, open_shards, remember, same_as_remembered

# May differ between two attempts of one run: where things lie, how the work is divided, what is written when.
FREE = (
    *("shards", "run_dir", "out", "micro_batch", "max_steps", "loader"),
    *("verify", "log_every", "checkpoint_every"),
)


def open_run(recipe: Recipe, world: World) -> tuple[ShardSet, Run]:
    """The shards, checked by all ranks together when the run is new, and the folder of the run.

    Raises:
        UserError: the shards cannot be used, or the run folder was begun with others or with other settings.
    """
    refuse_other_settings(recipe.run_dir, as_plain(recipe), FREE)
    shard_set = open_shards(recipe.shards)
    memory = recipe.run_dir / "shards.json"
    if memory.exists():
        _refuse_other_shards(recipe, shard_set)
    elif recipe.verify:
        numbers = range(world.rank, len(shard_set.shards), world.size)
        check_sums(shard_set, numbers, quiet=not world.is_main)
    wait_for_all()
    run = Run(recipe.run_dir, recipe, writes=world.is_main)
    if world.is_main:
        remember(shard_set, memory)
        _sweep(run)
    return shard_set, run


def normalisation(recipe: Recipe, shard_set: ShardSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Channel means and standard deviations that the recipe asks for."""
    if recipe.normalisation == "imagenet":
        return IMAGENET_MEAN, IMAGENET_STD
    return shard_set.mean, shard_set.std


def describe(plan: Plan, method: Method, shard_set: ShardSet, world: World, workers: int) -> str:
    """The numbers a user wants to see before the first step."""
    recipe = plan.recipe
    mean, std = (", ".join(f"{x:.3f}" for x in values) for values in normalisation(recipe, shard_set))
    origin = "" if shard_set.indexed else " (foreign: no index.json, so they were counted; ImageNet's colours)"
    a_gpu = f" ({torch.cuda.get_device_name(world.device)})" if world.device.type == "cuda" else ""
    return (
        f"recipe  {recipe.name}: {recipe.method.name} with {recipe.method.arch}, "
        f"{_millions(method):.1f} M parameters, {_millions(method.backbone()):.1f} M of them exported\n"
        f"shards  {recipe.shards}: {len(shard_set.shards)} with {shard_set.samples:,} patches{origin}, "
        f"mean {mean}, deviation {std}\n"
        f"{plan}\n"
        f"epochs  {recipe.samples_seen / shard_set.samples:,.1f} over these patches, "
        f"{shard_set.samples / recipe.batch_size:,.1f} steps each\n"
        f"device  {world.device}{a_gpu}, {workers} loader worker(s) a rank; run folder {recipe.run_dir}"
    )


def _refuse_other_shards(recipe: Recipe, shard_set: ShardSet) -> None:
    if not same_as_remembered(shard_set, recipe.run_dir / "shards.json"):
        raise UserError(
            f"the shards in {recipe.shards} are not those that the run in {recipe.run_dir} began with; "
            "give another run folder with --run-dir, or the old shards with --shards"
        )


def _sweep(run: Run) -> None:
    """Remove what a killed process was writing; a half checkpoint of ViT-B is a gigabyte."""
    for path in run.folder.glob(".*.tmp"):
        path.unlink()


def _millions(network: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6
