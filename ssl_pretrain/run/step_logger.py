"""Loss and speed of every step, collected without making the GPU wait."""

import math
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from shared.training.distributed import World, mean_over_ranks
from shared.training.gpu_usage import peak_flops, utilisation
from shared.training.rank_errors import not_finite
from shared.training.run_folder import Run, progress
from ssl_pretrain.run.batch_plan import BatchPlan
from ssl_pretrain.run.flops import flops_per_image
from ssl_pretrain.run.state import REMEDY

# Maximum seconds between two polls for preemption: a job is warned minutes before its end,
# and a checkpoint has to be written in them. A poll makes the GPU wait for some milliseconds.
LONGEST_WAIT = 10.0
# How the progress bar calls what `utilisation` knows.
UNITS = {"mfu_percent": "% MFU", "memory_gb": "GB"}


class StepLogger:
    """Writes one line a step to `metrics.jsonl` and draws the progress bar.

    Losses stay on the device until `flush`, which waits for them once for many steps. Speed and data wait
    are those of the steps since the flush before. When the next is due is decided in a flush, from the mean
    speed of all ranks, so that they agree.
    """

    def __init__(self, run: Run, plan: BatchPlan, world: World, first_step: int) -> None:
        """Start the clock and the bar at `first_step`."""
        self.run, self.plan, self.device = run, plan, world.device
        self.bar = progress(
            plan.last_step, "step", first_step, description=plan.recipe.name, hidden=not world.is_main
        )
        # Counted only where the GPU's peak is known: it takes some seconds.
        is_known = world.is_main and peak_flops(world.device) is not None
        self._flops = flops_per_image(plan.recipe) if is_known else 0.0
        self._done: list[Tensor] = []
        self._names: list[str] = []
        self._step = first_step
        self._next = first_step + 1  # then the speed is known
        self._waited = 0.0
        self._since = time.perf_counter()

    def timed(self, take: Callable[[], list[Tensor]]) -> Callable[[], list[Tensor]]:
        """Time the function that gives the next batch (data wait)."""

        def take_and_count() -> list[Tensor]:
            start = time.perf_counter()
            batch = take()
            self._waited += time.perf_counter() - start
            return batch

        return take_and_count

    def step_done(self, loss: Tensor, measures: Mapping[str, Tensor] | None = None) -> None:
        """One more step is done; its loss and other measures (scalars, on the device) are this rank's.

        Measures have the same names in every step.
        """
        self._names = list(measures or ())
        self._done.append(torch.stack([loss, *(measures or {}).values()]))
        self.bar.update()

    @property
    def is_due(self) -> bool:
        """True if a flush is due; the same on every rank."""
        return self._step + len(self._done) >= self._next

    def flush(self) -> None:
        """Log the steps since the last flush.

        Raises:
            AllRanksError: a loss is not finite; raised on every rank, as losses are means over all.
        """
        if not self._done:
            return
        lines = mean_over_ranks(torch.stack(self._done)).tolist()
        seconds = time.perf_counter() - self._since
        speed = len(lines) * self.plan.recipe.batch_size / seconds
        wait = 100 * self._waited / seconds
        used = utilisation(self._flops, speed, self.plan.ranks, self.device)
        for loss, *measures in lines:
            if not math.isfinite(loss):
                raise not_finite("the loss", self._step + 1, self.run.folder, REMEDY)
            self._log(loss, speed, wait, used | dict(zip(self._names, measures, strict=True)))
        shown = "".join(f", {value} {UNITS[name]}" for name, value in used.items())
        lr = self.plan.learning_rate(self._step - 1)
        text = f"loss {lines[-1][0]:.4f}, lr {lr:.2g}, {speed:.0f} images/s, data wait {wait:.0f} %{shown}"
        self.bar.set_postfix_str(text, refresh=False)
        self._next = self._step + self._stride(seconds / len(lines))
        self.restart_clock()

    def restart_clock(self) -> None:
        """Count time from now: what lay before (a checkpoint, a picture) is not training."""
        self._done, self._waited, self._since = [], 0.0, time.perf_counter()

    def __enter__(self) -> "StepLogger":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def _stride(self, seconds_a_step: float) -> int:
        """Compute the steps to the next flush: up to the longest wait, or to a multiple of `log_every`."""
        mean = float(mean_over_ranks(torch.tensor(seconds_a_step, device=self.device)))
        every, most = self.plan.recipe.log_every, max(1, int(LONGEST_WAIT / mean))
        return most if every is None else min(every - self._step % every, most)

    def _log(self, loss: float, speed: float, wait: float, measures: dict[str, float]) -> None:
        lr = self.plan.learning_rate(self._step)
        self._step += 1
        self.run.log(
            self._step,
            loss=loss,
            lr=lr,
            samples=self.plan.samples(self._step),
            images_per_second=round(speed, 1),
            data_wait_percent=round(wait, 1),
            **measures,
        )
