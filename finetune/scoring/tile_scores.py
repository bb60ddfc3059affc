"""Scores of cells that were predicted for annotated tiles."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from finetune.datasets.dataset import AnnotatedData, Tile
from finetune.scoring.challenge import official_score
from finetune.scoring.metrics import Scores, score_cells
from finetune.scoring.operating_point import Curve, curves
from shared.model.cells import Cells


def score_tiles(tiles: Sequence[Tile], found: Sequence[Cells], data: AnnotatedData) -> Scores:
    """Scores against the tiles' annotations within the data's radius, and the challenge's own score if any."""
    scores = score_cells(found, annotated_cells(tiles), data.classes, data.radius_um / data.mpp)
    official = official_score(data.official, found, annotated_cells(tiles)) if data.official else None
    return dataclasses.replace(scores, official=official)


def tile_curves(tiles: Sequence[Tile], found: Sequence[Cells], data: AnnotatedData) -> list[Curve]:
    """Precision-recall curves of all classes and of detection; `found` has scores down to the floor."""
    return curves(found, annotated_cells(tiles), data.classes, data.radius_um / data.mpp)


def annotated_cells(tiles: Sequence[Tile]) -> list[Cells]:
    """Annotations as cells."""
    return [Cells(tile.points_N2, tile.labels_N, np.ones(len(tile.labels_N))) for tile in tiles]
