"""LoRA (Hu et al. 2022): a frozen ViT whose attention learns changes of low rank, merged into its weights later.

The changes are added to the weights of `qkv` and `proj` in each block, with the scale 1 (their alpha = rank).
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from shared.errors import UserError
from shared.model.dpa_p2pnet import DPAP2PNet

LAYERS = ("qkv", "proj")
# Names that torch gives to a parametrised weight and to the tensors of its change.
BASE, CHANGE = ".parametrizations.weight.original", ".parametrizations.weight.0."


class LowRank(nn.Module):
    """Change of a weight matrix: the product of a tall and a flat one, zero at first."""

    def __init__(self, weight_OI: Tensor, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(
            weight_OI.new_empty(rank, weight_OI.shape[1]).normal_(std=weight_OI.shape[1] ** -0.5)
        )
        self.up = nn.Parameter(weight_OI.new_zeros(weight_OI.shape[0], rank))

    def forward(self, weight_OI: Tensor) -> Tensor:
        """Change the weight."""
        return weight_OI + self.up @ self.down


def freeze(trunk: nn.Module, rank: int = 0) -> None:
    """Freeze a trunk; with a rank, its attention learns changes of that rank.

    Raises:
        UserError: a rank for a network without attention.
    """
    trunk.requires_grad_(False)
    if rank and not hasattr(trunk, "blocks"):
        raise UserError("--lora is for ViTs, whose attention it trains; leave it out, or take --freeze-trunk")
    for block in cast(Sequence[Any], trunk.blocks) if rank else ():
        for layer in (getattr(block.attn, name) for name in LAYERS):
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))


def merged(detector: DPAP2PNet) -> DPAP2PNet:
    """Return the detector with the changes in its weights; a new one, if there are any."""
    state = detector.state_dict()
    changed = [name.removesuffix(BASE) for name in state if name.endswith(BASE)]
    if not changed:
        return detector
    # Not `remove_parametrizations` on a copy, which shares the class that it changes.
    for start in changed:
        up, down = (state.pop(f"{start}{CHANGE}{part}") for part in ("up", "down"))
        state[f"{start}.weight"] = state.pop(start + BASE) + up @ down
    with torch.random.fork_rng(devices=[]):
        plain = DPAP2PNet(detector.config)
    plain.load_state_dict(state)
    return plain
