"""Sharpness of a patch, independent of its stain and of empty parts."""

import numpy as np
from PIL import Image

FOCUS_MPP = 0.5  # um/px at which sharpness is measured, or the patch's own if coarser: noise is finer
SPAN = 4  # px, 2 um: about the edge of a nucleus out of focus
MIN_CONTRAST = 8  # grey values over the span; where there is less, there is glass
EVERY = 2  # lines: the others add nothing
BLOCK = 36  # px: seven along the side of a patch of 128 um
MIN_EDGES = 0.05  # share of a block's px


def focus(image_HW3: np.ndarray, mpp: float) -> float:
    """Measure the excess of contrast between neighbouring px over that of an even ramp, where there are edges.

    Squared differences of neighbours in the middle of spans of 4 px are compared with those over the whole span:
    0 where light changes evenly, 3 on a single step. The median over blocks with edges is that of the tissue,
    whatever lies on it.

    Args:
        image_HW3: uint8 RGB.
        mpp: um/px.

    Returns:
        0 or more; 0 also without any edge.
    """
    grey = Image.fromarray(image_HW3).convert("L").reduce(max(1, round(FOCUS_MPP / mpp)))
    grey_HW = np.asarray(grey, np.float32)
    fine = coarse = edges = np.zeros(1)
    for lines_NL, turn in ((grey_HW, np.ndarray.view), (grey_HW.T, np.transpose)):
        lines_NL = lines_NL[2:-2:EVERY]
        across = lines_NL[:, SPAN:] - lines_NL[:, :-SPAN]
        edge = np.abs(across) >= MIN_CONTRAST
        steps = np.diff(lines_NL[:, 1:-1], axis=1)  # from px 1 to 2 of a span, and from 2 to 3
        middle = np.square(steps[:, :-1]) + np.square(steps[:, 1:])
        fine = fine + turn(_by_blocks(middle * edge))
        coarse = coarse + turn(_by_blocks(np.square(across) * edge))
        edges = edges + turn(_by_blocks(edge.astype(np.float32)))
    chosen = edges >= MIN_EDGES * 2 * BLOCK**2 / EVERY
    if not chosen.any():
        return 0.0
    return max(0.0, float(np.median(SPAN**2 / 2 * fine[chosen] / coarse[chosen])) - 1)


def _by_blocks(values_NL: np.ndarray) -> np.ndarray:
    """Sum every second line over whole blocks; over all of a smaller image."""
    sides = (BLOCK // EVERY, BLOCK)
    rows, columns = (max(1, length // side) for length, side in zip(values_NL.shape, sides, strict=True))
    cut = values_NL[: rows * sides[0], : columns * sides[1]]
    return cut.reshape(rows, len(cut) // rows, columns, -1).sum(axis=(1, 3))
