"""Decoders: from the output of a network for one image to candidates of cells and their scores."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shared.model.rivals.outputs import Maps, Queries, SquareMaps
from shared.model.rivals.peaks import blurred, components, maxima
from shared.model.rivals.transport import points_of_density

# Lengths in um: in px those of OCELOT's example (at 0.2 um/px) would merge the nuclei of coarser images.
DISC_BLUR_UM, DISC_DISTANCE_UM = 0.6, 0.6
SQUARE_LEVEL, SQUARE_AREA_UM2 = 0.5, 1.25  # MCSpatNet's public code: 5 px at 0.5 um/px
PEAK_LEVEL = 0.5  # ours; U-CSRNet's code is not public
# FIDT's public code takes this share of the image's own maximum; here of the target's, which is 1: the cells of a
# slide must not depend on what else is in their tile.
FIDT_LEVEL = 100 / 255
QUERY_LEVEL = 0.35  # CLTR's public code
LEAST_SCORE = 0.05  # of cells that a decoder does not score


class Candidates(NamedTuple):
    """Possible cells of one image."""

    points_N2: np.ndarray
    """px."""
    probabilities_NC: np.ndarray
    """Scores of the classes and, last, what a cell's class must reach (`shared.model.cells.classify`)."""


class Scale(NamedTuple):
    """Sizes of a map's cells."""

    stride: int
    """px."""
    mpp: float
    """um/px."""

    def points(self, cells_N2: np.ndarray) -> np.ndarray:
        """Centres of cells given as rows and columns, in px."""
        return (cells_N2[:, ::-1] + 0.5).astype(np.float32) * self.stride


Decoder = Callable[[tuple[Tensor, ...], Scale], Candidates]


def discs(found: tuple[Tensor, ...], scale: Scale) -> Candidates:
    """Maxima of the blurred probability of any class, where some class is as probable as background."""
    (logits_CHW,) = Maps(*found)
    # The logit of background is 0: softmax needs no other.
    probability_CHW = torch.cat([logits_CHW, torch.zeros_like(logits_CHW[:1])]).softmax(0)
    foreground_HW = blurred(1 - probability_CHW[-1], DISC_BLUR_UM / scale.mpp)
    window = 2 * max(1, round(DISC_DISTANCE_UM / scale.mpp)) + 1
    cells_N2 = maxima(foreground_HW, probability_CHW[:-1].amax(0) > 0, window)
    return Candidates(scale.points(cells_N2), _at(probability_CHW, cells_N2))


def peaks(found: tuple[Tensor, ...], scale: Scale, level: float) -> Candidates:
    """Maxima of each class's map, where that class is the highest."""
    (heights_CHW,) = Maps(*found)
    heights_CHW = heights_CHW.clamp(0, 1)
    highest_HW = heights_CHW.amax(0)
    among_CHW = (heights_CHW == highest_HW) & (highest_HW >= min(level, LEAST_SCORE))
    cells = [maxima(map_HW, among_HW) for map_HW, among_HW in zip(heights_CHW, among_CHW, strict=True)]
    cells_N2 = np.unique(np.concatenate(cells), axis=0)
    return Candidates(scale.points(cells_N2), _with_level(_at(heights_CHW, cells_N2), level))


def squares(found: tuple[Tensor, ...], scale: Scale) -> Candidates:
    """Centroids of the components of MCSpatNet's detection, with the class there."""
    detection_1HW, classes_CHW, *_ = SquareMaps(*found)
    mask_HW = (detection_1HW[0].sigmoid() > SQUARE_LEVEL).cpu().numpy()
    cells_N2 = components(mask_HW, max(1, round(SQUARE_AREA_UM2 / scale.mpp**2)))
    return Candidates(scale.points(cells_N2), _with_level(_at(classes_CHW.softmax(0), cells_N2), 0.0))


def counted(found: tuple[Tensor, ...], scale: Scale) -> Candidates:
    """As many of the highest maxima of each class's density as its sum, rounded (ours: GL does not localise)."""
    (density_CHW,) = Maps(*found)
    parts = []
    for label, density_HW in enumerate(density_CHW):
        cells_N2 = maxima(density_HW, density_HW > 0)
        height_N = density_HW.cpu().numpy()[tuple(cells_N2.T)]
        kept = np.sort(np.argsort(-height_N, kind="stable")[: round(float(density_HW.sum()))])
        parts.append(_of_class(scale.points(cells_N2[kept]), height_N[kept], label, len(density_CHW)))
    return Candidates(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def transported(found: tuple[Tensor, ...], scale: Scale) -> Candidates:
    """Points that each class's density stands for by OT-M; all are equally certain."""
    (density_CHW,) = Maps(*found)
    parts = []
    for label, density_HW in enumerate(density_CHW):
        points_N2 = points_of_density(density_HW, scale.stride).cpu().numpy()
        parts.append(_of_class(points_N2, np.ones(len(points_N2), np.float32), label, len(density_CHW)))
    return Candidates(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def queries(found: tuple[Tensor, ...], scale: Scale) -> Candidates:
    """Points of CLTR's last layer."""
    points_LQ2, logits_LQC, _ = Queries(*found)
    probability_QC = logits_LQC[-1].sigmoid().cpu().numpy()
    return Candidates(points_LQ2[-1].cpu().numpy(), _with_level(probability_QC, QUERY_LEVEL))


def _at(map_CHW: Tensor, cells_N2: np.ndarray) -> np.ndarray:
    """Values of a map at rows and columns, (N, C)."""
    rows_N, columns_N = torch.from_numpy(np.ascontiguousarray(cells_N2.T)).to(map_CHW.device)
    return map_CHW[:, rows_N, columns_N].T.cpu().numpy()


def _with_level(scores_NC: np.ndarray, level: float) -> np.ndarray:
    """Scores with a last column of what a cell's class must reach."""
    return np.pad(scores_NC, ((0, 0), (0, 1)), constant_values=level)


def _of_class(points_N2: np.ndarray, scores_N: np.ndarray, label: int, classes: int) -> Candidates:
    """Candidates that are cells of one class, whatever their scores."""
    scores_NC = np.zeros((len(points_N2), classes + 1), np.float32)
    scores_NC[:, label] = scores_N.clip(LEAST_SCORE, 1)
    return Candidates(points_N2, scores_NC)


DECODERS: dict[str, Decoder] = {
    "discs": discs,
    "peaks": partial(peaks, level=PEAK_LEVEL),
    "fidt": partial(peaks, level=FIDT_LEVEL),
    "squares": squares,
    "counted": counted,
    "otm": transported,
    "queries": queries,
}
