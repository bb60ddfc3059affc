"""The fine-tuning loop: annotated tiles -> DPA-P2PNet -> detector.pth."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from finetune import outcome
from finetune.augment import Config as Augment
from finetune.criterion import Config as Criterion
from finetune.criterion import detection_loss
from finetune.datasets import Source, load_data
from finetune.datasets.annotated_data import AnnotatedData, Tile, image_size
from finetune.evaluate import predict_tiles, score_tiles
from finetune.initialisation import held_batch_norms, initial_detector
from finetune.tile_loader import Batch, TileStream, tile_batches
from shared import checkpoint, distributed
from shared import detector as core
from shared.command_line import UserError, as_plain
from shared.runs import Run, progress, provenance

# A run may be resumed with other values of these: they change where and when, not what.
FREE_ON_RESUME = ("run_dir", "out", "workers", "max_steps", "checkpoint_every")
# Exit code of a run that was told to stop and can go on: the sbatch script requeues on it.
STOPPED = 85


@dataclass(frozen=True, kw_only=True)
class Config:
    """Fine-tune DPA-P2PNet on point annotations."""

    recipe: tyro.conf.Suppress[str] = "dpa_p2pnet"
    """Name of the recipe this config is an instance of."""
    init: str = "imagenet"
    """Weights of the trunk: a file (.pth, .safetensors), imagenet (timm's hub) or random."""
    arch: str | None = None
    """Trunk as timm names it, where the weights do not say it (resnet50, vit_base_patch16_224, ...)."""
    source: Annotated[Source, tyro.conf.arg(name="")] = Source()
    """The annotated data."""
    out: Path = Path("detector.pth")
    """Where the best detector is copied at the end."""
    run_dir: Path = Path("runs/finetune")
    """Checkpoints, curves and pictures; the same folder resumes the run."""
    interval: int | None = None
    """Px between proposals; default 8 at 0.4 um/px and coarser, else 16 (paper: 8 on CoNSeP, 16 at 40x)."""
    multi_scale: bool = True
    """Decode every proposal from all levels P2..P6 (paper, equation 1); off: P2PNet's single-level heads."""
    deformable: bool = True
    """Deform the proposals before decoding (paper, Figure 1)."""
    radius_um: float = 3.0
    """Matching distance of the scores, um (paper: about 3)."""
    epochs: int = 200
    """Passes over the training tiles (authors' public code)."""
    batch_size: int = 4
    """Tiles a step over all ranks (authors' public code)."""
    learning_rate: float = 1e-4
    """AdamW (authors' public code)."""
    weight_decay: float = 1e-4
    """AdamW (paper, Implementation Details)."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate over the run: to zero along a cosine, or constant (authors' public code)."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from zero."""
    clip_norm: float = 0.1
    """Largest gradient norm (authors' public code)."""
    evaluate_every: int = 5
    """Epochs between scores on the validation tiles."""
    checkpoint_every: int = 5
    """Epochs between checkpoints."""
    max_steps: int | None = None
    """Stop after so many steps, to try things out; the same command without it goes on from there."""
    seed: int = 0
    """Seed of weights, sample order and augmentation."""
    workers: int = 2
    """Loader processes per rank."""
    augment: Augment = Augment()
    """Random scaling, shifting, flipping."""
    criterion: Criterion = Criterion()
    """The loss."""


@dataclass
class Training:
    """What changes from step to step, and so belongs into a checkpoint."""

    detector: core.Detector
    optimiser: torch.optim.Optimizer
    held: list[nn.Module]
    """Batch norms that stay in eval mode."""
    step: int = 0
    best_f1: float = -1.0
    """Macro F1 of the best weights on the validation tiles."""
    best_step: int = 0

    def state(self) -> dict[str, Any]:
        """Everything as tensors and plain values."""
        return {
            "detector": self.detector.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "best_f1": self.best_f1,
            "best_step": self.best_step,
            "rng": checkpoint.rng_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a checkpoint."""
        self.detector.load_state_dict(state["detector"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.best_f1, self.best_step = state["step"], state["best_f1"], state["best_step"]
        checkpoint.restore_rng(state["rng"])

    def training_mode(self) -> None:
        """Train mode, but for the batch norms that are held."""
        self.detector.train()
        for module in self.held:
            module.eval()


def train(config: Config) -> int:
    """Run or resume one fine-tuning; returns the exit code."""
    world, stop = distributed.start(), distributed.StopSignal()
    checkpoint.refuse_other_settings(config.run_dir, as_plain(config), FREE_ON_RESUME)
    data = load_data(config.source)
    tiles = data.splits["train"]
    steps = math.ceil(config.epochs * len(tiles) / config.batch_size)
    last_step = steps if config.max_steps is None else min(steps, config.max_steps)
    print(f"{data}\n{steps} steps of {config.batch_size} tiles on {world.size} x {world.device.type}")

    training = _start(config, data, world)
    run = Run(config.run_dir, config, writes=world.is_main)
    stream = TileStream(tiles, config.augment, config.seed)
    if not _resume(config, training, run) and world.is_main:
        outcome.draw_augmented(run, stream, data.classes)
        _validate(config, training, data, run, world)
    network = DistributedDataParallel(training.detector) if world.size > 1 else training.detector
    remaining = range(training.step, last_step)

    with progress(last_step, "step", training.step, "fine-tuning", hidden=not world.is_main) as bar:
        for batch in tile_batches(stream, config.batch_size, remaining, world, config.workers):
            training.step += 1
            rate = learning_rate(config, training.step, steps)
            losses = _update(config, network, training, batch.to(world.device), rate)
            run.log(training.step, **losses)
            bar.set_postfix(loss=f"{losses['loss']:.3f}", best_f1=f"{training.best_f1:.3f}", refresh=False)
            bar.update()
            stops = distributed.any_rank(stop.received is not None, world.device)
            ends = training.step == last_step
            if world.is_main and (ends or _every(config.evaluate_every, training.step, config, tiles)):
                _validate(config, training, data, run, world)
            if world.is_main and (ends or stops or _every(config.checkpoint_every, training.step, config, tiles)):
                checkpoint.save(config.run_dir, training.step, config.recipe, training.state())
            if stops and not ends:
                print(f"stopped by {stop.received} after step {training.step}; the same command goes on")
                return STOPPED
    if world.is_main:
        _save_weights(config, training, data, run, "last")
        outcome.finish(run, config.out, data, config.radius_um, world.device)
    run.close()
    distributed.stop()
    return 0


def _resume(config: Config, training: Training, run: Run) -> bool:
    """Go back to the newest checkpoint of the run folder; False if there is none."""
    saved = checkpoint.resume(config.run_dir, config.recipe)
    if saved is None:
        return False
    training.restore(saved)
    run.rewind(training.step)
    print(f"going on after step {training.step} of {config.run_dir}")
    return True


def learning_rate(config: Config, step: int, steps: int) -> float:
    """The rate of step 1..steps: linear warm-up, then constant or down a half cosine towards zero."""
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - 1 - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def _start(config: Config, data: AnnotatedData, world: distributed.World) -> Training:
    """Detector and optimiser before the first step; every rank starts from the same weights."""
    if config.batch_size % world.size:
        raise UserError(f"--batch-size {config.batch_size} is not a multiple of the {world.size} ranks")
    torch.manual_seed(config.seed)
    interval = config.interval or (8 if data.mpp >= 0.4 else 16)
    _check_interval(data, interval)
    wanted = core.Config(
        classes=len(data.classes), interval=interval, multi_scale=config.multi_scale, deformable=config.deformable
    )
    detector, loaded = initial_detector(wanted, config.init, config.arch)
    held = held_batch_norms(detector.backbone.trunk, loaded)
    detector.to(world.device)
    torch.manual_seed(config.seed + 1 + world.rank)  # dropout differs between ranks
    on_gpu = world.device.type == "cuda"
    optimiser = torch.optim.AdamW(detector.parameters(), weight_decay=config.weight_decay, fused=on_gpu)
    return Training(detector, optimiser, held)


def _check_interval(data: AnnotatedData, interval: int) -> None:
    """One-to-one matching drops cells silently where they outnumber the proposals."""
    for tile in (tile for tiles in data.splits.values() for tile in tiles):
        width, height = image_size(tile.image)
        if len(tile.labels_N) > math.ceil(width / interval) * math.ceil(height / interval):
            raise UserError(
                f"{tile.image} has {len(tile.labels_N)} cells, more than proposals at {interval} px; "
                f"give --interval {interval // 2}"
            )


def _update(config: Config, network: nn.Module, training: Training, batch: Batch, rate: float) -> dict[str, float]:
    """One optimiser step; returns what to log. Weights are left alone if anything is not finite."""
    training.training_mode()
    device = batch.image_BCHW.device
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        found = network(batch.image_BCHW.float() / 255)
    _require_finite((found.points_BN2, found.logits_BNC), config, training.step)
    losses = detection_loss(config.criterion, found, batch.targets)
    training.optimiser.zero_grad(set_to_none=True)
    losses.total.backward()
    norm = nn.utils.clip_grad_norm_(training.detector.parameters(), config.clip_norm)
    _require_finite((losses.total, norm), config, training.step)
    for group in training.optimiser.param_groups:
        group["lr"] = rate
    training.optimiser.step()
    return {
        "loss": losses.total.item(),
        "classification": losses.classification.item(),
        "regression": losses.regression.item(),
        "learning_rate": rate,
        "gradient_norm": norm.item(),
    }


def _require_finite(values: Iterable[Tensor], config: Config, step: int) -> None:
    if not all(bool(torch.isfinite(value).all()) for value in values):
        raise UserError(
            f"the loss is no longer finite at step {step}; the checkpoints in {config.run_dir} are whole. "
            "Give a lower --learning-rate and another --run-dir"
        )


def _every(epochs: int, step: int, config: Config, tiles: Sequence[Tile]) -> bool:
    """Whether this step completes a multiple of `epochs` passes over the tiles."""
    samples = epochs * len(tiles)
    return step * config.batch_size // samples > (step - 1) * config.batch_size // samples


def _validate(config: Config, training: Training, data: AnnotatedData, run: Run, world: distributed.World) -> None:
    """Score the validation tiles, keep the best weights, draw the proposals."""
    outcome.draw_proposals(run, training.detector, data, world.device, training.step)
    tiles = data.splits.get("val", [])
    if tiles:
        scores = score_tiles(tiles, predict_tiles(training.detector, tiles, world.device), data, config.radius_um)
        run.log(training.step, **{f"val/{name}": value for name, value in scores.as_dict().items()})
        tqdm.write(f"step {training.step}: validation F1 {scores.macro_f1:.3f}, AP {scores.macro_ap:.3f}")
        if scores.macro_f1 <= training.best_f1:
            return
        # The untrained net is scored for the curve; any trained one takes its place.
        training.best_f1 = scores.macro_f1 if training.step else -1.0
    training.best_step = training.step
    _save_weights(config, training, data, run, "best")


def _save_weights(config: Config, training: Training, data: AnnotatedData, run: Run, name: str) -> None:
    """Write `NAME.pth` into the run folder: weights with what a user of them must know."""
    metadata = {
        "classes": list(data.classes),
        "mpp": data.mpp,
        "recipe": config.recipe,
        "init": config.init,
        "step": training.step,
        "best_validation_f1": training.best_f1,
        "best_step": training.best_step,
        "seed": config.seed,
        "run_id": run.id,
        **provenance(),
    }
    core.save_detector(config.run_dir / f"{name}.pth", training.detector, metadata)
