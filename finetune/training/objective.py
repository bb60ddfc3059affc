"""The interface of training losses: a network's output and annotated cells in, weighted terms out."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Targets(NamedTuple):
    """Annotated cells of one image: px with corner origin, and classes 0..C-1."""

    cells_M2: Tensor
    labels_M: Tensor


class Losses(NamedTuple):
    """The terms of the loss, each already weighted; `total` is their sum."""

    total: Tensor
    classification: Tensor
    regression: Tensor


class Objective(ABC):
    """The loss of a run.

    A step may be shared by ranks and passes. What a loss is divided by is known for the whole step beforehand
    (`normalisers`), so that neither changes the step.
    """

    reach: float = 0.0
    """Px beyond the crop within which cells are targets, too."""

    def begin_step(self) -> None:  # noqa: B027 (most do nothing)
        """Take note of a step before its first pass."""

    def normalisers(self, found: Any, targets: Sequence[Targets]) -> Tensor:
        """Divisors of the terms for a whole batch, given the output for a part of it; default: its images."""
        return torch.tensor([float(len(targets))])

    @abstractmethod
    def loss(self, found: Any, targets: Sequence[Targets], sums: Tensor) -> Losses:
        """Terms of the loss for a part of a batch.

        Args:
            found: Output of the network in training, a tuple of tensors.
            targets: Annotated cells of each image.
            sums: Normalisers of the batch, averaged over the ranks.
        """

    def state(self) -> dict[str, Any]:
        """Collect what the loss has learnt as tensors and plain values, for checkpoints."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:  # noqa: B027 (most have none)
        """Restore the state of a checkpoint."""
