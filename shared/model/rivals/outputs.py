"""Outputs of the networks: tensors at their strides, for losses and decoders."""

from typing import NamedTuple

from torch import Tensor


class Maps(NamedTuple):
    """One map of each class: logits, heights of peaks or densities."""

    maps_BCHW: Tensor


class SquareMaps(NamedTuple):
    """Output of MCSpatNet."""

    detection_B1HW: Tensor
    """Logits of a cell's square."""
    classes_BCHW: Tensor
    """Logits, with a meaning on squares only."""
    subclasses_BSHW: Tensor
    """Logits of the sub-classes, class by class."""
    neighbours_BKHW: Tensor
    """Roots of the numbers of neighbours in hundreds, class by class and from the least radius to the largest."""
    features_BFHW: Tensor
    """Features of the last two heads."""


class Queries(NamedTuple):
    """Output of CLTR's decoder layers, the last one last; Q queries each."""

    points_LBQ2: Tensor
    """px of the image."""
    logits_LBQC: Tensor
    """Logits of the classes, each for itself."""
    size_LB2: Tensor
    """Width and height of the images, px."""
