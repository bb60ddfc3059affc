"""State of a fine-tuning run, saved in its checkpoints: detector, optimiser, moving average, progress."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from timm.utils import ModelEmaV3
from torch import nn

from finetune.training.objective import Objective
from shared.errors import UserError
from shared.model.cells import CellDetector
from shared.training import checkpoint
from shared.training.run_folder import Run


@dataclass
class TrainingState:
    """A detector in training with its optimiser, moving average and progress."""

    detector: CellDetector
    optimiser: torch.optim.Optimizer
    frozen_batch_norms: list[nn.Module]
    """Batch norms that stay in eval mode."""
    objective: Objective
    ema: ModelEmaV3 | None = None
    """Moving average of the weights."""
    data: str = ""
    """Digest of the annotated data."""
    step: int = 0
    """Optimiser steps done."""
    best_f1: float = -1.0
    """Macro F1 of the best weights on the validation tiles."""
    best_step: int = 0
    model: nn.Module = field(init=False)
    """The detector, or what the loop wraps around it to exchange gradients among ranks."""

    def __post_init__(self) -> None:
        self.model = self.detector

    @property
    def validated_f1(self) -> float | None:
        """Macro F1 of the best weights, if a validation has scored trained ones."""
        return self.best_f1 if self.best_f1 >= 0 else None

    @property
    def eval_model(self) -> CellDetector:
        """The detector to validate and publish: the moving average, if there is one."""
        return self.detector if self.ema is None else self.ema.module

    def save(self, run: Run, recipe: str) -> None:
        """Write a checkpoint into the run folder.

        Args:
            run: The run.
            recipe: Name of the recipe.
        """
        content = {
            "detector": self.detector.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": {} if self.ema is None else self.ema.module.state_dict(),
            "objective": self.objective.state(),
            "best_f1": self.best_f1,
            "best_step": self.best_step,
            "data": self.data,
        }
        checkpoint.save(run.folder, self.step, recipe, content)

    def restore(self, folder: Path, recipe: str) -> str:
        """Restore the newest whole checkpoint of a run folder; returns a description of the run's position.

        Raises:
            UserError: the folder belongs to another recipe or other data, or none of its checkpoints can be read.
        """
        found = checkpoint.resume(folder, recipe)
        if found is None:
            return "begins"
        with checkpoint.explain_other_version(folder):
            if found["data"] != self.data:
                raise UserError(
                    f"the tiles or cells of --data have changed since step {found['step']:,} of {folder}; "
                    "give another run folder with --run-dir"
                )
            self.detector.load_state_dict(found["detector"])
            self.optimiser.load_state_dict(found["optimiser"])
            if self.ema is not None:
                self.ema.module.load_state_dict(found["average"])
            if kept := found.get("objective"):  # most have none, as checkpoints from before
                self.objective.restore(kept)
            self.step, self.best_f1, self.best_step = found["step"], found["best_f1"], found["best_step"]
        return f"goes on after step {self.step:,}"

    def training_mode(self) -> None:
        """Switch to training mode, except for frozen batch norms."""
        self.detector.train()
        for module in self.frozen_batch_norms:
            module.eval()


def ema_of(detector: CellDetector, decay: float) -> ModelEmaV3 | None:
    """Create a moving average that starts at the detector's weights; None for decay 0.

    At step t it keeps min(decay, 1 - 1 / (t + 1)) of itself (authors' public code).
    """
    if not decay:
        return None
    return ModelEmaV3(detector, decay=decay, use_warmup=True, warmup_gamma=1.0, warmup_power=1.0)
