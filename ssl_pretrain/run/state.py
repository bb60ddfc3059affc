"""State of a pre-training run, saved in its checkpoints: networks, optimiser, position in the shards."""

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from shared.training import checkpoint
from shared.training.rank_errors import not_finite
from shared.training.run_folder import Run
from ssl_pretrain.data.epoch_order import EpochPartition, Position
from ssl_pretrain.methods import Method

# Options that may help against a loss that is not finite.
REMEDY = "a lower --optimiser.base-lr, with --optimiser.clip, or with --precision float32"


@dataclass
class PretrainingState:
    """Networks, optimiser and how far the run is.

    Random numbers need no state: torch's generators are seeded for every batch, from the seed
    of the run and the number of the batch.
    """

    method: Method
    optimiser: torch.optim.Optimizer
    layout: EpochPartition
    step: int = 0
    """Optimiser steps done."""
    position: Position = Position()
    """Position in the shards."""
    undecodable: frozenset[str] = frozenset()
    """Names of the images that neighbours have replaced."""
    model: nn.Module = field(init=False)
    """The method, or what the loop wraps around it to exchange gradients among ranks."""

    def __post_init__(self) -> None:
        self.model = self.method

    def save(self, run: Run, recipe: str, keep_every: int | None = None) -> None:
        """Write a checkpoint into the run folder; called on every rank.

        Args:
            run: The run.
            recipe: Name of the recipe.
            keep_every: Checkpoints of every multiple of this step stay.

        Raises:
            AllRanksError: a weight, the same on every rank, is not finite; the checkpoints before are kept.
        """
        norms = torch.stack(torch._foreach_norm(list(self.method.parameters()))).tolist()
        if not all(map(math.isfinite, norms)):
            raise not_finite("a weight", self.step, run.folder, REMEDY)
        if not run.writes:
            return
        content = {
            "networks": self.method.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "position": asdict(self.position),
            "layout": asdict(self.layout),
            "undecodable": sorted(self.undecodable),
        }
        checkpoint.save(run.folder, self.step, recipe, content, keep_every=keep_every)

    def restore(self, folder: Path, recipe: str, free_workers: bool = False) -> str:
        """Restore the newest whole checkpoint of a run folder; returns a description of the run's position.

        Args:
            folder: The run folder.
            recipe: Name of the recipe.
            free_workers: True if no number of loader workers was given: it stays the checkpoint's, so
                that a node with other cores goes on in the middle of the epoch.

        Raises:
            UserError: the folder belongs to another recipe or version, or none of its checkpoints can be read.
        """
        found = checkpoint.resume(folder, recipe)
        if found is None:
            return "begins"
        with checkpoint.explain_other_version(folder):
            self.method.load_state_dict(found["networks"])
            self.optimiser.load_state_dict(found["optimiser"])
            self.step, self.position = found["step"], Position(**found["position"])
            self.undecodable = frozenset(found.get("undecodable", ()))
            before = EpochPartition(**found["layout"])
        if before == (replace(self.layout, workers=before.workers) if free_workers else self.layout):
            self.layout = before
            return f"goes on after step {self.step:,}"
        # Other ranks, workers or batches divide an epoch in another way: only the next one is all unseen.
        self.position = Position(self.position.epoch + 1)
        return f"goes on after step {self.step:,}, with a new epoch because its division has changed"
