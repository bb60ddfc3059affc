"""Check that every cell can get its own proposal: one-to-one matching would silently drop the others."""

import math

import numpy as np

from finetune.datasets.dataset import AnnotatedData, Tile
from finetune.training.augment import AugmentConfig
from shared.errors import UserError


def check_interval(data: AnnotatedData, interval: int, augment: AugmentConfig) -> None:
    """Compare proposals and cells of every tile, and of the fullest crop that training can cut from it.

    Raises:
        UserError: names a tile with more cells than proposals, and an interval that suffices.
    """
    for split, tiles in data.splits.items():
        for tile in tiles:
            _check_place(tile, len(tile.labels_N), tile.size, interval, "")
            if split == "train":
                side = round(augment.crop / augment.scale[0])
                most = densest_window(tile, side)
                _check_place(tile, most, (augment.crop, augment.crop), interval, f" in {side}x{side} px of it")


def check_queries(data: AnnotatedData, queries: int, augment: AugmentConfig) -> None:
    """Compare the number of queries with the cells of the fullest crop that training can cut.

    Raises:
        UserError: names a tile with more cells than queries.
    """
    side = round(augment.crop / augment.scale[0])
    for tile in data.splits.get("train", []):
        if (most := densest_window(tile, side)) > queries:
            raise UserError(
                f"{tile.image} has {most} cells in {side}x{side} px of it, more than {queries} queries; "
                f"give --queries {most} or a lower --augment.crop"
            )


def densest_window(tile: Tile, side: int) -> int:
    """Most cells of a tile in any square of `side` px whose corners are whole px."""
    width, height = tile.size
    if side >= max(width, height):
        return len(tile.labels_N)
    x_N, y_N = np.minimum(tile.points_N2.astype(int).T, np.array([[width - 1], [height - 1]]))
    cells_HW = np.zeros((height + 1, width + 1), np.int64)
    np.add.at(cells_HW, (y_N + 1, x_N + 1), 1)
    summed_HW = cells_HW.cumsum(0).cumsum(1)
    down, right = min(side, height), min(side, width)
    inside = summed_HW[down:, right:] - summed_HW[:-down, right:] - summed_HW[down:, :-right]
    return int((inside + summed_HW[:-down, :-right]).max())


def _check_place(tile: Tile, cells: int, size: tuple[int, int], interval: int, where: str) -> None:
    if cells <= _proposals(size, interval):
        return
    smaller = next((px for px in (16, 8, 4, 2, 1) if px < interval and cells <= _proposals(size, px)), None)
    remedy = "raise --augment.crop" if smaller is None else f"give --interval {smaller}"
    raise UserError(f"{tile.image} has {cells} cells{where}, more than proposals at {interval} px; {remedy}")


def _proposals(size: tuple[int, int], interval: int) -> int:
    return math.ceil(size[0] / interval) * math.ceil(size[1] / interval)
