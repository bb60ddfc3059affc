"""Maps that networks learn: hand-made numbers, and a literal rule."""

import warnings

import numpy as np
import pytest

from finetune.training.rivals.map_targets import (
    disc_labels,
    distances,
    fidt,
    gaussians,
    half_sides,
    square_owners,
)


def test_fidt_by_hand() -> None:
    heights_15 = fidt(np.array([[[0.0, 1, 2, 5, 10, 30, 30.2]]]))[0, 0]
    assert heights_15[:5] == pytest.approx([1, 0.5, 0.3664, 0.2029, 0.1009], abs=5e-5)
    assert heights_15[5] > 0.01 and heights_15[6] == 0


def test_fidt_of_cells_is_the_formula() -> None:
    random = np.random.default_rng(0)
    points_N2, labels_N = random.uniform(-3, 43, (12, 2)), random.integers(0, 2, 12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found_CHW = fidt(distances(points_N2, labels_N, (3, 40, 36), 1, 31.0))
    for label in range(3):
        for row in range(0, 40, 3):
            for column in range(0, 36, 3):
                away = [np.hypot(x - column - 0.5, y - row - 0.5) for x, y in points_N2[labels_N == label]]
                d = min(away, default=np.inf)
                expected = 0 if d >= 31 else 1 / (1 + d ** (0.02 * d + 0.75))
                expected = expected if expected >= 0.01 else 0
                assert found_CHW[label, row, column] == pytest.approx(expected, abs=1e-6)
    assert found_CHW[2].max() == 0  # a class without cells


def test_places_are_the_centres_of_the_cells_of_a_map() -> None:
    away_CHW = distances(np.array([[10.0, 2.0]]), np.array([0]), (1, 2, 4), 4, 100.0)
    assert away_CHW[0] == pytest.approx(np.array([[8, 4, 0, 4], [80**0.5, 32**0.5, 4, 32**0.5]]))


def test_the_nearest_cell_of_any_class_decides_about_a_disc() -> None:
    away = distances(np.array([[5.5, 5.5], [9.5, 5.5]]), np.array([1, 0]), (2, 11, 15), 1, 2.8)
    labels_HW = disc_labels(away, 2.8)
    assert labels_HW[5].tolist() == [2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0, 0, 2, 2, 2]
    assert (labels_HW != 2).sum() == 21 + 21 - 3  # within 2.8 px of either, less those of both
    assert (disc_labels(distances(np.empty((0, 2)), np.empty(0, int), (2, 3, 3), 1, 2.8), 2.8) == 2).all()


def test_the_largest_gaussian_counts() -> None:
    away = distances(np.array([[1.5, 0.5], [3.5, 0.5]]), np.zeros(2, int), (1, 1, 5), 1, 30.0)
    assert gaussians(away, 1.0)[0, 0] == pytest.approx(np.exp([-0.5, 0, -0.5, 0, -0.5]))


@pytest.mark.parametrize(("nearest", "side"), [(1, 1), (2, 3), (5.9, 3), (6, 5), (10, 7), (14, 9), (None, 9)])
def test_sides_of_squares(nearest: float | None, side: int) -> None:
    cells_M2 = np.array([[20.5, 20.5]] if nearest is None else [[20.5, 20.5], [20.5 + nearest, 20.5]])
    assert 2 * half_sides(cells_M2, 0.5)[0] + 1 == side
    assert half_sides(cells_M2 * 2, 0.25)[0] == half_sides(cells_M2, 0.5)[0]  # in um
    owners_HW = square_owners(cells_M2[:1], (41, 41), 0.5)
    assert (owners_HW == 0).sum() == 81 and owners_HW[16:25, 16:25].min() == 0


def test_squares_are_cut_at_the_border() -> None:
    owners_HW = square_owners(np.array([[0.5, 0.5], [-2.0, 30.5]]), (40, 40), 0.5)
    assert (owners_HW == 0).sum() == 25 and (owners_HW[26:35, :3] == 1).all() and (owners_HW == 1).sum() == 27
