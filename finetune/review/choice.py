"""Choice of regions that are uncertain and unlike each other."""

import numpy as np


def choose(uncertainty_N: np.ndarray, looks_ND: np.ndarray, count: int, known_KD: np.ndarray) -> list[int]:
    """Choose regions one by one: the highest product of uncertainty and distance from the nearest one chosen.

    Distance is one minus the cosine of two descriptions, so that its unit does not matter.

    Args:
        uncertainty_N: Expected errors of every candidate.
        looks_ND: Description of every candidate.
        count: Number of regions; all if there are fewer.
        known_KD: Descriptions of regions chosen before, on other slides.

    Returns:
        Indices, the first choice first.
    """
    directions_ND, known_KD = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (looks_ND, known_KD))
    nearest_N = (
        1 - (directions_ND @ known_KD.T).max(axis=1, initial=-1) if len(known_KD) else np.ones(len(looks_ND))
    )
    chosen: list[int] = []
    for _ in range(min(count, len(looks_ND))):
        worth_N = uncertainty_N * nearest_N.clip(0)
        worth_N[chosen] = -1
        chosen.append(int(worth_N.argmax()))
        nearest_N = np.minimum(nearest_N, 1 - directions_ND @ directions_ND[chosen[-1]])
    return chosen
