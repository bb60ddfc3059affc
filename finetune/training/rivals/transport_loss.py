"""GL's loss (Wan et al. 2021): unbalanced optimal transport between a density and the points of cells."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.training.objective import Losses, Objective, Targets
from shared.model.cells import NetworkConfig
from shared.model.rivals.outputs import Maps
from shared.model.rivals.rival_detector import NETWORKS, RivalConfig
from shared.model.rivals.transport import LEAST_MASS, falling_blurs, plan, potentials

# Public code: cost exp(|x - y| / 0.6) - 1 of places in sides of the crop. Its default is for perspective: a scale
# that depends on y.
SCALE, BLUR, REACH, FALL = 0.6, 0.01, 0.5, 0.5
MASS_WEIGHT, ENTROPY_WEIGHT = 0.1, 0.01


@dataclass(frozen=True, kw_only=True)
class TransportConfig:
    """Move a density to the cells (GL)."""

    def objective(self, network: NetworkConfig, steps_an_epoch: int) -> Objective:
        """Loss for a network of densities."""
        assert isinstance(network, RivalConfig)
        return TransportObjective(NETWORKS[network.network].stride)


class TransportObjective(Objective):
    """Sum over the classes, the mean over the images.

    Mass of a place is at its centre. In the public code it is half a cell beyond, so that densities learn to lie
    4 px away from the cells.
    """

    def __init__(self, stride: int) -> None:
        """Keep the px per cell of the density."""
        self.stride = stride

    def loss(self, found: Maps, targets: Sequence[Targets], sums: Tensor) -> Losses:
        """See `Objective`."""
        total = found.maps_BCHW.new_zeros(())
        for maps_CHW, target in zip(found.maps_BCHW, targets, strict=True):
            for label, density_HW in enumerate(maps_CHW):
                total = total + sum(
                    transport_terms(density_HW, target.cells_M2[target.labels_M == label], self.stride)
                )
        total = total / sums[0]
        return Losses(total, total.new_zeros(()), total.detach())


def transport_terms(density_HW: Tensor, cells_M2: Tensor, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """Transport, mass that does not arrive or is left over, and entropy, each weighted.

    Args:
        density_HW: Cells in each place.
        cells_M2: px.
        stride: px per place.
    """
    a_N = density_HW.flatten()
    if not len(cells_M2):  # all three are the count in the public code
        count = a_N.abs().sum()
        return count, 2 * MASS_WEIGHT * count, count.new_zeros(())
    rows, columns = density_HW.shape
    side = max(rows, columns) * stride
    y_R, x_C = ((torch.arange(cells, device=a_N.device) + 0.5) * stride for cells in (rows, columns))
    places_N2 = torch.stack(torch.meshgrid(x_C, y_R, indexing="xy"), -1).flatten(0, 1) / side
    b_M = a_N.new_ones(len(cells_M2))
    cost_NM = torch.expm1(torch.cdist(places_N2, cells_M2.float() / side) / SCALE)
    found = potentials(cost_NM, a_N, b_M, falling_blurs(2**0.5, BLUR, FALL), REACH)
    moved_NM = plan(cost_NM, a_N, b_M, found, BLUR)
    # Value of the dual at these potentials, relative to a product of the masses: linear in the density.
    left_f_N, left_g_M = (REACH * (1 - torch.exp(-each / REACH)) for each in found)
    value = (a_N * left_f_N).sum() + (b_M * left_g_M).sum()
    value = value - BLUR * moved_NM.sum() + BLUR / 2 * (a_N.sum() + b_M.sum())
    mass = (moved_NM.sum(0) - b_M).abs().sum() + (moved_NM.sum(1) - a_N).square().sum()
    entropy = torch.xlogy(moved_NM, moved_NM.clamp(min=LEAST_MASS)).mean()  # with a gradient at 0
    return value, MASS_WEIGHT * mass, ENTROPY_WEIGHT * entropy
