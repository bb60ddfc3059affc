"""The fine-tuning loop: annotated tiles -> DPA-P2PNet -> detector.pth."""

import contextlib
import math
from collections.abc import Sequence

import torch

from finetune import results
from finetune.datasets import load_data
from finetune.datasets.dataset import AnnotatedData, Tile
from finetune.datasets.splits import hold_out
from finetune.datasets.wider_views import require_views
from finetune.recipes import Recipe, check, comparable_settings
from finetune.step import learning_rate, update
from finetune.training.initialisation import initial_detector, pretrained_batch_norms
from finetune.training.lora import freeze
from finetune.training.optimiser import create_optimiser
from finetune.training.state import TrainingState, ema_of
from finetune.training.tile_loader import TileStream, tile_batches
from finetune.validation import Validation
from shared.errors import UserError
from shared.model.cells import NetworkConfig
from shared.signals import StopSignal
from shared.training import checkpoint
from shared.training.distributed import World, end_at_checkpoint, is_stopped, replicated
from shared.training.gpu_usage import explain_out_of_memory
from shared.training.network_size import count_parameters
from shared.training.precision import set_backends
from shared.training.rank_errors import refuse_differences, together
from shared.training.run_folder import Run, progress
from shared.training.seeds import seed_batch
from shared.training.worker_errors import explain_worker_death

PARTS = 20  # validations and checkpoints of a run, unless the recipe says otherwise
LOWER_MEMORY = "a higher --accumulate, or a lower --batch-size or --augment.crop"
# A run may be resumed with other values of these, which do not change its results.
FREE_ON_RESUME = ("run_dir", "out", "workers", "max_steps", "checkpoint_every")
# ... and what helps against a loss that is not finite.
TUNABLE_ON_RESUME = ("learning_rate", "clip_norm", "precision")


def train(recipe: Recipe, world: World, stop: StopSignal) -> int:
    """Train, or resume training, to the recipe's end; returns the exit code of the process.

    0: the detector is written. 85: stopped by a signal, at a checkpoint.

    Raises:
        UserError: data, weights, run folder or batch size do not fit; the loss is not finite.
    """
    set_backends(deterministic=False)
    # Every rank has compared the settings before the first writes its own.
    with together(world), explain_out_of_memory(LOWER_MEMORY):
        data = prepare(recipe)
        state, trunk_source = begin(recipe, data, world)
    with together(world):
        run = Run(recipe.run_dir, recipe, writes=world.is_main)
        standing = state.restore(recipe.run_dir, recipe.name)
    with contextlib.closing(run):
        refuse_differences(str(state.step), world, f"the ranks see different checkpoints in {recipe.run_dir}")
        if world.is_main:
            print(
                f"{describe(recipe, state, data, world)}\ntrunk   {trunk_source}\nstate   {standing}", flush=True
            )
        run.rewind(state.step)
        with explain_out_of_memory(LOWER_MEMORY):
            return _train(recipe, state, Validation(recipe, data, run, world), stop)


def _train(recipe: Recipe, state: TrainingState, validation: Validation, stop: StopSignal) -> int:
    world = validation.world
    with explain_worker_death("--workers"):
        stopped = _loop(recipe, state, validation, stop)
    if stopped:
        return end_at_checkpoint(f"after step {state.step:,}", stop, world)
    with together(world):
        if world.is_main:
            validation.publish(state)
    return 0


def _loop(recipe: Recipe, state: TrainingState, validation: Validation, stop: StopSignal) -> bool:
    """Take steps until the last one or a stop signal on any rank; returns True if it was stopped."""
    run, world, tiles = validation.run, validation.world, validation.data.splits["train"]
    steps = steps_of(recipe, len(tiles))
    last_step = steps if recipe.max_steps is None else min(steps, recipe.max_steps)
    views, reach = recipe.network.views, state.objective.reach
    stream = TileStream(tiles, recipe.augment, recipe.seed, views, reach)
    state.model = replicated(state.detector, world, recipe.network.leaves_some_unused)
    if state.step == 0:
        with together(world):
            if world.is_main:
                results.draw_augmented(run, stream, validation.data.classes)
                validation.validate(state)
    size, remaining = recipe.batch_size, range(state.step, last_step)
    bar = progress(last_step * size, "image", state.step * size, "fine-tuning", hidden=not world.is_main)
    with bar, tile_batches(stream, size, remaining, world, recipe.workers) as batches:
        while state.step < last_step:
            batch = batches.take(stop)
            if is_stopped(stop, world):  # also in the middle of a stall: no rank is in its step yet
                with together(world):
                    if world.is_main:
                        state.save(run, recipe.name)
                return True
            seed_batch(recipe.seed, state.step + 1, world.rank)  # for dropout
            rate = learning_rate(recipe, state.step, steps)
            values = update(recipe, state, batch.to(world.device), rate)
            state.step += 1
            run.log(state.step, **values)
            best_f1 = "-" if state.validated_f1 is None else f"{state.validated_f1:.3f}"
            bar.set_postfix(loss=f"{values['loss']:.3f}", best_f1=best_f1, refresh=False)
            bar.update(size)

            is_end = state.step == last_step
            is_saved = _is_due(recipe.checkpoint_every, state.step, steps, recipe, tiles) or is_end
            is_scored = _is_due(recipe.evaluate_every, state.step, steps, recipe, tiles) or state.step == steps
            if is_saved or is_scored:
                with together(world):  # a full disk shows on the first rank only
                    if is_scored and world.is_main:
                        validation.validate(state)
                    if is_saved and world.is_main:
                        state.save(run, recipe.name)
    return False


def prepare(recipe: Recipe) -> AnnotatedData:
    """Check settings and read the data; writes nothing.

    Raises:
        UserError: an option is out of range, the data cannot be used, or the run folder has another run.
    """
    check(recipe)
    settings = comparable_settings(recipe)
    checkpoint.refuse_other_settings(recipe.run_dir, settings, (*FREE_ON_RESUME, *TUNABLE_ON_RESUME))
    data = load_data(recipe.source)
    if recipe.folds:
        data = hold_out(data, recipe.fold, recipe.folds)
    if not data.splits.get("train"):
        raise UserError(f"{data.folder} has no training tiles, only {', '.join(data.splits)}")
    return data


def begin(recipe: Recipe, data: AnnotatedData, world: World) -> tuple[TrainingState, str]:
    """Make detector and optimiser, equal on every rank; returns a description of the initial weights, too."""
    refuse_uneven(recipe, world.size)
    wanted = network_for(recipe, data)
    torch.manual_seed(recipe.seed)
    detector, loaded, trunk_source = initial_detector(wanted, recipe.init, recipe.arch, data.classes)
    frozen = [norm for trunk in detector.trunks() for norm in pretrained_batch_norms(trunk, loaded)]
    if recipe.freeze_trunk or recipe.lora:
        if not detector.trunks():
            raise UserError(f"{recipe.name} has no trunk; leave out --freeze-trunk and --lora")
        for trunk in detector.trunks():
            freeze(trunk, recipe.lora)
    detector.to(world.device).to(memory_format=torch.channels_last)  # as its images are
    optimiser = create_optimiser(detector, recipe.weight_decay, recipe.trunk_rate, recipe.layer_decay)
    steps_an_epoch = math.ceil(len(data.splits["train"]) / recipe.batch_size)
    objective = recipe.criterion.objective(detector.config, steps_an_epoch)
    average, digest = ema_of(detector, recipe.ema), data.digest(recipe.network.views)
    return TrainingState(detector, optimiser, frozen, objective, average, digest), trunk_source


def describe(recipe: Recipe, state: TrainingState, data: AnnotatedData, world: World) -> str:
    """Format the numbers that a user wants to see before the first step."""
    total, trained = count_parameters(state.detector), count_parameters(state.detector, trained_only=True)
    return (
        f"data    {data}\n"
        f"device  {world.size} x {world.device.type}, {recipe.batch_size} tiles a step\n"
        f"trained {trained / 1e6:.1f} of {total / 1e6:.1f} M parameters"
    )


def network_for(recipe: Recipe, data: AnnotatedData) -> NetworkConfig:
    """Make the config of the network that a recipe describes; its trunk follows from the initial weights.

    Raises:
        UserError: its switches exclude each other, or the data lack views or have too many cells for it.
    """
    require_views([tile for tiles in data.splits.values() for tile in tiles], recipe.network.views)
    return recipe.network.config(data, recipe.augment)


def refuse_uneven(recipe: Recipe, ranks: int) -> None:
    """Raise UserError unless the ranks can share a batch evenly, with enough tiles in each pass."""
    least = recipe.network.least_batch
    if recipe.batch_size < least * ranks * recipe.accumulate:
        raise UserError(
            f"--batch-size {recipe.batch_size} leaves each of {ranks} rank(s) x {recipe.accumulate} passes fewer "
            f"than the {least} tiles that the batch norms of {recipe.name} need; give a larger one"
        )
    if recipe.batch_size % (ranks * recipe.accumulate):
        raise UserError(
            f"--batch-size {recipe.batch_size} is not a multiple of {ranks} rank(s) x {recipe.accumulate} "
            "accumulated passes"
        )


def steps_of(recipe: Recipe, tiles: int) -> int:
    """Compute the steps of a run on so many training tiles."""
    images = recipe.images if recipe.epochs is None else recipe.epochs * tiles
    return math.ceil(images / recipe.batch_size)


def _is_due(epochs: int | None, step: int, steps: int, recipe: Recipe, tiles: Sequence[Tile]) -> bool:
    """Check for the end of a multiple of `epochs` passes over the tiles; None: of a twentieth of the run."""
    if epochs is None:
        return step * PARTS // steps > (step - 1) * PARTS // steps
    samples = epochs * len(tiles)
    return step * recipe.batch_size // samples > (step - 1) * recipe.batch_size // samples
