"""Batch norms over the images of a group of ranks, without making the GPU wait.

torch's `SyncBatchNorm` drops ranks without images by a boolean mask, for which the host waits once a layer and
pass: 107 times a step of SwAV, 159 of DINO with ResNet-50. Here all ranks of a group have equally many images.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

# torch 2.14 renamed it and warns of the old name.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def synchronise(network: nn.Module, ranks: int) -> nn.Module:
    """Replace the batch norms of a network; names of tensors stay. Called on every rank.

    Args:
        network: Its parameters and buffers are shared with the result.
        ranks: Ranks of a group at most; the largest divisor of the number of all ranks is taken. Groups are
            consecutive ranks, so that those of a node stay together.
    """
    world = dist.get_world_size()
    size = next(size for size in range(min(ranks, world), 0, -1) if world % size == 0)
    group = dist.group.WORLD if size == world else dist.new_subgroups(size)[0]
    return _replace(network, group)


def _replace(module: nn.Module, group: Any) -> nn.Module:
    if isinstance(module, _BatchNorm):
        return GroupBatchNorm(module, group)
    for name, child in module.named_children():
        setattr(module, name, _replace(child, group))
    return module


class Settings(NamedTuple):
    """Running statistics and numbers of a batch norm, which have no gradient."""

    running_mean_C: Tensor | None
    running_var_C: Tensor | None
    momentum: float | None
    eps: float
    group: Any


class GroupBatchNorm(_BatchNorm):
    """A batch norm whose statistics in training mode are those of all ranks of a group."""

    num_batches_tracked: Tensor

    def __init__(self, norm: _BatchNorm, group: Any) -> None:
        """Take over the tensors of `norm`."""
        super().__init__(norm.num_features, norm.eps, norm.momentum, device="meta")
        self._parameters, self._buffers, self.training = norm._parameters, norm._buffers, norm.training
        self.group = group

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) or vectors (B, C)."""
        buffers = self.running_mean, self.running_var
        if not self.training:
            return F.batch_norm(image_BCHW, *buffers, self.weight, self.bias, eps=self.eps)
        self.num_batches_tracked.add_(1)
        settings = Settings(*buffers, self.momentum, self.eps, self.group)
        normalised: Tensor = _normalise(image_BCHW, self.weight, self.bias, settings)
        return normalised

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions."""


@torch.compiler.disable  # type: ignore[untyped-decorator]  # collectives in an autograd function are not traced
def _normalise(*arguments: Any) -> Tensor:
    normalised: Tensor = _Normalise.apply(*arguments)
    return normalised


class _Normalise(torch.autograd.Function):
    """torch's `SyncBatchNorm` function for equal counts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_C: Tensor, bias_C: Tensor, settings: Settings) -> Tensor:
        *running, momentum, eps, group = settings
        x, kernels = _dense(x), _kernels(x)
        ranks, images = dist.get_world_size(group), x.numel() // x.shape[1]
        own_2C = torch.cat(kernels.batch_norm_stats(x, eps))
        all_R2C = own_2C.new_empty(ranks * len(own_2C))
        _all_gather(all_R2C, own_2C, group)
        mean_RC, invstd_RC = all_R2C.view(ranks, -1).chunk(2, dim=1)
        count_R = own_2C.new_full((ranks,), images)
        mean_C, invstd_C = kernels.batch_norm_gather_stats_with_counts(
            x, mean_RC, invstd_RC, *running, momentum, eps, count_R
        )
        ctx.save_for_backward(x, weight_C, mean_C, invstd_C, count_R.int())
        ctx.group = group
        normalised: Tensor = kernels.batch_norm_elemt(x, weight_C, bias_C, mean_C, invstd_C, eps)
        return normalised

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_C, mean_C, invstd_C, count_R = ctx.saved_tensors
        grad, kernels = _dense(grad), _kernels(x)
        *sums, weight_grad_C, bias_grad_C = kernels.batch_norm_backward_reduce(
            grad, x, mean_C, invstd_C, weight_C, True, True, True
        )
        sums_2C = torch.cat(sums)
        dist.all_reduce(sums_2C, group=ctx.group)
        x_grad = kernels.batch_norm_backward_elemt(grad, x, mean_C, invstd_C, weight_C, *sums_2C.chunk(2), count_R)
        return x_grad, weight_grad_C, bias_grad_C, None


def _dense(x: Tensor) -> Tensor:
    return x if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


def _kernels(x: Tensor) -> Any:
    return torch if x.is_cuda else _OnCpu


class _OnCpu:
    """Operations that torch has for GPUs only, under the same names."""

    @staticmethod
    def batch_norm_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        var_C, mean_C = torch.var_mean(_wide(x), _others(x), correction=0)
        return mean_C, (var_C + eps).rsqrt()

    @staticmethod
    def batch_norm_gather_stats_with_counts(
        x: Tensor,
        mean_RC: Tensor,
        invstd_RC: Tensor,
        *others: Any,
    ) -> tuple[Tensor, Tensor]:
        running_mean_C, running_var_C, momentum, eps, count_R = others
        mean_C = mean_RC.mean(0)
        var_C = (invstd_RC**-2 - eps + (mean_RC - mean_C) ** 2).mean(0)
        running_mean_C.lerp_(mean_C.to(running_mean_C.dtype), momentum)
        count = count_R.sum()
        running_var_C.lerp_((var_C * count / (count - 1)).to(running_var_C.dtype), momentum)
        return mean_C, (var_C + eps).rsqrt()

    @staticmethod
    def batch_norm_elemt(
        x: Tensor, weight_C: Tensor, bias_C: Tensor, mean_C: Tensor, invstd_C: Tensor, *_eps: float
    ) -> Tensor:
        scale_C = weight_C * invstd_C
        return torch.addcmul(_along(bias_C, x), _wide(x) - _along(mean_C, x), _along(scale_C, x)).to(x.dtype)

    @staticmethod
    def batch_norm_backward_reduce(
        grad: Tensor, x: Tensor, mean_C: Tensor, invstd_C: Tensor, weight_C: Tensor, *_wanted: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        sum_C = _wide(grad).sum(_others(x))
        product_C = (_wide(grad) * (_wide(x) - _along(mean_C, x))).sum(_others(x))
        return sum_C, product_C, (product_C * invstd_C).to(weight_C.dtype), sum_C.to(weight_C.dtype)

    @staticmethod
    def batch_norm_backward_elemt(
        grad: Tensor,
        x: Tensor,
        mean_C: Tensor,
        invstd_C: Tensor,
        weight_C: Tensor,
        *sums: Tensor,
    ) -> Tensor:
        sum_C, product_C, count_R = sums
        count = count_R.sum()
        slope = (_wide(x) - _along(mean_C, x)) * _along(invstd_C**2 * product_C / count, x)
        return ((_wide(grad) - _along(sum_C / count, x) - slope) * _along(weight_C * invstd_C, x)).to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _others(x: Tensor) -> list[int]:
    """Return the dimensions but that of channels."""
    return [dimension for dimension in range(x.ndim) if dimension != 1]


def _along(row_C: Tensor, x: Tensor) -> Tensor:
    return row_C.view(1, -1, *[1] * (x.ndim - 2))
