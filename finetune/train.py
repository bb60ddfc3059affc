"""The fine-tuning loop: annotated tiles -> DPA-P2PNet -> detector.pth."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from tqdm import tqdm

from finetune import results
from finetune.datasets import load_data
from finetune.datasets.dataset import AnnotatedData, Tile
from finetune.datasets.splits import hold_out
from finetune.datasets.wider_views import require_views
from finetune.predict.in_memory import predict_tiles
from finetune.recipes import Recipe, check
from finetune.scoring.operating_point import FLOOR, as_metadata
from finetune.scoring.tile_scores import score_tiles, tile_curves
from finetune.step import learning_rate, update
from finetune.training.initialisation import initial_detector, pretrained_batch_norms
from finetune.training.optimiser import create_optimiser
from finetune.training.proposal_count import check_interval
from finetune.training.state import TrainingState, ema_of
from finetune.training.tile_loader import TileStream, tile_batches
from shared.cli import as_plain
from shared.errors import UserError
from shared.model import dpa_p2pnet as core
from shared.model.detector_file import LoadedDetector, save_detector, tile_to_predict
from shared.signals import STOPPED, StopSignal, leave_marker
from shared.training import checkpoint, distributed
from shared.training.distributed import World
from shared.training.gpu_usage import explain_out_of_memory
from shared.training.precision import set_backends
from shared.training.rank_errors import refuse_differences, together
from shared.training.run_folder import Run, progress, provenance
from shared.training.seeds import seed_batch
from shared.training.worker_errors import explain_worker_death

PARTS = 20  # validations and checkpoints of a run, unless the recipe says otherwise
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
    with together(world):  # every rank has compared the settings before the first writes its own
        check(recipe)
        checkpoint.refuse_other_settings(recipe.run_dir, as_plain(recipe), (*FREE_ON_RESUME, *TUNABLE_ON_RESUME))
        data = load_data(recipe.source)
        if recipe.folds:
            data = hold_out(data, recipe.fold, recipe.folds)
        if not (tiles := data.splits.get("train", [])):
            raise UserError(f"{data.folder} has no training tiles, only {', '.join(data.splits)}")
        training, trunk_source = _start(recipe, data, world)
    with together(world):
        run = Run(recipe.run_dir, recipe, writes=world.is_main)
        resumed = _resume(recipe, training, run, data)
    refuse_differences(str(training.step), world, f"the ranks see different checkpoints in {recipe.run_dir}")
    if world.is_main:
        print(f"data    {data}\ntrunk   {trunk_source}")
        print(f"device  {world.size} x {world.device.type}, {recipe.batch_size} tiles a step")
        print(f"trained {_trained_share(training.detector)}")
        print(f"state   {resumed or f'begins in {run.folder}'}", flush=True)
    with together(world):
        if world.is_main and not resumed:
            results.draw_augmented(run, TileStream(tiles, recipe.augment, recipe.seed, recipe.views), data.classes)
            _validate(recipe, training, data, run, world)
    lower = "a higher --accumulate, or a lower --batch-size or --augment.crop"
    with explain_worker_death("--workers"), explain_out_of_memory(lower):
        stopped = _loop(recipe, training, data, run, world, stop)
    if stopped:
        return _stop(stop, training, world)
    with together(world):
        if world.is_main:
            _publish(recipe, training, data, run, world)
    run.close()
    return 0


def _publish(recipe: Recipe, training: TrainingState, data: AnnotatedData, run: Run, world: World) -> None:
    """Write last and best weights, score them, and copy the best to the recipe's destination."""
    _save_weights(recipe, training, data, run, "last")
    if not training.best_step:  # tried out for less than the steps between two scores
        _save_weights(recipe, training, data, run, "best")
    results.finish(run, recipe.out, data, world.device)


def _loop(
    recipe: Recipe, training: TrainingState, data: AnnotatedData, run: Run, world: World, stop: StopSignal
) -> bool:
    """Train until the last step or until a rank is signalled to stop; returns True if stopped early."""
    tiles = data.splits["train"]
    steps = steps_of(recipe, len(tiles))
    last_step = steps if recipe.max_steps is None else min(steps, recipe.max_steps)
    stream = TileStream(tiles, recipe.augment, recipe.seed, recipe.views)
    # P2PNet's single level leaves the finest map of a ViT-Adapter unused.
    network = distributed.replicated(training.detector, world, some_unused=not recipe.multi_scale)
    remaining = range(training.step, last_step)

    size = recipe.batch_size
    with progress(last_step * size, "image", training.step * size, "fine-tuning", hidden=not world.is_main) as bar:
        for batch in tile_batches(stream, recipe.batch_size, remaining, world, recipe.workers):
            training.step += 1
            seed_batch(recipe.seed, training.step, world.rank)  # for dropout
            rate = learning_rate(recipe, training.step, steps)
            losses = update(recipe, network, training, batch.to(world.device), rate)
            run.log(training.step, **losses)
            best_f1 = f"{training.best_f1:.3f}" if training.best_step else "-"
            bar.set_postfix(loss=f"{losses['loss']:.3f}", best_f1=best_f1, refresh=False)
            bar.update(size)
            stops = distributed.any_rank(stop.received is not None, world.device)
            ends = training.step == last_step
            scores = training.step == steps or _every(recipe.evaluate_every, training.step, steps, recipe, tiles)
            saves = ends or stops or _every(recipe.checkpoint_every, training.step, steps, recipe, tiles)
            if scores or saves:
                with together(world):
                    _keep(recipe, training, data, run, world, scores, saves)
            if stops and not ends:
                return True
    return False


def _stop(stop: StopSignal, training: TrainingState, world: World) -> int:
    """Report that the run can be resumed; no rank leaves before the others are done."""
    if world.is_main:
        where = f"after step {training.step}"
        leave_marker(where)
        print(f"stopped {where} by {stop.received or 'another rank'}; the same command goes on")
    distributed.wait_for_all()
    return STOPPED


def _resume(recipe: Recipe, training: TrainingState, run: Run, data: AnnotatedData) -> str | None:
    """Restore the newest checkpoint of the run folder; returns a description, or None if there is none.

    Raises:
        UserError: the data have changed since the run began.
    """
    saved = checkpoint.resume(recipe.run_dir, recipe.name)
    if saved is None:
        run.rewind(-1)
        return None
    if saved["data"] != data.digest(recipe.views):
        raise UserError(
            f"the tiles or cells in {data.folder} have changed since step {saved['step']} of {recipe.run_dir}; "
            "give another run folder with --run-dir"
        )
    training.restore(saved)
    run.rewind(training.step)
    return f"going on after step {training.step} of {recipe.run_dir}"


def detector_for(recipe: Recipe, data: AnnotatedData) -> core.DetectorConfig:
    """Config of the detector that a recipe describes; its trunk follows from the initial weights.

    Raises:
        UserError: its switches exclude each other, or the data lack views or have too many cells for it.
    """
    require_views([tile for tiles in data.splits.values() for tile in tiles], recipe.views)
    interval = recipe.interval or (8 if data.mpp >= 0.4 else 16)
    check_interval(data, interval, recipe.augment)
    return core.DetectorConfig(
        classes=len(data.classes),
        interval=interval,
        multi_scale=recipe.multi_scale,
        deformable=recipe.deformable,
        summed=recipe.summed,
        refinements=recipe.refinements,
        views=recipe.views,
        upsampling=recipe.upsampling,
        channels=recipe.channels,
        hidden=recipe.hidden,
        distinct=recipe.distinct_um / data.mpp,
    )


def _start(recipe: Recipe, data: AnnotatedData, world: World) -> tuple[TrainingState, str]:
    """Build detector and optimiser, equal on every rank; returns them and a description of the initial weights."""
    refuse_uneven(recipe, world.size)
    wanted = detector_for(recipe, data)
    torch.manual_seed(recipe.seed)
    detector, loaded, trunk_source = initial_detector(wanted, recipe.init, recipe.arch, data.classes)
    held = [norm for trunk in detector.trunks() for norm in pretrained_batch_norms(trunk, loaded)]
    if recipe.freeze_trunk:
        for trunk in detector.trunks():
            trunk.requires_grad_(False)
    detector.to(world.device).to(memory_format=torch.channels_last)  # as its images are
    optimiser = create_optimiser(detector, recipe.weight_decay, recipe.trunk_rate, recipe.layer_decay)
    return TrainingState(detector, optimiser, held, ema_of(detector, recipe.ema)), trunk_source


def _trained_share(detector: core.DPAP2PNet) -> str:
    """Describe how much of a detector is trained."""
    total, trained = 0, 0
    for parameter in detector.parameters():
        total += parameter.numel()
        trained += parameter.numel() * parameter.requires_grad
    return f"{trained / 1e6:.1f} of {total / 1e6:.1f} M parameters"


def refuse_uneven(recipe: Recipe, ranks: int) -> None:
    """Raise UserError unless the ranks can share a batch evenly."""
    if recipe.batch_size % (ranks * recipe.accumulate):
        raise UserError(
            f"--batch-size {recipe.batch_size} is not a multiple of {ranks} rank(s) x {recipe.accumulate} "
            "accumulated passes"
        )


def steps_of(recipe: Recipe, tiles: int) -> int:
    """Steps of a run on so many training tiles."""
    images = recipe.images if recipe.epochs is None else recipe.epochs * tiles
    return math.ceil(images / recipe.batch_size)


def _every(epochs: int | None, step: int, steps: int, recipe: Recipe, tiles: Sequence[Tile]) -> bool:
    """Check for the end of a multiple of `epochs` passes over the tiles; None: of a twentieth of the run."""
    if epochs is None:
        return step * PARTS // steps > (step - 1) * PARTS // steps
    samples = epochs * len(tiles)
    return step * recipe.batch_size // samples > (step - 1) * recipe.batch_size // samples


def _keep(
    recipe: Recipe, training: TrainingState, data: AnnotatedData, run: Run, world: World, scores: bool, saves: bool
) -> None:
    """Validate and save between two steps, on the first rank."""
    if scores and world.is_main:
        _validate(recipe, training, data, run, world)
    if saves and world.is_main:
        content = {**training.state(), "data": data.digest(recipe.views)}
        checkpoint.save(recipe.run_dir, training.step, recipe.name, content)


def _validate(recipe: Recipe, training: TrainingState, data: AnnotatedData, run: Run, world: World) -> None:
    """Score the validation tiles, keep the best weights, draw the proposals."""
    results.draw_proposals(run, training.eval_model, data, world.device, training.step)
    operating_point: dict[str, Any] = {}
    if data.validates:
        tiles = data.splits["val"]
        found = predict_tiles(_as_loaded(recipe, training, data, world), tiles, data.mpp)
        scores = score_tiles(tiles, [each.cells() for each in found], data)
        curves = tile_curves(tiles, [each.cells(FLOOR) for each in found], data)
        operating_point = as_metadata(curves[:-1])
        run.log(training.step, **{f"val/{name}": value for name, value in scores.as_dict().items()})
        tqdm.write(f"step {training.step}: validation {scores.summary()}")
        if scores.macro_f1 < training.best_f1:
            return
        # The untrained net is scored for the curve; any trained one takes its place.
        training.best_f1 = scores.macro_f1 if training.step else -1.0
    training.best_step = training.step
    _save_weights(recipe, training, data, run, "best", operating_point)


def _as_loaded(recipe: Recipe, training: TrainingState, data: AnnotatedData, world: World) -> LoadedDetector:
    """The detector in training as its file will be loaded."""
    tile = tile_to_predict(training.eval_model.config, recipe.augment.crop)
    return LoadedDetector(recipe.run_dir, training.eval_model, data.classes, data.mpp, world.device, tile)


def _save_weights(
    recipe: Recipe,
    training: TrainingState,
    data: AnnotatedData,
    run: Run,
    name: str,
    operating_point: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write `NAME.pth`, weights with their metadata, into the run folder."""
    metadata = {
        "classes": list(data.classes),
        "mpp": data.mpp,
        "tile": tile_to_predict(training.eval_model.config, recipe.augment.crop),
        "recipe": recipe.name,
        "init": recipe.init,
        "step": training.step,
        "best_validation_f1": training.best_f1,
        "best_step": training.best_step,
        "seed": recipe.seed,
        "run_id": run.id,
        **operating_point,
        **provenance(),
    }
    save_detector(recipe.run_dir / f"{name}.pth", training.eval_model, metadata)
