"""Parameter groups, optimiser and learning rate."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from shared.command_line import check_range


@dataclass(frozen=True, kw_only=True)
class Config:
    """AdamW with a linear warm-up and a cosine to `final_lr`, both followed step by step."""

    base_lr: float
    """Learning rate for 256 images a step; the real one is this times the global batch / 256."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of AdamW's first and second moments."""
    weight_decay: float = 0.05
    """Decoupled weight decay; none on biases and 1-D parameters."""
    warmup_samples: int = 0
    """Images over which the learning rate grows from 0."""
    final_lr: float = 0.0
    """Learning rate at the end."""

    def check(self) -> None:
        """Refuse numbers that make no sense, with a UserError."""
        check_range("optimiser.base-lr", self.base_lr, 1e-12)
        for beta in self.betas:
            check_range("optimiser.betas", beta, 0, 1 - 1e-9)
        check_range("optimiser.weight-decay", self.weight_decay, 0)
        check_range("optimiser.warmup-samples", self.warmup_samples, 0)
        check_range("optimiser.final-lr", self.final_lr, 0)

    def peak_lr(self, batch_size: int) -> float:
        """The learning rate after the warm-up, scaled linearly with the global batch (Goyal et al. 2017)."""
        return self.base_lr * batch_size / 256

    def learning_rate(self, samples: int, batch_size: int, total: int) -> float:
        """The learning rate of the step that begins after `samples` of `total` images.

        As in the official MAE (util/lr_sched.py): the first step's is 0.
        """
        peak = self.peak_lr(batch_size)
        if samples < self.warmup_samples:
            return peak * samples / self.warmup_samples
        done = (samples - self.warmup_samples) / (total - self.warmup_samples)
        return self.final_lr + (peak - self.final_lr) * 0.5 * (1 + math.cos(math.pi * done))

    def build(self, network: nn.Module) -> torch.optim.Optimizer:
        """The optimiser over the trainable parameters of a network."""
        decayed, others = parameter_groups(network)
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.base_lr, betas=self.betas, fused=True)


def parameter_groups(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters that are decayed, and those that are not: biases and 1-D ones.

    As timm 0.3's `add_weight_decay`, which the official MAE uses: class and mask tokens, being 3-D, decay.
    """
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if p.ndim > 1 and not name.endswith(".bias")]
    return decayed, [p for name, p in named if p.ndim <= 1 or name.endswith(".bias")]
