"""Patches of a slide that hold slightly too few cells or are slightly blurred, to judge the thresholds by."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from patch_extraction.slide_store.file_names import near_misses_path
from patch_extraction.slide_store.slide_tar import SlideTar

MAX_PATCHES = 4  # per slide: less than 1 % of the size of 500 kept patches
MIN_FRACTION = 0.5  # of a threshold; what is farther from it does not help to judge it


@dataclass
class NearMisses:
    """The rejected patches closest to the threshold that they miss."""

    found: list[tuple[float, str, np.ndarray, Mapping[str, Any]]] = field(default_factory=list)

    def offer(self, fraction: float, key: str, patch_HW3: np.ndarray, fields: Mapping[str, Any]) -> None:
        """Keep a rejected patch, with this fraction of a threshold, if it is among the closest."""
        if fraction >= MIN_FRACTION:
            self.found = sorted([*self.found, (fraction, key, patch_HW3, fields)], key=lambda each: -each[0])
            del self.found[MAX_PATCHES:]

    def save(self, out: Path, slide_id: str) -> None:
        """Write `rejected/SLIDE_ID.tar`, with samples like those of the slide's tar, if there are any."""
        if self.found:
            with SlideTar(near_misses_path(out, slide_id)) as tar:
                for _, key, patch_HW3, fields in self.found:
                    tar.add(key, patch_HW3, fields)


def remove_near_misses(out: Path, slide_id: str) -> None:
    """Remove the near misses of an earlier harvest."""
    near_misses_path(out, slide_id).unlink(missing_ok=True)
