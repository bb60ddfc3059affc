"""Cells and proposals: counted by brute force, refused in a sentence."""

from pathlib import Path

import numpy as np
import pytest

from finetune.datasets.dataset import AnnotatedData, Tile
from finetune.training.augment import AugmentConfig
from finetune.training.proposal_count import check_interval, densest_window
from shared.errors import UserError


def tile(points_N2: np.ndarray, width: int, height: int) -> Tile:
    return Tile(Path("tile.png"), "slide", (width, height), points_N2, np.zeros(len(points_N2), np.int64))


def brute_force(points_N2: np.ndarray, width: int, height: int, side: int) -> int:
    corners = [(x, y) for x in range(max(width - side, 0) + 1) for y in range(max(height - side, 0) + 1)]
    return max(int(((points_N2 >= c) & (points_N2 < np.add(c, side))).all(1).sum()) for c in corners)


@pytest.mark.parametrize("side", [1, 7, 23, 30, 40, 100])
def test_the_densest_window_is_that_of_brute_force(side: int) -> None:
    points_N2 = np.random.default_rng(side).beta(2, 5, (150, 2)) * (40, 30)
    assert densest_window(tile(points_N2, 40, 30), side) == brute_force(points_N2, 40, 30, side)


def test_a_crop_with_more_cells_than_proposals_is_refused() -> None:
    cluster_N2 = np.random.default_rng(0).uniform(100, 140, (20, 2))
    data = AnnotatedData(Path("data"), 0.25, ("cell",), {"train": [tile(cluster_N2, 512, 512)]})
    check_interval(data, 16, AugmentConfig(crop=128))  # 20 cells, 1024 proposals on the tile, 64 on the crop
    with pytest.raises(
        UserError, match=r"tile.png has 20 cells in 80x80 px of it, .* at 16 px; give --interval 8"
    ):
        check_interval(data, 16, AugmentConfig(crop=64))
    check_interval(data, 8, AugmentConfig(crop=64))


def test_a_tile_with_more_cells_than_proposals_is_refused_in_every_split() -> None:
    points_N2 = np.random.default_rng(0).uniform(0, 64, (40, 2))
    data = AnnotatedData(Path("data"), 0.25, ("cell",), {"test": [tile(points_N2, 64, 64)]})
    with pytest.raises(UserError, match=r"tile.png has 40 cells, more than proposals at 16 px; give --interval 8"):
        check_interval(data, 16, AugmentConfig())
