"""One optimiser step of the fine-tuning loop."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from finetune.recipes import Recipe
from finetune.training.optimiser import set_learning_rate
from finetune.training.state import TrainingState
from finetune.training.tile_loader import Batch
from shared.training.distributed import any_rank, exchange_gradients, mean_over_ranks
from shared.training.precision import autocast
from shared.training.rank_errors import not_finite
from shared.training.schedules import cosine

# Options that may help against a loss that is not finite.
REMEDY = "a lower --learning-rate, a lower --clip-norm, or --precision float32"


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Learning rate of the step after `step` of `steps`: linear warm-up, then constant or a cosine to zero."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    if recipe.schedule == "constant":
        return recipe.learning_rate
    share = (step - recipe.warmup_steps) / max(1, steps - recipe.warmup_steps)
    return cosine(recipe.learning_rate, 0.0, share)


def update(recipe: Recipe, state: TrainingState, batch: Batch, rate: float) -> dict[str, float]:
    """Make one step; returns values to log, means over ranks.

    Args:
        recipe: Passes to accumulate, clipping, loss.
        state: Detector, optimiser and the steps done, which the caller counts.
        batch: This rank's share, on the device.
        rate: Learning rate.

    Raises:
        UserError: a loss or gradient is not finite; the weights stay unchanged.
    """
    step, optimiser = state.step + 1, state.optimiser
    state.training_mode()
    optimiser.zero_grad()
    losses_3 = _add_gradients(recipe, state, batch)
    norm = nn.utils.clip_grad_norm_(state.detector.parameters(), recipe.clip_norm)
    _require_finite((losses_3, norm), recipe, step)
    set_learning_rate(optimiser, rate)
    optimiser.step()
    if state.ema is not None:
        state.ema.update(state.detector, step=step + 1)  # timm counts from 1
    loss, classification, regression = mean_over_ranks(losses_3).tolist()
    return {
        "loss": loss,
        "classification": classification,
        "regression": regression,
        "learning_rate": rate,
        "gradient_norm": norm.item(),
    }


def _add_gradients(recipe: Recipe, state: TrainingState, batch: Batch) -> Tensor:
    """Accumulate the gradients of a batch, one pass per part; returns total, classification, regression loss."""
    device, parts = batch.image_BCHW.device, batch.parts(recipe.accumulate)
    losses_3, sums = torch.zeros(3, device=device), torch.empty(0)
    state.objective.begin_step()
    for part in parts:
        with exchange_gradients(state.model, only_if=part is parts[-1]):
            with autocast(device, recipe.precision, training=True):
                found = state.model(part.image_BCHW)
            _require_finite(found, recipe, state.step + 1)
            if part is parts[0]:  # of the whole batch: its parts are summed
                sums = state.objective.normalisers(found, batch.targets)
                sums = mean_over_ranks(sums.to(device, non_blocking=True))
            losses = state.objective.loss(found, part.targets, sums)
            losses.total.backward()
        losses_3 += torch.stack([each.detach() for each in losses])
    return losses_3


def _require_finite(values: Iterable[Tensor], recipe: Recipe, step: int) -> None:
    """Raise on every rank if a value on any rank is not finite: none may wait for the others."""
    values = list(values)
    finite = all(bool(torch.isfinite(value).all()) for value in values)
    if any_rank(not finite, values[0].device):
        raise not_finite("the loss", step, recipe.run_dir, REMEDY)
