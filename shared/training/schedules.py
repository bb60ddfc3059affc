"""Numbers that change over a run, as functions of a share of it."""

import math


def linear(start: float, end: float, share: float) -> float:
    """A straight line from `start` at share 0 to `end` at share 1."""
    return start + (end - start) * share


def cosine(start: float, end: float, share: float) -> float:
    """Half a cosine wave from `start` at share 0 to `end` at share 1."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))
