"""From the feature pyramid to points and logits: DPA-P2PNet's decoder, and P2PNet's.

A decoder takes P2.. (float32) and the grid of proposals, and gives `Detections`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.proposals import sample

PYRAMID_STRIDES = (4, 8, 16, 32, 64)  # P2..P6: the paper gives no L; its parameter counts need five levels
GRID_STRIDE = 16  # of P4, the map that P2PNet decodes


class Detections(NamedTuple):
    """What the network says about a batch of images, N proposals each; all float32."""

    proposals_N2: Tensor
    """The pre-set grid, row by row."""
    deformed_BN2: Tensor
    """Where the proposals were decoded (the grid again, if nothing deforms them)."""
    points_BN2: Tensor
    """Predicted positions of cells."""
    logits_BNC: Tensor
    """Class logits, background last."""


class PointDecoder(nn.Module):
    """DPA-P2PNet's decoder: every proposal looks up the pyramid at its own coordinates.

    Nothing is detached. The deformation learns from the localisation loss through the addition, and from
    both losses through the places it makes the decoder look at.

    Args:
        classes: Cell classes, background not counted.
        deformable: Whether to move the proposals before decoding (DPP).
        channels: Channels of the pyramid's levels.
        hidden: Hidden width of the MLPs.
        dropout: Dropout rate of the MLPs.
    """

    def __init__(self, classes: int, deformable: bool, channels: int, hidden: int, dropout: float) -> None:
        super().__init__()
        features = len(PYRAMID_STRIDES) * channels
        self.deform = _mlp(channels, hidden, 2, dropout) if deformable else None
        self.locate = _mlp(features, hidden, 2, dropout)
        self.classify = _mlp(features, hidden, classes + 1, dropout)
        if self.deform is not None:  # training starts from the plain grid
            for parameter in self.deform[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self, pyramid: Sequence[Tensor], grid_RS2: Tensor) -> Detections:
        """P2..P6 and R x S proposals -> detections."""
        proposals_N2 = grid_RS2.flatten(0, 1)
        deformed_BN2 = proposals_BN2 = proposals_N2.expand(len(pyramid[0]), -1, -1)
        if self.deform is not None:
            finest_BNC = sample(pyramid[0], proposals_BN2, PYRAMID_STRIDES[0])
            deformed_BN2 = proposals_BN2 + self.deform(finest_BNC)
        features_BNF = torch.cat(  # Eq. 1 on every level
            [sample(level, deformed_BN2, stride) for level, stride in zip(pyramid, PYRAMID_STRIDES, strict=True)],
            dim=-1,
        )
        points_BN2 = deformed_BN2 + self.locate(features_BNF)
        return Detections(proposals_N2, deformed_BN2, points_BN2, self.classify(features_BNF))


class GridDecoder(nn.Module):
    """P2PNet's decoder: convolutions over P4, whose every cell speaks for the m x m proposals inside it.

    Offsets are in px, as DPA-P2PNet's are, so that the two differ in nothing else; P2PNet's own code
    multiplies them by 100.

    Args:
        classes: Cell classes, background not counted.
        interval: Pixels between proposals; divides 16.
        channels: Channels of P4 and of the heads.
    """

    def __init__(self, classes: int, interval: int, channels: int) -> None:
        super().__init__()
        self.per_side = GRID_STRIDE // interval  # the paper's m and n
        self.locate = _convolutions(channels, 2 * self.per_side**2)
        self.classify = _convolutions(channels, (classes + 1) * self.per_side**2)

    def forward(self, pyramid: Sequence[Tensor], grid_RS2: Tensor) -> Detections:
        """[P4] and R x S proposals -> detections."""
        (level_BCHW,) = pyramid
        proposals_N2 = grid_RS2.flatten(0, 1)
        proposals_BN2 = proposals_N2.expand(len(level_BCHW), -1, -1)
        offsets_BN2 = self._deal(self.locate(level_BCHW), grid_RS2)
        logits_BNC = self._deal(self.classify(level_BCHW), grid_RS2)
        return Detections(proposals_N2, proposals_BN2, proposals_BN2 + offsets_BN2, logits_BNC)

    def _deal(self, map_BCHW: Tensor, grid_RS2: Tensor) -> Tensor:
        """Deal the C = c m m channels of each cell out to its proposals: B x (R S) x c.

        Proposal (r, s) lies in cell (r // m, s // m) for every size of image; what the padding adds on the
        right and at the bottom is cut off.
        """
        rows, columns = grid_RS2.shape[:2]
        dealt_BcRS = F.pixel_shuffle(map_BCHW, self.per_side)[:, :, :rows, :columns]
        return dealt_BcRS.flatten(2).transpose(1, 2)


def _mlp(inputs: int, hidden: int, outputs: int, dropout: float) -> nn.Sequential:
    """The paper's FC - ReLU - dropout - FC."""
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(hidden, outputs),
    )


def _convolutions(channels: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions with ReLU and a third for the output, as in P2PNet."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, outputs, 3, padding=1),
    )
