"""Neighbourhoods of cells: MCSpatNet's K-function, and clusters of a network's features of cells."""

from typing import Any

import numpy as np
import torch
from scipy.cluster.vq import kmeans2, vq
from scipy.spatial import KDTree

from shared.training.distributed import from_first_rank

RADII_UM = tuple(7.5 * step for step in range(7))  # public code: 0, 15, ..., 90 px at 0.5 um/px
ANGLES = 64  # of a circle, by which its share of the image is measured
SCALE = 100.0  # public code: counts are learnt in hundreds
MOST_KEPT = 20_000  # cells of an epoch that clusters are made of


def neighbour_counts(
    cells_M2: np.ndarray, labels_M: np.ndarray, classes: int, size: tuple[int, int], radii: np.ndarray
) -> np.ndarray:
    """Edge-corrected numbers of cells of each class within each radius of each cell, (M, C, R).

    A neighbour counts as often as the circle through it, around the cell, is longer than its part in the image
    (Ripley's isotropic correction). A cell is within any radius of itself. The public code takes the bounding box
    of the points for the image, and so corrects too much.

    Args:
        cells_M2: px, all inside the image.
        labels_M: Classes.
        classes: Number of classes.
        size: Height and width of the image, px.
        radii: px, rising.
    """
    tree = KDTree(cells_M2)
    pairs = tree.sparse_distance_matrix(tree, radii[-1], output_type="ndarray")
    angles_A = 2 * np.pi * (np.arange(ANGLES) + 0.5) / ANGLES
    circle_PA2 = np.stack([np.cos(angles_A), np.sin(angles_A)], axis=-1) * pairs["v"][:, None, None]
    circle_PA2 += cells_M2[pairs["i"], None]
    share_P = ((circle_PA2 >= 0) & (circle_PA2 <= size[::-1])).all(-1).mean(1)
    counts_MCR = np.zeros((len(cells_M2), classes, len(radii)))
    # A pair counts from the first radius on that is not smaller than its distance.
    first_P = np.searchsorted(radii, pairs["v"])
    np.add.at(counts_MCR, (pairs["i"], labels_M[pairs["j"]], first_P), 1 / np.maximum(share_P, 1 / ANGLES))
    return counts_MCR.cumsum(-1)


class CellClusters:
    """Clusters of the features of each class's cells, made anew after each epoch from the features seen in it.

    The public code computes all features of the training tiles once more for that; here training's own are taken.
    """

    def __init__(self, classes: int, clusters: int, steps_an_epoch: int) -> None:
        """Begin without clusters.

        Args:
            classes: Number of classes.
            clusters: Clusters of each class.
            steps_an_epoch: Steps after which the clusters are made.
        """
        self.classes, self.clusters, self.steps_an_epoch = classes, clusters, steps_an_epoch
        self.centroids_CSF: torch.Tensor | None = None
        self._seen: list[tuple[np.ndarray, np.ndarray]] = []
        self._steps = 0

    def begin_step(self) -> None:
        """Count a step, and make clusters of the features seen if an epoch has ended."""
        if self._steps == self.steps_an_epoch:
            self._steps = 0
            self._make()
        self._steps += 1

    def add(self, features_MF: np.ndarray, labels_M: np.ndarray) -> None:
        """Keep features of cells for the next clusters."""
        if sum(len(labels) for _, labels in self._seen) < MOST_KEPT:
            self._seen.append((features_MF, labels_M))

    def assign(self, features_MF: np.ndarray, labels_M: np.ndarray) -> np.ndarray | None:
        """Cluster of each cell among those of all classes, (M,); None before the first epoch has ended."""
        if self.centroids_CSF is None:
            return None
        found_M = np.zeros(len(labels_M), int)
        for label in np.unique(labels_M):
            of_class = labels_M == label
            nearest, _ = vq(features_MF[of_class], self.centroids_CSF[label].numpy())
            found_M[of_class] = label * self.clusters + nearest
        return found_M

    def state(self) -> dict[str, Any]:
        """Collect clusters and features as tensors."""
        seen = [[torch.from_numpy(each) for each in pair] for pair in self._seen]
        return {"centroids": self.centroids_CSF, "seen": seen, "steps": self._steps}

    def restore(self, state: Any) -> None:
        """Restore what `state` collected."""
        self.centroids_CSF, self._steps = state["centroids"], state["steps"]
        self._seen = [(features.numpy(), labels.numpy()) for features, labels in state["seen"]]

    def _make(self) -> None:
        """Make the clusters, from the ones before if there are any; those of the first rank are everyone's."""
        if not self._seen:
            return
        features_NF, labels_N = (np.concatenate(each) for each in zip(*self._seen, strict=True))
        centroids_CSF = np.zeros((self.classes, self.clusters, features_NF.shape[1]), np.float32)
        for label in range(self.classes):
            of_class_NF = features_NF[labels_N == label].astype(float)
            before_SF = centroids_CSF[label] if self.centroids_CSF is None else self.centroids_CSF[label].numpy()
            if len(of_class_NF) < self.clusters:
                centroids_CSF[label] = before_SF
            elif before_SF.any():
                centroids_CSF[label], _ = kmeans2(of_class_NF, before_SF.astype(float), minit="matrix")
            else:
                centroids_CSF[label], _ = kmeans2(of_class_NF, self.clusters, minit="++", seed=0)
        self.centroids_CSF = from_first_rank(torch.from_numpy(centroids_CSF))
        self._seen = []
