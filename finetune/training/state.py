"""Training state saved in a checkpoint."""

from dataclasses import dataclass
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn

from shared.model.dpa_p2pnet import DPAP2PNet


@dataclass
class TrainingState:
    """A detector in training with its optimiser, moving average and progress."""

    detector: DPAP2PNet
    optimiser: torch.optim.Optimizer
    frozen_batch_norms: list[nn.Module]
    """Batch norms that stay in eval mode."""
    ema: ModelEmaV3 | None = None
    """Moving average of the weights."""
    step: int = 0
    best_f1: float = -1.0
    """Macro F1 of the best weights on the validation tiles."""
    best_step: int = 0

    @property
    def eval_model(self) -> DPAP2PNet:
        """The detector to validate and publish: the moving average, if there is one."""
        return self.detector if self.ema is None else self.ema.module

    def state(self) -> dict[str, Any]:
        """Collect the state as tensors and plain values."""
        return {
            "detector": self.detector.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": {} if self.ema is None else self.ema.module.state_dict(),
            "best_f1": self.best_f1,
            "best_step": self.best_step,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.detector.load_state_dict(state["detector"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["average"])
        self.step, self.best_f1, self.best_step = state["step"], state["best_f1"], state["best_step"]

    def training_mode(self) -> None:
        """Switch to training mode, except for frozen batch norms."""
        self.detector.train()
        for module in self.frozen_batch_norms:
            module.eval()


def ema_of(detector: DPAP2PNet, decay: float) -> ModelEmaV3 | None:
    """Create a moving average that starts at the detector's weights; None for decay 0.

    At step t it keeps min(decay, 1 - 1 / (t + 1)) of itself (authors' public code).
    """
    if not decay:
        return None
    return ModelEmaV3(detector, decay=decay, use_warmup=True, warmup_gamma=1.0, warmup_power=1.0)
