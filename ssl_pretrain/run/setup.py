"""Start of a run: checks before anything is written, run folder, state and summary."""

import json
from pathlib import Path

import torch

from shared.cli import as_plain
from shared.errors import UserError
from shared.signals import StopSignal
from shared.training.checkpoint import newest_step, refuse_other_settings
from shared.training.distributed import World, is_stopped
from shared.training.network_size import count_parameters
from shared.training.rank_errors import refuse_differences, texts_of_ranks, together
from shared.training.run_folder import Run
from shared.weights.weights_file import IMAGENET_MEAN, IMAGENET_STD, check_destination
from ssl_pretrain.data.epoch_order import EpochPartition
from ssl_pretrain.data.gpu_decoding import require_gpu_decoder
from ssl_pretrain.data.shard_loader import check_batch
from ssl_pretrain.data.shard_set import (
    ShardSet,
    check_sums,
    count_foreign,
    fingerprint,
    open_shards,
    remember,
    same_as_remembered,
)
from ssl_pretrain.methods import Method
from ssl_pretrain.methods.sync_batch_norm import synchronise
from ssl_pretrain.recipe import PretrainingRecipe, check
from ssl_pretrain.run.batch_plan import BatchPlan
from ssl_pretrain.run.initial_weights import check_init, describe_init, load_init, origin_of
from ssl_pretrain.run.state import PretrainingState

# May differ between two attempts of one run: where things lie, how the work is divided, what is written when ...
FREE_ON_RESUME = (
    *("shards", "run_dir", "out", "micro_batch", "max_steps", "loader"),
    *("compile", "checkpoint_activations"),
    *("verify", "log_every", "checkpoint_every", "keep_every", "monitor_every"),
)
# ... and, until the run is finished, what helps against a loss that is not finite.
TUNABLE_ON_RESUME = (
    "precision",
    *(f"optimiser.{name}" for name in ("base_lr", "warmup_lr", "final_lr", "clip")),
)


def prepare(recipe: PretrainingRecipe, world: World) -> tuple[BatchPlan, ShardSet]:
    """Check settings and shards and divide the batch; writes nothing.

    Raises:
        AllRanksError: an option is out of range, the shards cannot be used, or the run folder has a checkpoint
            of a run with other shards or other settings.
    """
    with together(world):
        check(recipe)
        check_init(recipe)
        if recipe.loader.decode == "gpu":
            require_gpu_decoder(world.device)
        if world.is_main:
            check_destination(recipe.out)
        plan = BatchPlan.of(recipe, world.size)
        if has_begun(recipe):
            refuse_other_settings(recipe.run_dir, as_plain(recipe), _free(plan))
        counts = count_foreign(recipe.shards, _memory(recipe)) if world.is_main else {}
    counts = json.loads(texts_of_ranks(json.dumps(counts), world)[0])  # one rank counts for all
    with together(world):
        shard_set = open_shards(recipe.shards, counts)
        check_batch(shard_set, recipe.batch_size)
        if has_begun(recipe):
            _refuse_other_shards(recipe, shard_set)
    different = f"the ranks see different shards in {recipe.shards}; give every node the same with --shards"
    refuse_differences(fingerprint(shard_set), world, different)
    return plan, shard_set


def has_begun(recipe: PretrainingRecipe) -> bool:
    """Return True if an earlier attempt left a checkpoint or weights; until then, settings may change."""
    export = recipe.run_dir / recipe.out.name
    return export.exists() or any(recipe.run_dir.glob("checkpoint-*.pt"))


def _free(plan: BatchPlan) -> tuple[str, ...]:
    """Return the settings in which this attempt may differ from the one before."""
    finished = (newest_step(plan.recipe.run_dir) or 0) >= plan.last_step
    return FREE_ON_RESUME if finished else (*FREE_ON_RESUME, *TUNABLE_ON_RESUME)


def verify(recipe: PretrainingRecipe, shard_set: ShardSet, world: World, stop: StopSignal) -> bool:
    """Compare the shards with their index before the first step, each rank a part; False on a stop signal.

    Raises:
        AllRanksError: a shard is not the one that was indexed.
    """
    with together(world):
        if recipe.verify and not has_begun(recipe):
            numbers = range(world.rank, len(shard_set.shards), world.size)
            check_sums(shard_set, numbers, lambda: stop.received is not None, quiet=not world.is_main)
    return not is_stopped(stop, world)


def open_run(recipe: PretrainingRecipe, shard_set: ShardSet, world: World) -> Run:
    """Open the run folder; the caller closes it.

    Raises:
        AllRanksError: the folder cannot be used.
    """
    with together(world):
        run = Run(recipe.run_dir, recipe, writes=world.is_main)
        if world.is_main:
            remember(shard_set, _memory(recipe))
            _sweep(recipe)
    return run


def begin(plan: BatchPlan, world: World) -> tuple[PretrainingState, str]:
    """Make networks and optimiser, or restore them; returns a description of the run's position, too.

    Raises:
        AllRanksError: no checkpoint can be read, or not all ranks read the same.
    """
    recipe = plan.recipe
    workers = max(recipe.loader.resolved_workers(), 1)
    layout = EpochPartition(plan.micro_batch, world.size, workers, recipe.loader.buffer)
    torch.manual_seed(recipe.seed)  # the same fresh weights on every rank
    method = _networks(recipe, world)
    state = PretrainingState(method, recipe.optimiser.build(method), layout)
    with together(world):
        standing = state.restore(recipe.run_dir, recipe.name, free_workers=recipe.loader.workers is None)
    different = (
        f"the ranks see different checkpoints in {recipe.run_dir}; "
        "it must lie on a file system that all nodes share"
    )
    refuse_differences(f"{state.step} {state.position} {state.layout}", world, different)
    return state, standing


def _networks(recipe: PretrainingRecipe, world: World) -> Method:
    """Build the recipe's networks with fresh weights or those of `--init`, as this machine is to run them."""
    method: Method = recipe.method.build()
    with together(world):
        if not has_begun(recipe):
            load_init(recipe, method)
    method = method.to(world.device)
    if world.size > 1 and recipe.method.batch_norm_ranks > 1:
        synchronise(method, recipe.method.batch_norm_ranks)
    if recipe.checkpoint_activations:
        method.checkpoint_activations()
    if recipe.compile:
        method.compile_trunks()
    return method


def normalisation(recipe: PretrainingRecipe, shard_set: ShardSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Channel means and standard deviations of the recipe's normalisation."""
    if recipe.init is not None:
        origin = origin_of(recipe.init)
        return origin.mean, origin.std
    if recipe.normalisation == "imagenet":
        return IMAGENET_MEAN, IMAGENET_STD
    return shard_set.mean, shard_set.std


def describe(plan: BatchPlan, state: PretrainingState, shard_set: ShardSet, world: World) -> str:
    """Format the numbers that a user wants to see before the first step."""
    recipe, method = plan.recipe, state.method
    mean, std = (", ".join(f"{x:.3f}" for x in values) for values in normalisation(recipe, shard_set))
    origin = "" if shard_set.indexed else " (foreign: no index.json, so they were counted; ImageNet's colours)"
    init = f"init    {line}\n" if (line := describe_init(recipe)) else ""
    a_gpu = f" ({torch.cuda.get_device_name(world.device)})" if world.device.type == "cuda" else ""
    return (
        f"recipe  {recipe.name}: {recipe.method.name} with {recipe.method.arch}, "
        f"{count_parameters(method) / 1e6:.1f} M parameters, "
        f"{count_parameters(method.backbone()) / 1e6:.1f} M of them exported\n"
        f"{init}shards  {recipe.shards}: {len(shard_set.shards)} with {shard_set.samples:,} patches{origin}, "
        f"mean {mean}, deviation {std}\n"
        f"{plan}\n"
        f"epochs  {recipe.samples_seen / shard_set.samples:,.1f} over these patches, "
        f"{shard_set.samples / recipe.batch_size:,.1f} steps each\n"
        f"device  {world.device}{a_gpu}, {recipe.loader.processes(state.layout)} loader worker(s) a rank; "
        f"run folder {recipe.run_dir}"
    )


def _memory(recipe: PretrainingRecipe) -> Path:
    return recipe.run_dir / "shards.json"


def _refuse_other_shards(recipe: PretrainingRecipe, shard_set: ShardSet) -> None:
    if _memory(recipe).exists() and not same_as_remembered(shard_set, _memory(recipe)):
        raise UserError(
            f"the shards in {recipe.shards} are not those that the run in {recipe.run_dir} began with; "
            "give another run folder with --run-dir, or the old shards with --shards"
        )


def _sweep(recipe: PretrainingRecipe) -> None:
    """Remove what a killed process was writing; a half checkpoint of ViT-B is a gigabyte."""
    for path in (
        *recipe.run_dir.glob(".*.tmp"),
        *(recipe.run_dir / "pictures").glob(".*.tmp"),
        *recipe.out.parent.glob(f".{recipe.out.name}.*.tmp"),
    ):
        path.unlink()
