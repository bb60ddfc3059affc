"""Stains of tissue sections: optical density and absorption in red, green and blue."""

import math

import numpy as np

# Absorption vectors of Ruifrok & Johnston 2001, table 1.
HAEMATOXYLIN = np.array([0.650, 0.704, 0.286], np.float32)
EOSIN = np.array([0.072, 0.990, 0.105], np.float32)
DAB = np.array([0.268, 0.570, 0.776], np.float32)
# QuPath's defaults for "H&E".
QUPATH_HAEMATOXYLIN, QUPATH_EOSIN = (0.651, 0.701, 0.290), (0.216, 0.801, 0.558)


def density_table(white: float = 255.0) -> np.ndarray:
    """Return the optical densities of the 256 values of a channel relative to `white`, float32, at least 0.

    A lookup is faster than a logarithm per pixel. numpy's logarithms differ in their last bit between processors;
    Python's do not.
    """
    densities = [math.log10(max(white, 1)) - math.log10(max(value, 1)) for value in range(256)]
    return np.array(densities, np.float32).clip(min=0)


def optical_density(image_HW3: np.ndarray, white_3: np.ndarray) -> np.ndarray:
    """Return -log10 of the light transmitted by a uint8 RGB image relative to the colour of its glass, float32."""
    return np.stack([density_table(white).take(image_HW3[..., c]) for c, white in enumerate(white_3)], axis=-1)


def unmixing_matrix(first: tuple[float, ...], second: tuple[float, ...]) -> np.ndarray:
    """Return the 3 x 3 matrix from optical densities to the amounts of two stains and a residual, float32."""
    vectors = np.array([first, second]) / np.linalg.norm([first, second], axis=1, keepdims=True)
    residual = np.cross(vectors[0], vectors[1])
    return np.linalg.inv(np.vstack([vectors, residual / np.linalg.norm(residual)])).astype(np.float32)
