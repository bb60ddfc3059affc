"""Counting the cells of a patch: one interface; the classical counter, a detector or a user's function behind it.

The classical counter measures absorption by haematoxylin and looks for blobs of the size of nuclei. It needs no
weights, knows no tissue and takes 2 ms a patch; collagen can fool it.
"""

import functools
import hashlib
import importlib
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from shared.command_line import UserError

# Optical densities of haematoxylin and DAB in red, green, blue: QuPath's defaults for "H-DAB".
HAEMATOXYLIN = (0.651, 0.701, 0.290)
DAB = (0.269, 0.568, 0.778)
# Blob filter and threshold, at 1 um/px; finer scales gain nothing.
COUNTING_MPP = 1.0
FINE_UM, COARSE_UM = 2.0, 3.2
THRESHOLD = 0.02
# Brown nuclei hide from the haematoxylin channel; the red one sees them, weighed so that blue ones count once.
# Measured: F1 on brown-and-blue sample tiles 0.77 -> 0.83, no change (<= 0.005) on CoNSeP, BRCA-M2C and CD138.
RED_WEIGHT = 0.8
# Optical densities of the 256 values of a channel: looked up, a logarithm per pixel would be slow.
# Not by numpy, whose logarithms end in other bits on other processors: a cell at the threshold would come and go.
DENSITIES = np.array([-math.log10(max(value, 1) / 255) for value in range(256)], np.float32)
CLASSICAL = ("haematoxylin", "hematoxylin")  # as people spell it


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
    """Counts blobs in the haematoxylin channel, and brown ones in the red channel."""

    name = f"haematoxylin {THRESHOLD}"

    def find(self, image_HW3: np.ndarray, mpp: float) -> np.ndarray:
        """See `CellCounter.find`."""
        image_HW3, scale = _reduced(image_HW3, mpp)
        fine, coarse = FINE_UM / (mpp * scale), COARSE_UM / (mpp * scale)
        blobs_2HW = _blobs(stains(image_HW3), fine, coarse)
        blobs_HW = np.maximum(blobs_2HW[0], RED_WEIGHT * blobs_2HW[1])
        rows, columns = np.nonzero((blobs_HW > THRESHOLD) & (blobs_HW == _largest_around(blobs_HW)))
        return (np.stack([columns, rows], axis=1) + 0.5) * scale


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
        points_N2 = np.asarray(_function(self._place)(image_HW3, mpp), float)
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
    if detector is not None and counter not in CLASSICAL:
        raise UserError(f"--detector {detector} and --counter {counter} exclude each other; give one of them")
    if detector is not None:
        from patch_extraction.detector_counter import DetectorCounter  # with torch, which takes seconds

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
        raise UserError(f"--counter {place} is unknown; give {CLASSICAL[0]}, or MODULE:FUNCTION of your own")
    try:
        found = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise UserError(f"--counter {place} cannot be imported ({error}); is its folder in PYTHONPATH?") from error
    except AttributeError as error:
        raise UserError(f"--counter {place}: the module {module} has no {name}") from error
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


def stains(image_HW3: np.ndarray) -> np.ndarray:
    """Optical density of haematoxylin, and of red light, up to a constant (blob filters remove constants)."""
    red, green, blue = (DENSITIES[image_HW3[..., channel]] for channel in range(3))
    unmix_3 = _unmixing()
    return np.stack([red * unmix_3[0] + green * unmix_3[1] + blue * unmix_3[2], red])


@functools.cache
def _unmixing() -> np.ndarray:
    """What of red, green and blue density makes the haematoxylin channel, beside DAB and a residual."""
    known = np.array([HAEMATOXYLIN, DAB])
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    residual = np.cross(known[0], known[1])
    matrix = np.vstack([known, residual / np.linalg.norm(residual)])
    return np.linalg.inv(matrix)[:, 0].astype(np.float32)


def _reduced(image_HW3: np.ndarray, mpp: float) -> tuple[np.ndarray, float]:
    """The image at about 1 um/px by averaging areas, and its px per px of the result."""
    factor = COUNTING_MPP / mpp
    if factor < 1.25:
        return image_HW3, 1.0
    height, width = image_HW3.shape[:2]
    size = (max(1, round(width / factor)), max(1, round(height / factor)))
    picture = Image.fromarray(image_HW3).resize(size, Image.Resampling.BOX)
    return np.asarray(picture), width / size[0]


def _blobs(densities_2HW: np.ndarray, fine: float, coarse: float) -> np.ndarray:
    """Difference of Gaussians: high in the middle of dark spots of the nuclei's size."""
    axes = (1, 2)
    return gaussian_filter(densities_2HW, fine, axes=axes) - gaussian_filter(densities_2HW, coarse, axes=axes)


def _largest_around(values_HW: np.ndarray) -> np.ndarray:
    """The largest of the 3 x 3 values around each; beyond the edge there are none."""
    padded = np.pad(values_HW, 1, constant_values=-np.inf)
    rows = np.maximum(np.maximum(padded[:-2], padded[1:-1]), padded[2:])
    return np.maximum(np.maximum(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])
