"""Cells of one image, the rule by which proposals become cells, and the interface of networks that find them."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from shared.weights.weights_file import IMAGENET_MEAN, IMAGENET_STD

COARSEST_STRIDE = 64  # px of every network's input per cell of its coarsest map; windows begin at multiples of it

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Cells:
    """Predicted cells of one image, or annotated ones, whose scores have no meaning."""

    points_N2: np.ndarray
    """(x, y) in px of the image."""
    labels_N: np.ndarray
    """Class, 0..C-1."""
    scores_N: np.ndarray
    """Probability of the class."""

    def of_class(self, label: int | None) -> Self:
        """Cells of one class, or all of them for None."""
        return self if label is None else self.chosen(np.flatnonzero(self.labels_N == label))

    def chosen(self, chosen_N: np.ndarray) -> Self:
        """Cells at these indices, or where a mask is true."""
        return type(self)(*(getattr(self, field.name)[chosen_N] for field in dataclasses.fields(self)))

    def inside(self, height: int, width: int) -> Self:
        """Cells whose points are inside an image of this size."""
        inside_N2: np.ndarray = (self.points_N2 >= 0) & (self.points_N2 < (width, height))
        return self.chosen(np.flatnonzero(inside_N2.all(axis=1)))


@dataclass(frozen=True)
class DetectedCells(Cells):
    """Cells that a network found in an image; their points may lie just outside of it."""

    proposals_N2: np.ndarray
    """(x, y) where the network was asked for a cell; of a map the point itself."""
    probabilities_NC: np.ndarray
    """Scores of the classes and, last, the one of background, which a cell's class exceeds by the paper's rule."""


class Classified(NamedTuple):
    """Class and probability of every proposal, and whether it counts as a cell."""

    labels_N: np.ndarray
    scores_N: np.ndarray
    are_cells_N: np.ndarray


def classify(probabilities_NC: np.ndarray, threshold: float | None = None) -> Classified:
    """Decide which proposals are cells.

    No neighbours are suppressed: one-to-one matching in training makes that unnecessary.

    Args:
        probabilities_NC: Of the classes and, last, of background.
        threshold: A proposal is a cell if its most probable class has at least this probability. None: if that
            class is more probable than background (the paper's rule).
    """
    labels_N = probabilities_NC[..., :-1].argmax(-1)
    scores_N = probabilities_NC[..., :-1].max(-1)
    are_cells_N = scores_N >= probabilities_NC[..., -1] if threshold is None else scores_N >= threshold
    return Classified(labels_N, scores_N, are_cells_N)


def detected_cells(
    points_BN2: Tensor, proposals_N2: Tensor, probabilities_BNC: Tensor, threshold: float | None
) -> list[DetectedCells]:
    """Cells of every image by the rule of `classify`; the host waits for the device once."""
    proposals_BN2 = proposals_N2.expand_as(points_BN2)
    images_BNK = torch.cat([points_BN2, proposals_BN2, probabilities_BNC], -1).float().cpu().numpy()
    return [candidates(each[:, :2], each[:, 2:4], each[:, 4:], threshold) for each in images_BNK]


def candidates(
    points_N2: np.ndarray, proposals_N2: np.ndarray, probabilities_NC: np.ndarray, threshold: float | None
) -> DetectedCells:
    """Cells of one image by the rule of `classify`."""
    labels_N, scores_N, are_cells_N = classify(probabilities_NC, threshold)
    found = DetectedCells(points_N2, labels_N, scores_N, proposals_N2, probabilities_NC)
    return found.chosen(are_cells_N)


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Settings that the users of any network read."""

    classes: int = 1
    """Cell classes, background not counted."""
    views: int = 1
    """Concentric fields of view (the paper's K): the last image is annotated, the others show more around it."""
    mean: Colour = IMAGENET_MEAN
    """Channel means (RGB in 0..1) that the trunk was pre-trained with."""
    std: Colour = IMAGENET_STD
    """Channel standard deviations that the trunk was pre-trained with."""

    @property
    def trunk(self) -> str | None:
        """timm name of the only trunk that there can be; empty: there is none; None: there is a choice."""
        return None

    def with_trunk(self, arch: str, mean: Colour = IMAGENET_MEAN, std: Colour = IMAGENET_STD) -> Self:
        """Config for a trunk that was pre-trained with these means and deviations."""
        return dataclasses.replace(self, mean=mean, std=std)

    @property
    def step(self) -> int:
        """Px between places of an image at which a window may begin with the results of the whole."""
        return COARSEST_STRIDE

    @property
    def sees_whole_image(self) -> bool:
        """Check whether every output depends on the whole input, whose size must then be that of training."""
        return self.views > 1

    def tile(self, crop: int) -> int | None:
        """Side in px of the input that the network needs; None if its results do not depend on it.

        A ViT sees its whole input, and its position embeddings are resampled to it; how far a wider view reaches
        depends on the image it is a view of. Both are given what they were trained on, in whole cells of each
        level.

        Args:
            crop: Side in px of the crops it was trained on.
        """
        return math.ceil(crop / self.step) * self.step if self.sees_whole_image else None


class CellDetector(nn.Module, ABC):
    """A network that finds cells in images."""

    config: NetworkConfig

    @abstractmethod
    def detect(self, image_BCHW: Tensor, threshold: float | None = None) -> Sequence[DetectedCells]:
        """Find the cells of every image, also just outside of it.

        Args:
            image_BCHW: RGB, uint8 or float in 0..1, of any size; B x K x 3 x H x W with K > 1 views, widest first.
            threshold: Least probability of a cell's class; None: the network's own rule (`classify`).
        """

    @abstractmethod
    def trunks(self) -> list[nn.Module]:
        """Parts that pre-trained weights go into, that of the annotated image first; empty if there are none."""
