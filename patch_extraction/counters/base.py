"""Counting the cells of a patch: one interface; the classical counter, a detector or a user's function behind it.

The classical counter needs no weights, knows no tissue and takes a millisecond a patch; collagen can fool it.
"""

import functools
import hashlib
import importlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from patch_extraction.counters.haematoxylin import THRESHOLD, find_nuclei
from shared.errors import UserError

CLASSICAL = ("haematoxylin", "hematoxylin")  # as people spell it
# The name, and the file, of the detector that comes with this package; nuclei.md tells where it is from.
SHIPPED, SHIPPED_FILE = "detector", Path(__file__).with_name("nuclei.safetensors")


class CellCounter(Protocol):
    """Finds cells in a picture."""

    name: str  # with everything that decides its counts; part of a harvest's settings
    batch: int  # images that it is best given at once

    def find(self, image_HW3: np.ndarray, mpp: float) -> np.ndarray:
        """Centres of the cells in a uint8 RGB image of `mpp` um/px: [N, 2], x and y in its px, corner origin."""

    def find_each(self, images: Sequence[np.ndarray], mpp: float) -> list[np.ndarray]:
        """The same of images of one size."""


class OneByOne:
    """Of counters that gain nothing from several images at once."""

    batch = 1

    def find_each(self: CellCounter, images: Sequence[np.ndarray], mpp: float) -> list[np.ndarray]:
        """See `CellCounter.find_each`."""
        return [self.find(image_HW3, mpp) for image_HW3 in images]


class HaematoxylinCounter(OneByOne):
    """Counts spots in the haematoxylin channel, and brown ones in the red channel."""

    name = f"haematoxylin {THRESHOLD}"

    def __init__(self, leave_out_ink: bool = True) -> None:
        self._leave_out_ink = leave_out_ink

    def find(self, image_HW3: np.ndarray, mpp: float) -> np.ndarray:
        """See `CellCounter.find`."""
        return find_nuclei(image_HW3, mpp, self._leave_out_ink)


class FunctionCounter(OneByOne):
    """Counts with a user's Python function, given as MODULE:FUNCTION."""

    def __init__(self, place: str) -> None:
        """Look the function up.

        Raises:
            UserError: there is none of that name.
        """
        self._place = place
        source = _written_in(_function(place))
        digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()[:8] if source else "built in"
        self.name = f"{place} ({digest})"

    def find(self, image_HW3: np.ndarray, mpp: float) -> np.ndarray:
        """See `CellCounter.find`.

        Raises:
            UserError: the function returned something else than points.
        """
        points_N2 = np.asarray(_function(self._place)(image_HW3.copy(), mpp), float)  # it may write on its own
        if not points_N2.size:
            return np.zeros((0, 2))
        if points_N2.ndim != 2 or points_N2.shape[1] != 2:
            shape = " x ".join(map(str, points_N2.shape)) or "a number"
            raise UserError(f"{self._place} returned {shape} instead of N x 2, the x and y of the cells in px")
        return points_N2


def choose_counter(counter: str, detector: Path | None, patch_mpp: float, patch_size: int) -> CellCounter:
    """The counter that --counter or --detector asks for, tried on an empty patch.

    Raises:
        UserError: there is no such function or file, or it cannot count.
    """
    if detector is not None and counter not in (*CLASSICAL, SHIPPED):
        raise UserError(f"--detector {detector} and --counter {counter} exclude each other; give one of them")
    if detector is None and counter == SHIPPED:
        detector = SHIPPED_FILE
    if detector is not None:
        from patch_extraction.counters.detector import DetectorCounter  # with torch, which takes seconds

        chosen: CellCounter = DetectorCounter(detector)
    elif counter in CLASSICAL:
        return HaematoxylinCounter()
    else:
        chosen = FunctionCounter(counter)
    empty_HW3 = np.full((patch_size, patch_size, 3), 240, np.uint8)
    try:
        chosen.find(empty_HW3, patch_mpp)
    except UserError:
        raise
    except Exception as error:  # whatever a user's function may do
        raise UserError(
            f"{chosen.name} cannot count the cells of an empty patch ({type(error).__name__}: {error}); mend it"
        ) from error
    return chosen


@functools.cache
def _function(place: str) -> Callable[[np.ndarray, float], np.ndarray]:
    """The function of a module; the module is imported once a process."""
    module, _, name = place.partition(":")
    if not module or not name:
        known = f"{CLASSICAL[0]}, {SHIPPED} or MODULE:FUNCTION of your own"
        raise UserError(f"--counter {place} is unknown; give {known}")
    try:
        found = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise UserError(f"--counter {place} cannot be imported ({error}); is its folder in PYTHONPATH?") from error
    except AttributeError as error:
        raise UserError(f"--counter {place}: the module {module} has no {name}; name a function of it") from error
    except Exception as error:  # whatever the lines of a user's module may do
        raise UserError(
            f"--counter {place} cannot be imported ({type(error).__name__}: {error}); mend the module"
        ) from error
    if not callable(found):
        raise UserError(f"--counter {place} is no function; give MODULE:FUNCTION of your own")
    return found


def _written_in(function: Callable[..., object]) -> str | None:
    """The file of a function, not of what decorates it, or of the class of a callable object."""
    function = inspect.unwrap(function)
    written = function if inspect.isroutine(function) or inspect.isclass(function) else type(function)
    try:
        return inspect.getsourcefile(written)
    except TypeError:  # it is built in
        return None
