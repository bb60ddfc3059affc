"""The places of a slide that just failed to hold enough cells: kept aside, so that the threshold can be judged."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from patch_extraction.slide_store.file_names import near_misses_path
from patch_extraction.slide_store.slide_tar import SlideTar

MOST = 4  # of a slide: less than 1 % of what 500 kept patches take
LEAST_SHARE = 0.5  # of the cells wanted; emptier places tell nothing about the threshold


@dataclass
class NearMisses:
    """The patches with the most cells among those that hold too few."""

    found: list[tuple[str, np.ndarray, Mapping[str, Any]]] = field(default_factory=list)

    def offer(self, key: str, patch_HW3: np.ndarray, fields: Mapping[str, Any], min_cells: int) -> None:
        """Take a rejected patch if it is among those nearest to the threshold."""
        if fields["cells"] < LEAST_SHARE * min_cells:
            return
        self.found = sorted([*self.found, (key, patch_HW3, fields)], key=lambda each: -each[2]["cells"])[:MOST]

    def save(self, out: Path, slide_id: str) -> None:
        """Write `rejected/SLIDE_ID.tar`, samples like those of the slide's tar, if there are any."""
        if self.found:
            with SlideTar(near_misses_path(out, slide_id)) as tar:
                for key, patch_HW3, fields in self.found:
                    tar.add(key, patch_HW3, fields)


def remove_near_misses(out: Path, slide_id: str) -> None:
    """Forget those of an earlier harvest."""
    near_misses_path(out, slide_id).unlink(missing_ok=True)
