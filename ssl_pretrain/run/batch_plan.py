"""Divide a recipe among ranks: accumulation, steps, learning rate."""

import json
import math
from dataclasses import dataclass

from shared.errors import UserError
from ssl_pretrain.methods import Step
from ssl_pretrain.methods.swav import BATCH_WITHOUT_QUEUE, SwAVConfig
from ssl_pretrain.recipe import PretrainingRecipe, check


@dataclass(frozen=True)
class BatchPlan:
    """Derived numbers of a run."""

    recipe: PretrainingRecipe
    ranks: int
    micro_batch: int
    """Images of one rank in one forward pass."""
    accumulation: int
    """Forward passes a step."""
    steps: int
    """Steps of the whole schedule."""

    @classmethod
    def of(cls, recipe: PretrainingRecipe, ranks: int) -> "BatchPlan":
        """Divide a recipe's batch among the ranks.

        Raises:
            UserError: the batch cannot be shared evenly, by the ranks or by accumulated passes of about the
                size asked for; the warm-up is as long as the run.
        """
        micro, accumulation = cls.divide(recipe, ranks)
        if recipe.optimiser.warmup_samples >= recipe.samples_seen:
            raise UserError(
                f"the warm-up of {recipe.optimiser.warmup_samples} images leaves nothing of the "
                f"{recipe.samples_seen} of the run; give less with --optimiser.warmup-samples"
            )
        steps = math.ceil(recipe.samples_seen / recipe.batch_size)
        return cls(recipe, ranks, micro, accumulation, steps)

    @staticmethod
    def divide(recipe: PretrainingRecipe, ranks: int) -> tuple[int, int]:
        """Compute images of one rank in one forward pass, and forward passes a step.

        Raises:
            UserError: the batch cannot be shared evenly, by the ranks or by passes of about the size asked for.
        """
        share, rest = divmod(recipe.batch_size, ranks)
        if rest or not share:
            raise UserError(
                f"a batch of {recipe.batch_size} cannot be shared evenly by {ranks} ranks; "
                f"give a multiple of {ranks} with --batch-size"
            )
        wanted = min(recipe.micro_batch, share)
        micro = next(size for size in range(wanted, 0, -1) if share % size == 0)
        if 4 * micro < wanted:
            raise UserError(
                f"a rank's {share} images can be handled {micro} at a time, but not about {wanted}; give a "
                f"multiple of {ranks * wanted} with --batch-size, or another --micro-batch"
            )
        return micro, share // micro

    @property
    def last_step(self) -> int:
        """Last step of this run."""
        most = self.recipe.max_steps
        return self.steps if most is None else min(self.steps, most)

    @property
    def images_at_once(self) -> int:
        """Images of all ranks in one pass: the batch for queues, Sinkhorn and centre."""
        return self.ranks * self.micro_batch

    def samples(self, step: int) -> int:
        """Compute the number of images seen after `step` steps."""
        return step * self.recipe.batch_size

    def at(self, step: int) -> Step:
        """Return the step after `step` steps."""
        return Step(step, self.samples(step), self.samples(self.steps))

    def learning_rate(self, step: int) -> float:
        """Compute the learning rate of the step after `step` steps."""
        at = self.at(step)
        return self.recipe.optimiser.learning_rate(at.samples, self.recipe.batch_size, at.total)

    def weight_decay(self, step: int) -> float:
        """Compute the weight decay of the step after `step` steps."""
        at = self.at(step)
        return self.recipe.optimiser.decay(at.samples, at.total)

    def __str__(self) -> str:
        recipe = self.recipe
        warmup = recipe.optimiser.warmup_samples / recipe.batch_size
        ends_early = f"; stops after {self.last_step:,}" if self.last_step < self.steps else ""
        return (
            f"batch   {recipe.batch_size:,} images = {self.ranks} rank(s) x {self.micro_batch} "
            f"x {self.accumulation} accumulated{self._seen_at_once()}\n"
            f"length  {recipe.samples_seen:,} images = {self.steps:,} steps{ends_early}\n"
            f"lr      {recipe.optimiser.peak_lr(recipe.batch_size):.3g} after {warmup:,.0f} steps of warm-up, "
            f"then a cosine to {recipe.optimiser.final_lr:g}{self._remarks()}"
        )

    def _seen_at_once(self) -> str:
        """Note on accumulation for losses that are more than a mean over images."""
        if self.accumulation == 1 or self.recipe.method.is_mean_over_images:
            return ""
        return f"; batch norms and what the loss shares among images see {self.images_at_once:,} at once"

    def _remarks(self) -> str:
        advice = self.recipe.method.advice(self.images_at_once)
        return f"\nadvice  {advice}" if advice else ""


def require_images_at_once(recipe: PretrainingRecipe, ranks: int) -> None:
    """Refuse SwAV without a queue for fewer images in one pass of all ranks than the published number.

    They share the prototypes; gradient accumulation does not add to them.

    Raises:
        UserError: they are too few, an option is out of range, or the batch cannot be shared evenly.
    """
    check(recipe)
    micro, _ = BatchPlan.divide(recipe, ranks)
    least = BATCH_WITHOUT_QUEUE
    if not isinstance(recipe.method, SwAVConfig) or recipe.method.queue_length or ranks * micro >= least:
        return
    other = recipe.name.replace("resnet50", "resnet50_256")
    larger = f" and --batch-size {least}" if recipe.batch_size < least else ""
    raise UserError(
        f"{recipe.name} needs {least:,} images at once, and {ranks} rank(s) x {micro} are {ranks * micro:,} "
        f"(accumulation does not count); use {other}, {-(-least // micro)} GPUs, or --micro-batch "
        f"{-(-least // ranks)}{larger}{_begun_as(other, recipe)}"
    )


def _begun_as(other: str, recipe: PretrainingRecipe) -> str:
    """Command that resumes a run which older releases began with the recipe for small batches; else empty."""
    path = recipe.run_dir / "config.json"
    try:
        name = json.loads(path.read_text(encoding="utf-8"))["name"]
    except (OSError, ValueError, TypeError, KeyError):
        return ""
    go_on = f"python -m ssl_pretrain {other} --run-dir {recipe.run_dir} --out {recipe.out}"
    return f"; the run in {recipe.run_dir} goes on with: {go_on}" if name == other else ""
