"""Predict annotated tiles and score the cells."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from finetune.datasets.dataset import AnnotatedData, Tile
from finetune.scoring.challenge import official_score
from finetune.scoring.metrics import Scores, score_cells
from shared.model.cells import Cells, CellSet, select_cells
from shared.model.dpa_p2pnet import DPAP2PNet
from shared.model.image_tensors import to_image
from shared.training.precision import autocast


@torch.inference_mode()
def predict_tiles(detector: DPAP2PNet, tiles: Sequence[Tile], device: torch.device) -> list[CellSet]:
    """Cells the detector finds in every tile, one image at a time; leaves the detector in eval mode."""
    detector.eval()
    return [predict_image(detector, tile.read_views(detector.config.views), device) for tile in tiles]


def predict_image(detector: DPAP2PNet, views_KHWC: np.ndarray, device: torch.device) -> CellSet:
    """Cells in one uint8 RGB image, which comes last after the wider views that the detector takes."""
    height, width = views_KHWC.shape[1:3]
    with autocast(device):
        found = detector(to_batch(views_KHWC, device))
    return to_cell_set(select_cells(found, height, width)[0])


def to_batch(views_KHWC: np.ndarray, device: torch.device) -> torch.Tensor:
    """A batch of one image with its wider views, float in 0..1."""
    return to_image(views_KHWC).to(device)[None].float() / 255


def to_cell_set(cells: Cells) -> CellSet:
    """Cells as arrays."""
    return CellSet(*(tensor.cpu().numpy() for tensor in (cells.points_N2, cells.labels_N, cells.scores_N)))


def score_tiles(tiles: Sequence[Tile], found: Sequence[CellSet], data: AnnotatedData) -> Scores:
    """Scores of predictions against the tiles' annotations within the data's radius; the official one too."""
    annotated = [CellSet(tile.points_N2, tile.labels_N, np.ones(len(tile.labels_N))) for tile in tiles]
    scores = score_cells(found, annotated, data.classes, data.radius_um / data.mpp)
    official = official_score(data.official, found, annotated) if data.official else None
    return dataclasses.replace(scores, official=official)
