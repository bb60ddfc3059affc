"""Steps at which a run writes checkpoints and measures: every given number of steps, or by the clock."""

import time

from shared.training.distributed import World, any_rank
from ssl_pretrain.recipe import PretrainingRecipe

# A checkpoint of ViT-B, its picture and a measurement take 3 to 8 s together: 0.3 to 0.9 % of this.
MINUTES = 15.0


class LookSchedule:
    """Decision after every step, the same on all ranks."""

    def __init__(self, recipe: PretrainingRecipe, world: World) -> None:
        """Start the clock."""
        self._recipe, self._device = recipe, world.device
        self._since, self._is_time = time.monotonic(), False

    def poll(self) -> None:
        """Synchronise the ranks' clocks (collective operation)."""
        self._is_time = any_rank(time.monotonic() - self._since >= 60 * MINUTES, self._device)

    def saves(self, step: int) -> bool:
        """Return True if a checkpoint is due after `step` steps."""
        stays = self._recipe.keep_every is not None and step % self._recipe.keep_every == 0
        return stays or self._is_due(self._recipe.checkpoint_every, step)

    def measures(self, step: int) -> bool:
        """Return True if a measurement is due after `step` steps."""
        return self._is_due(self._recipe.monitor_every, step)

    def _is_due(self, every: int | None, step: int) -> bool:
        if every is None:
            return self._is_time
        return every > 0 and step % every == 0

    def restart_clock(self) -> None:
        """Restart the clock after a checkpoint."""
        if self._is_time:
            self._since, self._is_time = time.monotonic(), False
