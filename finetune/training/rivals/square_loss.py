"""MCSpatNet's loss: squares, their classes and sub-classes, and the neighbours of cells."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.training.objective import Losses, Objective, Targets
from finetune.training.rivals.map_losses import dice
from finetune.training.rivals.map_targets import MOST_HALF_SIDE, SQUARE_MPP, square_owners
from finetune.training.rivals.neighbours import RADII_UM, SCALE, CellClusters, neighbour_counts
from shared.model.cells import NetworkConfig
from shared.model.rivals.mcspatnet import SUBCLASSES
from shared.model.rivals.outputs import SquareMaps
from shared.model.rivals.rival_detector import RivalConfig


@dataclass(frozen=True, kw_only=True)
class SquaresConfig:
    """Find squares around cells, their classes, sub-classes and numbers of neighbours (MCSpatNet)."""

    def objective(self, network: NetworkConfig, steps_an_epoch: int) -> Objective:
        """Loss for MCSpatNet."""
        assert isinstance(network, RivalConfig)
        return SquaresObjective(network.classes, network.mpp, steps_an_epoch)


class SquaresObjective(Objective):
    """Four terms of equal weight (public code), the mean over the images.

    Classes have no background, and outside of the squares they can only be wrong: as in the public code.
    """

    def __init__(self, classes: int, mpp: float, steps_an_epoch: int) -> None:
        """Keep what targets need; see `CellClusters` for epochs."""
        self.classes, self.mpp = classes, mpp
        self.reach = (MOST_HALF_SIDE + 1) * SQUARE_MPP / mpp
        self.radii = np.array(RADII_UM) / mpp
        self.clusters = CellClusters(classes, SUBCLASSES, steps_an_epoch)

    def begin_step(self) -> None:
        """See `Objective`."""
        self.clusters.begin_step()

    def loss(self, found: SquareMaps, targets: Sequence[Targets], sums: Tensor) -> Losses:
        """See `Objective`."""
        terms = [self._image(SquareMaps(*maps), target) for *maps, target in zip(*found, targets, strict=True)]
        classification, regression = (torch.stack(each).sum() / sums[0] for each in zip(*terms, strict=True))
        return Losses(classification + regression, classification.detach(), regression.detach())

    def state(self) -> dict[str, Any]:
        """See `Objective`."""
        return self.clusters.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `Objective`."""
        self.clusters.restore(state)

    def _image(self, found: SquareMaps, target: Targets) -> tuple[Tensor, Tensor]:
        """Terms of one image: of squares and classes, and of neighbours; maps are without their first axis."""
        detection_1HW, classes_CHW, subclasses_SHW, neighbours_KHW, features_FHW = found
        height, width = detection_1HW.shape[-2:]
        cells_M2, labels_M = target.cells_M2.cpu().numpy().astype(float), target.labels_M.cpu().numpy()
        owners_HW = square_owners(cells_M2, (height, width), self.mpp)
        on_square, owner_P = owners_HW >= 0, owners_HW[owners_HW >= 0]
        device, place = detection_1HW.device, torch.from_numpy(np.flatnonzero(on_square))

        def wanted(labels_P: np.ndarray, channels: int) -> Tensor:
            """One map a label, 1 on the squares of cells that have it."""
            map_CN = torch.zeros(channels, height * width)
            map_CN[torch.from_numpy(labels_P), place] = 1
            return map_CN.view(channels, height, width).to(device)

        classification = dice(detection_1HW.sigmoid(), wanted(np.zeros_like(owner_P), 1))
        classification = classification + dice(classes_CHW.softmax(0), wanted(labels_M[owner_P], self.classes))
        inside_M: np.ndarray = np.all((cells_M2 >= 0) & (cells_M2 < (width, height)), axis=1)
        if not inside_M.any():  # neighbours would have nothing to be averaged over
            return classification, neighbours_KHW.sum() * 0 + subclasses_SHW.sum() * 0
        clusters_M = self._clusters(features_FHW.detach(), cells_M2, labels_M, inside_M)
        if clusters_M is not None:
            subclasses = wanted(clusters_M[owner_P], len(subclasses_SHW))
            classification = classification + dice(subclasses_SHW.softmax(0), subclasses)
        counts_MCR = np.zeros((len(cells_M2), self.classes, len(self.radii)))
        inside = (cells_M2[inside_M], labels_M[inside_M])
        counts_MCR[inside_M] = neighbour_counts(*inside, self.classes, (height, width), self.radii) / SCALE
        counted_P = torch.from_numpy(inside_M[owner_P])
        counts_KP = torch.from_numpy(counts_MCR.reshape(len(cells_M2), -1)[owner_P].T).to(neighbours_KHW)
        found_KP = neighbours_KHW.flatten(1)[:, place.to(device)].square()
        return classification, F.l1_loss(found_KP[:, counted_P], counts_KP[:, counted_P])

    def _clusters(
        self, features_FHW: Tensor, cells_M2: np.ndarray, labels_M: np.ndarray, inside_M: np.ndarray
    ) -> np.ndarray | None:
        """Cluster of each cell by the features at it, of one outside at the border; None before there are any."""
        height, width = features_FHW.shape[1:]
        columns_M, rows_M = (torch.from_numpy(each) for each in np.floor(cells_M2).astype(int).T)
        at_MF = features_FHW[:, rows_M.clamp(0, height - 1), columns_M.clamp(0, width - 1)].T
        features_MF = at_MF.float().cpu().numpy()
        self.clusters.add(features_MF[inside_M], labels_M[inside_M])
        return self.clusters.assign(features_MF, labels_M)
