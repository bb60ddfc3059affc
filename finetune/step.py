"""One optimiser step of the fine-tuning loop."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from finetune.recipes import Recipe
from finetune.training.criterion import detection_loss, loss_normalisers
from finetune.training.optimiser import set_learning_rate
from finetune.training.state import TrainingState
from finetune.training.tile_loader import Batch
from shared.training.distributed import any_rank, exchange_gradients, mean_over_ranks
from shared.training.precision import autocast
from shared.training.rank_errors import AllRanksError


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Learning rate of step 1..steps: linear warm-up, then constant or a half cosine towards zero."""
    if step <= recipe.warmup_steps:
        return recipe.learning_rate * step / recipe.warmup_steps
    if recipe.schedule == "constant":
        return recipe.learning_rate
    done = (step - 1 - recipe.warmup_steps) / max(1, steps - recipe.warmup_steps)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def update(
    recipe: Recipe, network: nn.Module, training: TrainingState, batch: Batch, rate: float
) -> dict[str, float]:
    """Make one step, in as many passes as the recipe accumulates; returns values to log, means over ranks.

    Raises:
        UserError: a loss or gradient is not finite; the weights stay unchanged.
    """
    training.training_mode()
    training.optimiser.zero_grad(set_to_none=True)
    shown = _backward(recipe, network, training, batch)
    norm = nn.utils.clip_grad_norm_(training.detector.parameters(), recipe.clip_norm)
    _require_finite((shown, norm), recipe, training.step)
    set_learning_rate(training.optimiser, rate)
    training.optimiser.step()
    if training.ema is not None:
        training.ema.update(training.detector, step=training.step + 1)  # timm counts from 1
    loss, classification, regression = mean_over_ranks(shown).tolist()
    return {
        "loss": loss,
        "classification": classification,
        "regression": regression,
        "learning_rate": rate,
        "gradient_norm": norm.item(),
    }


def _backward(recipe: Recipe, network: nn.Module, training: TrainingState, batch: Batch) -> Tensor:
    """Accumulate the gradients of a batch; returns total, classification and regression loss."""
    device, parts = batch.image_BCHW.device, batch.parts(recipe.accumulate)
    shown, sums_2 = torch.zeros(3, device=device), torch.zeros(2, device=device)
    for part in parts:
        with exchange_gradients(network, only_if=part is parts[-1]):
            with autocast(device, recipe.precision, training=True):
                found = network(part.image_BCHW)
            _require_finite((found.points_BN2, found.logits_BNC), recipe, training.step)
            if part is parts[0]:  # of the whole batch: its parts are summed
                proposals = found.points_BN2.shape[1]
                sums_2 = loss_normalisers(recipe.criterion, batch.targets, proposals)
                sums_2 = mean_over_ranks(sums_2.to(device, non_blocking=True))
            radius = training.detector.config.distinct
            losses = detection_loss(recipe.criterion, found, part.targets, sums_2, radius)
            losses.total.backward()
        shown += torch.stack([each.detach() for each in losses])
    return shown


def _require_finite(values: Iterable[Tensor], recipe: Recipe, step: int) -> None:
    """Raise on every rank if a value on any rank is not finite: none may wait for the others."""
    values = list(values)
    finite = all(bool(torch.isfinite(value).all()) for value in values)
    if any_rank(not finite, values[0].device):
        raise AllRanksError(
            f"the loss is no longer finite at step {step}; the checkpoints before it are kept in "
            f"{recipe.run_dir}: run the same command with a lower --learning-rate, a lower --clip-norm, or "
            "--precision float32"
        )
