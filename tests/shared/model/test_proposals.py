import math

import numpy as np
import pytest
import torch

from shared.model.proposals import proposal_grid, sample


@pytest.mark.parametrize(
    ("side", "interval", "first", "last", "count"),
    [
        (512, 16, 8.0, 504.0, 32),
        (500, 8, 2.0, 498.0, 63),
        (500, 16, 2.0, 498.0, 32),
        (333, 16, 6.5, 326.5, 21),
        (5, 8, 2.5, 2.5, 1),
    ],
)
def test_grid_is_centred_for_every_size(side, interval, first, last, count):
    positions = proposal_grid(1, side, interval)[0, :, 0]
    assert (positions[0], positions[-1], len(positions)) == (first, last, count)
    assert torch.all(positions.diff() == interval)
    assert first == pytest.approx(side - last)  # as far from one border as from the other


def test_grid_runs_row_by_row_in_x_y():
    grid_RS2 = proposal_grid(height=40, width=64, interval=16)
    assert grid_RS2.shape == (3, 4, 2)
    assert grid_RS2[0].tolist() == [[8, 4], [24, 4], [40, 4], [56, 4]]
    assert grid_RS2[:, 0].tolist() == [[8, 4], [8, 20], [8, 36]]


def brute_force(map_CHW: np.ndarray, x: float, y: float, stride: int) -> np.ndarray:
    """Eq. 1 word for word: sum over all cells q of G(p, q) P(q), G = max(0, 1 - |dx|) max(0, 1 - |dy|)."""
    total = np.zeros(len(map_CHW))
    for row in range(map_CHW.shape[1]):
        for column in range(map_CHW.shape[2]):
            dx = abs(x / stride - (column + 0.5))
            dy = abs(y / stride - (row + 0.5))
            total += max(0.0, 1 - dx) * max(0.0, 1 - dy) * map_CHW[:, row, column]
    return total


@pytest.mark.parametrize("stride", [4, 64])
def test_sampling_is_equation_1(stride):
    generator = torch.Generator().manual_seed(0)
    map_BCHW = torch.randn(2, 3, 5, 7, generator=generator)
    size = torch.tensor([7.0 * stride, 5.0 * stride])
    points_BN2 = (torch.rand(2, 40, 2, generator=generator) * 1.4 - 0.2) * size  # some lie outside
    found = sample(map_BCHW, points_BN2, stride).numpy()
    for image in range(2):
        for index, (x, y) in enumerate(points_BN2[image].tolist()):
            expected = brute_force(map_BCHW[image].double().numpy(), x, y, stride)
            np.testing.assert_allclose(found[image, index], expected, atol=2e-5)


def test_a_map_of_coordinates_gives_the_coordinates_back_at_any_width():
    """The drift that `align_corners=True` would bring: up to half a cell, depending on the width."""
    for width in (8, 13, 256):
        x_W = (torch.arange(width) + 0.5) * 16
        points_N2 = torch.rand(50, 2, generator=torch.Generator().manual_seed(1)) * (width - 1) * 16 + 8
        points_N2[:, 1] = 24.0
        found = sample(x_W.expand(1, 1, 3, width), points_N2[None], 16)[0, :, 0]
        torch.testing.assert_close(found, points_N2[:, 0], atol=2e-3, rtol=0)


def test_gradients_reach_the_map_and_the_points():
    map_BCHW = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    # Within cells, as interpolation has kinks at their centres.
    points = torch.tensor([[[7.3, 9.1], [4.9, 11.2]]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m, p: sample(m, p, 4), (map_BCHW, points))
    slope = torch.autograd.grad(sample(map_BCHW, points, 4).sum(), points)[0]
    assert math.isfinite(slope.abs().sum()) and slope.abs().sum() > 0
