"""Parameters and multiply-adds of a detector, counted as in the paper and as they are."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from finetune.networks import RivalNetwork
from finetune.recipes import RECIPES
from finetune.sweep.paper_tables import Variant
from shared.model.cells import CellDetector, NetworkConfig
from shared.model.dpa_p2pnet import DetectorConfig
from shared.model.rivals.cltr import ProjectedAttention
from shared.model.rivals.rival_detector import RivalDetector
from shared.training.network_size import counted_operations

# The counter of the paper (thop) adds two operations for every output of a norm and two for its scale and shift.
NORM_OPERATIONS = 4
NORMS = (nn.BatchNorm2d, nn.LayerNorm)
# It does not see the products of attention.
ATTENTION = (nn.MultiheadAttention, ProjectedAttention)


class MultiplyAdds(NamedTuple):
    """Multiply-adds for one image, in billions."""

    paper: float
    """As the paper's counter has them."""
    true: float
    """All products, each once; norms not counted."""


def config_of(variant: Variant, classes: int, interval: int) -> NetworkConfig:
    """Config of a variant; rivals have no interval, and their sizes do not depend on um/px."""
    if not variant.recipe:
        return DetectorConfig(classes=classes, interval=interval, **variant.fields)
    network = RECIPES[variant.recipe].network
    assert isinstance(network, RivalNetwork)
    return network.architecture(classes, mpp=0.5)


def image_of(detector: CellDetector, size: int) -> torch.Tensor:
    """Zero image with as many fields of view as the detector takes."""
    views = detector.config.views
    return torch.zeros((1, 3, size, size) if views == 1 else (1, views, 3, size, size))


def multiply_adds(detector: CellDetector, size: int) -> MultiplyAdds:
    """Count the multiply-adds for one image without computing them."""
    # The fused form of attention has no counter.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), counted_operations() as operations, _beside(detector, operations) as beside:
            detector(image_of(detector, size))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    products = operations.get_total_flops() / 2
    return MultiplyAdds((products + sum(beside)) / 1e9, products / 1e9)


@contextmanager
def _beside(detector: nn.Module, operations: FlopCounterMode) -> Iterator[list[float]]:
    """Collect what the paper's counter adds to the products and leaves out of them.

    A transposed convolution costs it as if every output were made of all of the kernel; the numbers that the paper
    prints for P2PNet's family come out without that and with attention, those of the rivals do not.
    """
    counts: list[float] = []

    def norm(_: nn.Module, __: object, output: torch.Tensor) -> None:
        counts.append(NORM_OPERATIONS * output.numel())

    def transposed(module: nn.Module, inputs: tuple[torch.Tensor], _: object) -> None:
        assert isinstance(module, nn.ConvTranspose2d)
        (height, width), kernel = module.stride, module.weight[0].numel()
        counts.append((height * width - 1) * inputs[0].numel() * kernel)

    def so_far() -> float:
        return operations.get_total_flops() / 2

    hooks = [each.register_forward_hook(norm) for each in detector.modules() if isinstance(each, NORMS)]
    if isinstance(detector, RivalDetector):
        for module in detector.modules():
            if isinstance(module, nn.ConvTranspose2d):
                hooks.append(module.register_forward_hook(transposed))
            if isinstance(module, ATTENTION):
                hooks.append(
                    module.register_forward_pre_hook(lambda *_: counts.append(operations.get_total_flops() / 2))
                )
                hooks.append(
                    module.register_forward_hook(lambda *_: counts.append(-operations.get_total_flops() / 2))
                )
    yield counts
    for hook in hooks:
        hook.remove()
