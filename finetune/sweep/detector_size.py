"""Multiply-adds of a detector, counted as in the paper."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from shared.model.dpa_p2pnet import DPAP2PNet
from shared.training.network_size import counted_operations

# The counter of the paper adds two operations for every output of a norm and two for its scale and shift.
NORM_OPERATIONS = 4
NORMS = (nn.BatchNorm2d, nn.LayerNorm)


def image_of(detector: DPAP2PNet, size: int) -> torch.Tensor:
    """Zero image with as many fields of view as the detector takes."""
    views = detector.config.views
    return torch.zeros((1, 3, size, size) if views == 1 else (1, views, 3, size, size))


def multiply_adds(detector: DPAP2PNet, size: int) -> float:
    """Count the multiply-adds for one image, in billions, without computing them."""
    with torch.no_grad(), _norm_outputs(detector) as outputs, counted_operations() as operations:
        detector(image_of(detector, size))
    return (operations.get_total_flops() / 2 + NORM_OPERATIONS * sum(outputs)) / 1e9


@contextmanager
def _norm_outputs(detector: nn.Module) -> Iterator[list[int]]:
    """Collect the output sizes of norms."""
    counts: list[int] = []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output: counts.append(output.numel()))
        for module in detector.modules()
        if isinstance(module, NORMS)
    ]
    yield counts
    for hook in hooks:
        hook.remove()
