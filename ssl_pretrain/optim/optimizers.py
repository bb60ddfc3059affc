"""Optimisers with their parameter groups, and the schedules that they follow."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from timm.optim import Lars
from torch import Tensor, nn

from shared.cli import Range
from shared.training.schedules import cosine, linear


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Settings of all optimisers: a linear warm-up, then a cosine, both followed step by step."""

    base_lr: Annotated[float, Range(1e-12)]
    """Learning rate for 256 images a step; the real one is this times the global batch / 256."""
    weight_decay: Annotated[float, Range(0)] = 0.05
    """Weight decay in the beginning."""
    final_weight_decay: Annotated[float | None, Range(0)] = None
    """Weight decay at the end, on a cosine; None: it stays the same."""
    decay_all: bool = False
    """Apply weight decay to biases and other 1-D parameters, too."""
    warmup_samples: Annotated[int, Range(0)] = 0
    """Images over which the learning rate grows to its peak."""
    warmup_lr: Annotated[float, Range(0)] = 0.0
    """Learning rate that the warm-up begins with."""
    final_lr: Annotated[float, Range(0)] = 0.0
    """Learning rate at the end."""
    clip: Annotated[float | None, Range(1e-12)] = None
    """Greatest norm of the gradient of each parameter tensor; None: as it comes."""

    def peak_lr(self, batch_size: int) -> float:
        """Scale the learning rate after the warm-up linearly with the global batch (Goyal et al. 2017)."""
        return self.base_lr * batch_size / 256

    def learning_rate(self, samples: int, batch_size: int, total: int) -> float:
        """Compute the learning rate of the step that begins after `samples` of `total` images.

        As in the official MAE (util/lr_sched.py), which the official SwAV and DINO follow but for one step of
        the warm-up, and MoCo v2 in stairs of an epoch.
        """
        peak = self.peak_lr(batch_size)
        if samples < self.warmup_samples:
            return linear(self.warmup_lr, peak, samples / self.warmup_samples)
        return cosine(peak, self.final_lr, (samples - self.warmup_samples) / (total - self.warmup_samples))

    def decay(self, samples: int, total: int) -> float:
        """Compute the weight decay of the step that begins after `samples` of `total` images."""
        if self.final_weight_decay is None:
            return self.weight_decay
        return cosine(self.weight_decay, self.final_weight_decay, samples / total)

    def build(self, network: nn.Module) -> torch.optim.Optimizer:
        """Build the optimiser of a network's trainable parameters; its first group is the one that is decayed."""
        raise NotImplementedError

    def clip_gradients(self, network: nn.Module) -> None:
        """Shorten gradients that are longer than `clip`, each by itself (official DINO: utils.clip_gradients)."""
        if self.clip is not None:
            clip_gradients(network.parameters(), self.clip)

    def _groups(self, network: nn.Module) -> list[dict[str, Any]]:
        decayed, others = parameter_groups(network)
        if self.decay_all:
            decayed, others = [*decayed, *others], []
        return [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]


@dataclass(frozen=True, kw_only=True)
class AdamW(OptimizerConfig):
    """Adam with decoupled weight decay."""

    betas: Annotated[tuple[float, float], Range(0, 1 - 1e-9)] = (0.9, 0.95)
    """Decay of the first and second moments."""

    def build(self, network: nn.Module) -> torch.optim.Optimizer:
        """Build the optimiser of a network's trainable parameters; its first group is the one that is decayed."""
        return torch.optim.AdamW(self._groups(network), lr=self.base_lr, betas=self.betas, fused=True)


@dataclass(frozen=True, kw_only=True)
class SGD(OptimizerConfig):
    """Gradient descent with momentum, not Nesterov's."""

    momentum: Annotated[float, Range(0, 1 - 1e-9)] = 0.9
    """Share of the step before in a step."""

    def build(self, network: nn.Module) -> torch.optim.Optimizer:
        """Build the optimiser of a network's trainable parameters; its first group is the one that is decayed."""
        # Not fused: that fails when a tensor that was frozen gets its first gradient (torch 2.15).
        return torch.optim.SGD(self._groups(network), lr=self.base_lr, momentum=self.momentum)


@dataclass(frozen=True, kw_only=True)
class LARC(SGD):
    """Gradient descent with momentum and steps in proportion to each tensor's norm."""

    trust: Annotated[float, Range(1e-12)] = 0.001
    """Length of a step, at a learning rate of 1, as a share of the tensor's."""

    def build(self, network: nn.Module) -> torch.optim.Optimizer:
        """Build the optimiser of a network's trainable parameters; its first group is the one that is decayed."""
        # apex's LARC without clipping, as the official SwAV has it, but that a tensor without a slope is decayed.
        optimiser: torch.optim.Optimizer = Lars(
            self._groups(network), self.base_lr, self.momentum, trust_coeff=self.trust, always_adapt=True
        )
        return optimiser


def set_rates(optimiser: torch.optim.Optimizer, learning_rate: float, weight_decay: float) -> None:
    """Set what the next step is taken with; the decay is the first group's."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate
    optimiser.param_groups[0]["weight_decay"] = weight_decay


def parameter_groups(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters that are decayed, and those that are not: biases and 1-D ones.

    As timm 0.3's `add_weight_decay`, which the official MAE uses, and `get_params_groups` of the official DINO:
    class and mask tokens, being 3-D, decay.
    """
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if p.ndim > 1 and not name.endswith(".bias")]
    return decayed, [p for name, p in named if p.ndim <= 1 or name.endswith(".bias")]


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], most: float) -> None:
    """Shorten each gradient whose norm is over `most` to that, in a few launches that nothing waits for.

    torch multiplies many tensors at once by tensors of their own shapes and strides; by a scalar on the device for
    each, it does one after another.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm_P = torch.stack(torch._foreach_norm(gradients))
    factor_P = (most / (norm_P + 1e-6)).clamp(max=1)  # 1e-6: official, against a division by 0
    sizes = [gradient.numel() for gradient in gradients]
    factor_N = torch.cat([factor.expand(size) for factor, size in zip(factor_P.unbind(), sizes, strict=True)])
    factors = [
        part.as_strided(gradient.shape, gradient.stride(), part.storage_offset())
        for part, gradient in zip(factor_N.split(sizes), gradients, strict=True)
    ]
    torch._foreach_mul_(gradients, factors)
