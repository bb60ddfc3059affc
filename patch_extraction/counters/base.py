"""Cell counters: the interface, and its implementations by the classical method, a detector or a user's function.

The classical counter takes a millisecond per patch, but collagen, folds and blur mislead it; `nuclei`, the shipped
detector, takes some ten and decides by default.
"""

import functools
import hashlib
import importlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from patch_extraction.counters.detector import DetectorCounter
from patch_extraction.counters.haematoxylin import THRESHOLD, find_nuclei
from shared.errors import UserError
from shared.weights.shipped import NUCLEI, NUCLEI_FILE, shipped_or_given

CLASSICAL = ("haematoxylin", "hematoxylin")  # both spellings
DETECTOR = "detector"  # detector:FILE; alone, an older name of the shipped detector


class CellCounter(Protocol):
    """Finds cells in an image."""

    name: str  # identifies everything that decides the counts; part of a harvest's settings

    @property
    def batch(self) -> int:
        """Best number of images per call."""

    def find(self, image_HW3: np.ndarray, mpp: float) -> np.ndarray:
        """Return cell centres in a uint8 RGB image of `mpp` um/px: [N, 2], x and y in its px, corner origin."""

    def find_each(self, images: Sequence[np.ndarray], mpp: float) -> list[np.ndarray]:
        """Apply `find` to images of one size."""


class OneByOne:
    """Base of counters that gain nothing from batches."""

    batch = 1

    def find_each(self: CellCounter, images: Sequence[np.ndarray], mpp: float) -> list[np.ndarray]:
        """See `CellCounter.find_each`."""
        return [self.find(image_HW3, mpp) for image_HW3 in images]


class HaematoxylinCounter(OneByOne):
    """Classical counter: spots in the haematoxylin channel, and brown ones in the red channel."""

    def __init__(self, leave_out_ink: bool = False) -> None:
        """Choose if spots with the colours of ink and soot are left out."""
        self._leave_out_ink = leave_out_ink
        self.name = f"{CLASSICAL[0]} {THRESHOLD}" + " without ink" * leave_out_ink

    def find(self, image_HW3: np.ndarray, mpp: float) -> np.ndarray:
        """See `CellCounter.find`."""
        return find_nuclei(image_HW3, mpp, self._leave_out_ink)


class FunctionCounter(OneByOne):
    """Counter by a user's Python function, given as MODULE:FUNCTION."""

    def __init__(self, place: str) -> None:
        """Import the function.

        Raises:
            UserError: it does not exist.
        """
        self._place = place
        source = _written_in(_function(place))
        digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()[:8] if source else "built in"
        self.name = f"{place} ({digest})"

    def find(self, image_HW3: np.ndarray, mpp: float) -> np.ndarray:
        """See `CellCounter.find`.

        Raises:
            UserError: the function did not return points.
        """
        points_N2 = np.asarray(_function(self._place)(image_HW3.copy(), mpp), float)  # a copy, which it may change
        if not points_N2.size:
            return np.zeros((0, 2))
        if points_N2.ndim != 2 or points_N2.shape[1] != 2:
            shape = " x ".join(map(str, points_N2.shape)) or "a number"
            raise UserError(f"{self._place} returned {shape} instead of N x 2, the x and y of the cells in px")
        return points_N2


def choose_counter(counter: str, detector: Path | None = None, leave_out_ink: bool = False) -> CellCounter:
    """Create the counter of --counter or --detector.

    Raises:
        UserError: the function or file does not exist.
    """
    if detector is not None and counter != NUCLEI:
        raise UserError(f"--detector {detector} and --counter {counter} exclude each other; give one of them")
    if leave_out_ink and counter not in CLASSICAL:
        raise UserError(f"--leave-out-ink is for --counter {CLASSICAL[0]}; {counter} decides by itself")
    if counter in CLASSICAL:
        return HaematoxylinCounter(leave_out_ink)
    if counter.startswith(f"{DETECTOR}:"):
        detector = Path(counter.removeprefix(f"{DETECTOR}:"))
    if detector is None and counter not in (NUCLEI, DETECTOR):
        return FunctionCounter(counter)
    return DetectorCounter(shipped_or_given(detector or NUCLEI_FILE))


def require_working(counter: CellCounter, patch_mpp: float, patch_size: int) -> None:
    """Try a counter on an empty patch.

    Raises:
        UserError: it cannot count.
    """
    empty_HW3 = np.full((patch_size, patch_size, 3), 240, np.uint8)
    try:
        counter.find(empty_HW3, patch_mpp)
    except UserError:
        raise
    except Exception as error:  # from a user's code
        raise UserError(
            f"{counter.name} cannot count the cells of an empty patch ({type(error).__name__}: {error}); "
            "correct it"
        ) from error


@functools.cache
def _function(place: str) -> Callable[[np.ndarray, float], np.ndarray]:
    """Import a function, once per process."""
    module, _, name = place.partition(":")
    if not module or not name:
        known = f"{NUCLEI}, {CLASSICAL[0]}, {DETECTOR}:FILE or MODULE:FUNCTION of your own"
        raise UserError(f"--counter {place} is unknown; give {known}")
    try:
        found = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise UserError(f"--counter {place} cannot be imported ({error}); is its folder in PYTHONPATH?") from error
    except AttributeError as error:
        raise UserError(f"--counter {place}: the module {module} has no {name}; name a function of it") from error
    except Exception as error:  # from a user's code
        raise UserError(
            f"--counter {place} cannot be imported ({type(error).__name__}: {error}); correct the module"
        ) from error
    if not callable(found):
        raise UserError(f"--counter {place} is not a function; give MODULE:FUNCTION of your own")
    return found


def _written_in(function: Callable[..., object]) -> str | None:
    """Return the source file of a function without its decorators, or of the class of a callable object."""
    function = inspect.unwrap(function)
    written = function if inspect.isroutine(function) or inspect.isclass(function) else type(function)
    try:
        return inspect.getsourcefile(written)
    except TypeError:  # built in
        return None
