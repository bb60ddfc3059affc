"""Entropic optimal transport between a density on a grid and points, and OT-M, which finds points by it.

The iterations are those of geomloss (Feydy et al. 2019), which GL's public code uses: averaged updates of both
potentials in the log domain while the blur falls.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_MASS = 1e-30  # stands for no mass, whose logarithm is finite
# OT-M (Lin & Chan 2023, public code): blur from the largest cost to 0.01 by 0.75, in squared cells of 8 px.
BLUR, FALL, CELL = 0.01, 0.75, 8.0
ROUNDS, MEAN_MOVE, MOST_MOVE = 16, 1.0, 8.0  # px
# Below this share of the largest density there is nothing (ours: the public code is slow where it never vanishes).
NEGLIGIBLE = 1e-3


class Potentials(NamedTuple):
    """Dual variables of the two sides."""

    f_N: Tensor
    g_M: Tensor


def falling_blurs(largest: float, smallest: float, factor: float) -> list[float]:
    """Blurs from the largest to the smallest, each `factor` times the one before."""
    steps = math.ceil(math.log(smallest / largest) / math.log(factor)) if largest > smallest else 0
    return [*(largest * factor**step for step in range(steps)), smallest]


@torch.no_grad()
def potentials(
    cost_NM: Tensor, a_N: Tensor, b_M: Tensor, blurs: list[float], reach: float = math.inf
) -> Potentials:
    """Sinkhorn's iterations, one for each blur.

    Args:
        cost_NM: Cost of moving a unit of mass.
        a_N: Mass of one side.
        b_M: Mass of the other.
        blurs: Weights of the entropy.
        reach: Weight of mass that is not moved; infinite: all mass is, and both sides must have the same.
    """
    log_a_N, log_b_M = (mass.clamp(min=LEAST_MASS).log() for mass in (a_N, b_M))

    def updated(f_N: Tensor, g_M: Tensor, blur: float) -> tuple[Tensor, Tensor]:
        damping = 1 / (1 + blur / reach)
        to_f_N = -damping * blur * torch.logsumexp(log_b_M + (g_M - cost_NM) / blur, 1)
        to_g_M = -damping * blur * torch.logsumexp((log_a_N + f_N / blur)[:, None] - cost_NM / blur, 0)
        return to_f_N, to_g_M

    f_N, g_M = updated(torch.zeros_like(a_N), torch.zeros_like(b_M), blurs[0])
    for blur in blurs:
        to_f_N, to_g_M = updated(f_N, g_M, blur)
        f_N, g_M = (f_N + to_f_N) / 2, (g_M + to_g_M) / 2
    return Potentials(*updated(f_N, g_M, blurs[-1]))


def plan(cost_NM: Tensor, a_N: Tensor, b_M: Tensor, found: Potentials, blur: float) -> Tensor:
    """Mass that is moved from each place of one side to each of the other, (N, M); linear in the masses."""
    return torch.exp((found.f_N[:, None] + found.g_M - cost_NM) / blur) * a_N[:, None] * b_M


@torch.no_grad()
def points_of_density(density_HW: Tensor, stride: int) -> Tensor:
    """Points that a density stands for by OT-M: each is the mean of the mass that is moved to it, (N, 2) in px.

    There are as many as the density's sum, rounded. The start is drawn from the density by a fixed seed.
    """
    number = round(float(density_HW.sum()))
    if number < 1:
        return density_HW.new_empty(0, 2)
    rows_N, columns_N = (density_HW > NEGLIGIBLE * density_HW.max()).nonzero(as_tuple=True)
    places_N2 = (torch.stack([columns_N, rows_N], 1) + 0.5) * stride
    mass_N = density_HW[rows_N, columns_N]
    mass_N = mass_N * (number / mass_N.sum())
    points_M2 = _drawn(density_HW, stride, number)
    ones_M = torch.ones_like(points_M2[:, 0])
    for _ in range(ROUNDS):
        cost_NM = torch.cdist(places_N2, points_M2).square() / CELL**2
        blurs = falling_blurs(max(CELL, float(cost_NM.max())), BLUR, FALL)
        moved_NM = plan(cost_NM, mass_N, ones_M, potentials(cost_NM, mass_N, ones_M, blurs), BLUR)
        next_M2 = moved_NM.T @ places_N2 / moved_NM.sum(0).clamp(min=LEAST_MASS)[:, None]
        moves_M = (next_M2 - points_M2).norm(dim=1)
        points_M2 = next_M2
        if moves_M.mean() < MEAN_MOVE and moves_M.max() < MOST_MOVE:
            break
    return points_M2


def _drawn(density_HW: Tensor, stride: int, number: int) -> Tensor:
    """Draw the centres of different px from a density that is enlarged to the image."""
    size = [side * stride for side in density_HW.shape]
    large_HW = F.interpolate(density_HW[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    weights = large_HW.flatten().double().cpu().numpy()
    most = min(number, int(np.count_nonzero(weights)))
    chosen = np.random.default_rng(0).choice(len(weights), most, replace=False, p=weights / weights.sum())
    rows_columns = np.stack(np.divmod(chosen, size[1]), axis=1)
    return torch.from_numpy(rows_columns[:, ::-1] + 0.5).to(density_HW)
