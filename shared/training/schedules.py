"""Schedules: values as functions of the completed share of a run."""

import math


def linear(start: float, end: float, share: float) -> float:
    """Interpolate linearly from `start` at share 0 to `end` at share 1."""
    return start + (end - start) * share


def cosine(start: float, end: float, share: float) -> float:
    """Interpolate along half a cosine wave from `start` at share 0 to `end` at share 1."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))
