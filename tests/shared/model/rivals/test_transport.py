"""Optimal transport against linear programming, and the points of a density."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from shared.model.rivals.transport import falling_blurs, plan, points_of_density, potentials


def test_balanced_transport_is_that_of_a_linear_program() -> None:
    random = np.random.default_rng(0)
    cost_NM = random.uniform(0, 1, (6, 4))
    a_N, b_M = random.uniform(0.5, 1, 6), random.uniform(0.5, 1, 4)
    a_N, b_M = a_N / a_N.sum(), b_M / b_M.sum()
    sums = np.zeros((10, 24))
    for row in range(6):
        sums[row, row * 4 : row * 4 + 4] = 1
    for column in range(4):
        sums[6 + column, column::4] = 1
    expected = linprog(cost_NM.ravel(), A_eq=sums, b_eq=np.concatenate([a_N, b_M])).fun
    cost, a, b = (torch.from_numpy(each) for each in (cost_NM, a_N, b_M))
    blurs = [*falling_blurs(1.0, 5e-3, 0.8), *[5e-3] * 3000]
    moved_NM = plan(cost, a, b, potentials(cost, a, b, blurs), 5e-3)
    assert float((moved_NM * cost).sum()) == pytest.approx(expected, abs=2e-3)
    torch.testing.assert_close(moved_NM.sum(0), b, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(moved_NM.sum(1), a, rtol=1e-3, atol=1e-4)


def test_blurs_fall_to_the_smallest() -> None:
    assert falling_blurs(8.0, 1.0, 0.5) == pytest.approx([8.0, 4.0, 2.0, 1.0])
    assert falling_blurs(0.5, 1.0, 0.5) == [1.0]


def gaussians(points_N2: torch.Tensor, side: int, stride: int, sigma: float) -> torch.Tensor:
    """Make a density with a mass of one at each point."""
    places = (torch.arange(side) + 0.5) * stride
    away = (places[None, :, None] - points_N2[:, None, None, 1]) ** 2 + (
        places[None, None, :] - points_N2[:, None, None, 0]
    ) ** 2
    each = torch.exp(-0.5 * away / sigma**2)
    return (each / each.sum((1, 2), keepdim=True)).sum(0)


def test_well_parted_masses_are_points_at_their_centres() -> None:
    points_N2 = torch.tensor([[60.0, 50], [240, 70], [150, 160], [70, 250], [250, 240], [160, 30]])
    density_HW = gaussians(points_N2, 40, 8, 9.0)
    found_N2 = points_of_density(density_HW, 8)
    away_NM = torch.cdist(found_N2, points_N2)
    assert len(found_N2) == 6 and float(away_NM.min(1).values.max()) < 0.5
    assert away_NM.argmin(1).unique().numel() == 6
    assert torch.equal(points_of_density(density_HW, 8), found_N2)
    assert points_of_density(density_HW * 0.05, 8).shape == (0, 2)
