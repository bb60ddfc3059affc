"""AdamW with learning rates of their own for the trunk and its layers."""

from collections.abc import Iterable
from typing import Any

import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from shared.errors import UserError
from shared.model.cells import CellDetector


def create_optimiser(
    detector: CellDetector, weight_decay: float, trunk_rate: float = 1.0, layer_decay: float = 1.0
) -> torch.optim.AdamW:
    """Create AdamW over all parameters that require gradients.

    The groups' `lr_scale` multiplies the learning rate of every step (`set_learning_rate`).

    Args:
        detector: The network.
        weight_decay: Of all parameters alike (authors' public code).
        trunk_rate: Learning rate of the trunk relative to neck, decoder and adapter.
        layer_decay: Learning rate of each block of a ViT relative to the next; the last has the trunk's.

    Raises:
        UserError: a layer decay for a network without blocks.
    """
    trunks = detector.trunks()
    in_trunks = {parameter for trunk in trunks for parameter in trunk.parameters()}
    if trunk_rate == layer_decay == 1:
        groups: list[dict[str, Any]] = [{"params": _trained(detector.parameters()), "lr_scale": 1.0}]
    else:
        groups = [{"params": _trained(p for p in detector.parameters() if p not in in_trunks), "lr_scale": 1.0}]
        for trunk in trunks:
            groups += _layers(trunk, weight_decay, trunk_rate, layer_decay)
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=weight_decay, fused=True)


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group: `rate` times its scale."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)  # checkpoints from before have none


def _layers(trunk: nn.Module, weight_decay: float, rate: float, decay: float) -> list[dict[str, Any]]:
    if decay == 1:
        return [{"params": _trained(trunk.parameters()), "lr_scale": rate}]
    if not hasattr(trunk, "blocks"):  # timm would divide its tensors into layers at fixed numbers
        raise UserError("--layer-decay is for ViTs, whose blocks it slows; leave it out, or take --trunk-rate")
    groups = param_groups_layer_decay(trunk, weight_decay, weight_decay_exclude_1d=False, layer_decay=decay)
    return [{**group, "lr_scale": rate * group["lr_scale"]} for group in groups]


def _trained(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]
