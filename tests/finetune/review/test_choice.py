"""The choice of regions: uncertain ones, and unlike each other."""

import numpy as np

from finetune.review.choice import choose

NONE = np.empty((0, 2))


def directions(*degrees: float) -> np.ndarray:
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)


def test_the_most_uncertain_comes_first_and_its_like_later() -> None:
    looks = directions(0, 1, 90)
    # Distances from the first: 1 - cos(1 degree) = 0.00015 and 1, so the twin is worth 0.0015 and the third 1.
    assert choose(np.array([11.0, 10.0, 1.0]), looks, 3, NONE) == [0, 2, 1]


def test_equal_looks_are_ranked_by_uncertainty() -> None:
    looks = directions(0, 60, 60, 60)
    assert choose(np.array([9.0, 1.0, 3.0, 2.0]), looks, 2, NONE) == [0, 2]


def test_regions_of_other_slides_count_as_chosen() -> None:
    looks = directions(0, 90)
    uncertainty = np.array([5.0, 1.0])
    assert choose(uncertainty, looks, 1, NONE) == [0]
    assert choose(uncertainty, looks, 1, 7 * directions(1)) == [1]  # however long the description is


def test_no_more_than_there_are() -> None:
    assert sorted(choose(np.zeros(2), directions(0, 0), 5, NONE)) == [0, 1]
