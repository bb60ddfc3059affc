"""Numbers of neighbours by hand and by density; clusters that go on from each other."""

import numpy as np
import pytest

from finetune.training.rivals.neighbours import RADII_UM, CellClusters, neighbour_counts

RADII = np.array(RADII_UM) / 0.5


def test_far_from_the_border_neighbours_are_counted() -> None:
    at = np.arange(-10, 11) * 12.0 + 500
    cells_M2 = np.stack(np.meshgrid(at, at), -1).reshape(-1, 2)
    counts_MCR = neighbour_counts(cells_M2, np.zeros(441, int), 2, (1000, 1000), RADII)
    away_MM = np.linalg.norm(cells_M2[:, None] - cells_M2[None], axis=-1)
    expected_MR = (away_MM[..., None] <= RADII).sum(1)
    np.testing.assert_allclose(counts_MCR[:, 0], expected_MR)
    assert (counts_MCR[:, 1] == 0).all() and (counts_MCR[:, 0, 0] == 1).all()


def test_in_a_corner_a_neighbour_counts_up_to_four_times() -> None:
    counts_MCR = neighbour_counts(np.array([[0.0, 0.0], [20.0, 20.0]]), np.array([0, 1]), 2, (200, 200), RADII)
    assert counts_MCR[0, 1].tolist() == [0, 0, 4, 4, 4, 4, 4]
    assert counts_MCR[0, 0].tolist() == [1] * 7


def test_over_uniform_cells_the_mean_is_the_density() -> None:
    random = np.random.default_rng(0)
    cells_M2 = random.uniform(0, 400, (500, 2))
    counts_MCR = neighbour_counts(cells_M2, np.zeros(500, int), 1, (400, 400), RADII)
    expected_R = 1 + np.pi * RADII**2 * 499 / 400**2
    np.testing.assert_allclose(counts_MCR[:, 0, 3:].mean(0), expected_R[3:], rtol=0.05)


def test_clusters_of_each_class_are_found_and_kept() -> None:
    random = np.random.default_rng(0)
    clusters = CellClusters(2, 3, steps_an_epoch=2)
    centres_SF = np.eye(3, 8) * 10
    which_M = np.arange(60) % 3
    features_MF = (centres_SF[which_M] + random.normal(0, 0.1, (60, 8))).astype(np.float32)
    labels_M = np.zeros(60, int)
    clusters.begin_step()
    assert clusters.assign(features_MF, labels_M) is None
    clusters.add(features_MF, labels_M)
    clusters.begin_step()
    assert clusters.assign(features_MF, labels_M) is None
    clusters.begin_step()  # of the second epoch
    first_M = clusters.assign(features_MF, labels_M)
    assert first_M is not None and first_M.max() < 3
    assert all(len(set(first_M[which_M == each])) == 1 for each in range(3)) and len(set(first_M)) == 3

    clusters.add(features_MF[::-1] + 0.05, labels_M)
    copy = CellClusters(2, 3, steps_an_epoch=2)
    copy.restore(clusters.state())
    for each in (clusters, copy):
        each.begin_step()
        each.begin_step()  # of the third epoch
        assert each.assign(features_MF, labels_M).tolist() == first_M.tolist()  # type: ignore[union-attr]
    assert clusters.centroids_CSF.tolist() == copy.centroids_CSF.tolist()  # type: ignore[union-attr]
    assert clusters.centroids_CSF[1].abs().sum() == pytest.approx(0)  # type: ignore[index]
