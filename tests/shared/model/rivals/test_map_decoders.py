"""Points in maps: plateaus, borders, components, and what perfect maps of real cells decode to."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune.datasets import DataOptions, load_data
from finetune.scoring.metrics import score_cells
from finetune.scoring.tile_scores import annotated_cells
from finetune.training.rivals.map_targets import disc_labels, distances, fidt, gaussians, square_owners
from shared.model.cells import Cells, candidates
from shared.model.rivals.map_decoders import DECODERS, Scale
from shared.model.rivals.peaks import components, maxima

PIXELS = Scale(1, 0.5)


def heights(points: list[tuple[float, float]], size: tuple[int, int] = (20, 30)) -> np.ndarray:
    """FIDT map of one class, (1, H, W)."""
    return fidt(distances(np.array(points), np.zeros(len(points), int), (1, *size), 1, 31.0))


def decoded(name: str, *maps: np.ndarray | Tensor, scale: Scale = PIXELS) -> Cells:
    points_N2, probabilities_NC = DECODERS[name](tuple(torch.as_tensor(each).float() for each in maps), scale)
    return candidates(points_N2, points_N2, probabilities_NC, None)


def test_points_at_the_border_survive() -> None:
    found = decoded("fidt", heights([(0.5, 0.5), (29.5, 19.5), (0.4, 12.6)]))
    assert found.points_N2.tolist() == [[0.5, 0.5], [0.5, 12.5], [29.5, 19.5]]


def test_a_plateau_is_one_point() -> None:
    map_HW = torch.zeros(12, 12)
    map_HW[2:5, 2:5] = map_HW[8, 3:7] = 1.0
    assert maxima(map_HW, map_HW > 0).tolist() == [[3, 3], [8, 5]]
    map_HW[6, 6] = 2.0  # neighbours it are no maxima
    assert maxima(map_HW, map_HW > 0).tolist() == [[3, 3], [6, 6], [8, 5]]
    assert maxima(torch.ones(3, 3), torch.zeros(3, 3, dtype=torch.bool)).shape == (0, 2)


def test_the_level_is_absolute() -> None:
    """Half as high a peak does not become a cell beside lower ones, nor vanish beside higher ones."""
    low, high = heights([(5.5, 5.5)]) * 0.35, heights([(20.5, 5.5)])
    assert len(decoded("fidt", low).points_N2) == 0
    assert decoded("fidt", np.maximum(low / 0.35 * 0.45, high)).points_N2.tolist() == [[5.5, 5.5], [20.5, 5.5]]


def test_where_several_classes_peak_the_highest_counts() -> None:
    one = heights([(5.5, 5.5)])[0]
    found = decoded("fidt", np.stack([0.8 * one, one, 0.9 * one]))
    assert found.labels_N.tolist() == [1] and found.scores_N.tolist() == [1.0]
    assert found.probabilities_NC[0] == pytest.approx([0.8, 1.0, 0.9, 100 / 255])


def test_small_components_are_no_cells() -> None:
    mask_HW = np.zeros((9, 9), bool)
    mask_HW[1:3, 1:3] = mask_HW[5:8, 5:8] = mask_HW[3, 3] = True  # the two upper ones touch at a corner
    assert components(mask_HW, 5).tolist() == [[2, 2], [6, 6]]
    assert components(mask_HW, 6).tolist() == [[6, 6]]
    assert components(np.zeros((3, 3), bool), 1).shape == (0, 2)


@pytest.mark.parametrize("name", ["discs", "fidt"])
def test_decoding_moves_with_the_map(name: str) -> None:
    random = np.random.default_rng(0)
    points_N2, _labels_N = random.uniform(12, 52, (25, 2)), np.arange(25) % 2
    away = [
        distances(points_N2 + np.array(by), np.arange(25) % 2, (2, 64, 72), 1, 31.0) for by in ((0, 0), (8, 4))
    ]
    if name == "discs":
        maps = [20.0 * (np.eye(3)[disc_labels(each, 2.8)].transpose(2, 0, 1)[:2] - 0.5) for each in away]
    else:
        maps = [fidt(each) for each in away]
    plain, moved = (decoded(name, each) for each in maps)
    assert len(plain.points_N2) > 15
    assert moved.points_N2.tolist() == (plain.points_N2 + np.array([8, 4])).tolist()
    assert moved.labels_N.tolist() == plain.labels_N.tolist()


def _discs(away: np.ndarray) -> np.ndarray:
    return 20.0 * (np.eye(len(away) + 1)[disc_labels(away, 2.8)].transpose(2, 0, 1)[:-1] - 0.5)


@pytest.mark.parametrize(
    ("name", "stride", "made", "least"),
    [
        ("fidt", 1, fidt, 0.995),
        ("peaks", 1, lambda away: gaussians(away, 3.0), 0.995),
        ("peaks", 4, lambda away: gaussians(away, 3.0), 0.9),
        ("discs", 1, _discs, 0.97),
    ],
)
def test_perfect_maps_decode_to_nearly_all_cells(
    name: str, stride: int, made: Callable, least: float, real_data: Path
) -> None:
    """Of real tiles, within 6 px; what is missing are cells closer to each other than the map can show."""
    data = load_data(DataOptions(data=real_data / "CoNSeP"))
    tiles = data.splits["train"][:2]
    found = []
    for tile in tiles:
        size = tuple(-(-side // stride) for side in tile.size[::-1])
        away = distances(tile.points_N2, tile.labels_N, (len(data.classes), *size), stride, 31.0)
        found.append(decoded(name, made(away), scale=Scale(stride, 0.5)))
    scores = score_cells(found, annotated_cells(tiles), data.classes, 6.0)
    assert scores.macro_f1 >= least


def test_squares_decode_to_cells() -> None:
    cells_M2 = np.array([[8.5, 8.5], [30.2, 10.7], [20.0, 25.0]])
    owners_HW = square_owners(cells_M2, (40, 40), 0.5)
    classes_CHW = np.zeros((2, 40, 40))
    classes_CHW[1, :, 15:] = 4.0
    found = decoded("squares", 20.0 * (owners_HW >= 0)[None] - 10, classes_CHW, *np.zeros((3, 1, 40, 40)))
    assert found.points_N2.tolist() == [[8.5, 8.5], [30.5, 10.5], [20.5, 25.5]]
    assert found.labels_N.tolist() == [0, 1, 1] and found.scores_N[1] == pytest.approx(1 / (1 + np.exp(-4)))


def test_as_many_maxima_as_the_density_counts() -> None:
    density_HW = torch.zeros(12, 12)
    density_HW[2, 3], density_HW[6, 8], density_HW[9, 2] = 0.9, 0.7, 0.3
    found = decoded("counted", torch.stack([density_HW, torch.zeros(12, 12)]), scale=Scale(8, 0.5))
    assert found.points_N2.tolist() == [[28.0, 20.0], [68.0, 52.0]]  # the sum is 1.9
    assert found.scores_N == pytest.approx([0.9, 0.7])
