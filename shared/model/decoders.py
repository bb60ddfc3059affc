"""From the feature pyramid to points and logits: DPA-P2PNet's decoder, and P2PNet's.

A decoder takes P2.. (float32) and the grid of proposals, and gives `Detections`.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.model.cells import DetectedCells, detected_cells
from shared.model.proposals import Level, sample

PYRAMID_STRIDES = (4, 8, 16, 32, 64)  # P2..P6: the paper gives no L; its parameter counts need five levels
GRID_STRIDE = 16  # of P4, the map that P2PNet decodes


class Detections(NamedTuple):
    """Output of the network for a batch of images, N proposals each; all float32."""

    proposals_N2: Tensor
    """The pre-set grid, row by row."""
    deformed_BN2: Tensor
    """Points at which the proposals were decoded (the grid, if nothing deforms them)."""
    points_BN2: Tensor
    """Predicted positions of cells."""
    logits_BNC: Tensor
    """Class logits, background last."""

    def translated(self, by_2: Tensor) -> "Detections":
        """Translate all coordinates by (x, y) px."""
        return Detections(
            self.proposals_N2 + by_2, self.deformed_BN2 + by_2, self.points_BN2 + by_2, self.logits_BNC
        )

    def scaled(self, by: float) -> "Detections":
        """Multiply all coordinates."""
        return Detections(self.proposals_N2 * by, self.deformed_BN2 * by, self.points_BN2 * by, self.logits_BNC)

    def cells(self, threshold: float | None = None) -> list[DetectedCells]:
        """Cells of every image (`shared.model.cells.classify`)."""
        return detected_cells(self.points_BN2, self.proposals_N2, self.logits_BNC.softmax(-1), threshold)


class PointDecoder(nn.Module):
    """DPA-P2PNet's decoder: every proposal samples the pyramid at its own coordinates.

    Nothing is detached. The deformation learns from the localisation loss through the addition, and from
    both losses through the places it makes the decoder sample.

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

    def forward(self, pyramid: Sequence[Level], grid_RS2: Tensor) -> Detections:
        """P2..P6 and R x S proposals -> detections."""
        proposals_N2 = grid_RS2.flatten(0, 1)
        deformed_BN2 = proposals_BN2 = _for_each_image(proposals_N2, pyramid)
        if self.deform is not None:
            finest_BNC = sample(pyramid[0], proposals_BN2, PYRAMID_STRIDES[0])
            deformed_BN2 = proposals_BN2 + self.deform(finest_BNC)
        return Detections(proposals_N2, deformed_BN2, *self.decode(pyramid, deformed_BN2))

    def decode(self, pyramid: Sequence[Level], points_BN2: Tensor) -> tuple[Tensor, Tensor]:
        """Points moved to where a cell is predicted, and logits, from the features of all levels (Eq. 1)."""
        features_BNF = torch.cat(
            [sample(level, points_BN2, stride) for level, stride in zip(pyramid, PYRAMID_STRIDES, strict=True)],
            dim=-1,
        )
        return points_BN2 + self.locate(features_BNF), self.classify(features_BNF)


class RefiningDecoder(nn.Module):
    """Iterative refinement, the ablation that deformable proposals are compared with.

    Every stage starts where the one before it ended, and all sets of points go to label assignment: the
    number of proposals grows, that of positives does not. Stages do not pass gradients to each other through
    the points (Deformable DETR, Zhu et al. 2020); the paper gives no details.

    Args:
        classes: Cell classes, background not counted.
        refinements: Stages after the first.
        channels: Channels of the pyramid's levels.
        hidden: Hidden width of the MLPs.
        dropout: Dropout rate of the MLPs.
    """

    def __init__(self, classes: int, refinements: int, channels: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            PointDecoder(classes, False, channels, hidden, dropout) for _ in range(refinements + 1)
        )

    def forward(self, pyramid: Sequence[Level], grid_RS2: Tensor) -> Detections:
        """P2..P6 and R x S proposals -> detections of all stages, one after another."""
        proposals_N2 = grid_RS2.flatten(0, 1)
        starts, ends, logits = [_for_each_image(proposals_N2, pyramid)], [], []
        for stage in self.stages:
            points_BN2, logits_BNC = cast(PointDecoder, stage).decode(pyramid, starts[-1])
            ends.append(points_BN2)
            logits.append(logits_BNC)
            starts.append(points_BN2.detach())
        repeated_N2 = proposals_N2.repeat(len(self.stages), 1)
        return Detections(repeated_N2, torch.cat(starts[:-1], 1), torch.cat(ends, 1), torch.cat(logits, 1))


class GridDecoder(nn.Module):
    """P2PNet's decoder: convolutions over P4, each cell of which predicts the m x m proposals inside it.

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
        offsets_BN2 = self._unshuffle(self.locate(level_BCHW), grid_RS2)
        logits_BNC = self._unshuffle(self.classify(level_BCHW), grid_RS2)
        return Detections(proposals_N2, proposals_BN2, proposals_BN2 + offsets_BN2, logits_BNC)

    def _unshuffle(self, map_BCHW: Tensor, grid_RS2: Tensor) -> Tensor:
        """Rearrange the C = c m m channels of each cell to c channels of its proposals: B x (R S) x c.

        Proposal (r, s) lies in cell (r // m, s // m) for every size of image; what the padding adds on the
        right and at the bottom is cut off.
        """
        rows, columns = grid_RS2.shape[:2]
        spread_BcRS = F.pixel_shuffle(map_BCHW, self.per_side)[:, :, :rows, :columns]
        return spread_BcRS.flatten(2).transpose(1, 2)


def _for_each_image(points_N2: Tensor, pyramid: Sequence[Level]) -> Tensor:
    """Repeat points for every image of the batch."""
    finest = pyramid[0]
    batch = len(finest if isinstance(finest, Tensor) else finest.map_BCHW)
    return points_N2.expand(batch, -1, -1)


def _mlp(inputs: int, hidden: int, outputs: int, dropout: float) -> nn.Sequential:
    """Build the paper's FC - ReLU - dropout - FC."""
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
