"""Cells of one image in memory: the way in from Python."""

from pathlib import Path

import numpy as np
from PIL import Image

from finetune.predict.search.deduplicate import without_seams
from finetune.predict.search.inference import CELL, WindowReader, find_cells
from finetune.predict.search.tiling import Tiling, tiling_of
from shared.errors import UserError
from shared.model.cells import CellSet
from shared.model.detector_file import LoadedDetector
from shared.training.precision import Precision
from shared.wsi.image_source import ImageSource, Picture, size_at
from shared.wsi.resolution import MPP_RANGE


def predict_image(
    detector: LoadedDetector, image: np.ndarray | Image.Image | str | Path, mpp: float | None
) -> CellSet:
    """Cells of an image in its own px, in one piece if it is no larger than a tile, else without seams.

    Raises:
        UserError: it is no image, its parts cannot be read, its um/px make no sense, or it is far coarser than
            the detector's training.
    """
    mpp = detector.mpp if mpp is None else mpp
    if not MPP_RANGE[0] <= mpp <= MPP_RANGE[1]:
        least, most = MPP_RANGE
        raise UserError(f"an image of {mpp:g} um/px makes no sense; give mpp between {least:g} and {most:g}")
    if isinstance(image, str | Path):
        source: ImageSource = Picture.open(Path(image), mpp)
    elif isinstance(image, Image.Image):
        source = Picture(image, mpp)
    else:
        source = Picture.of_array(np.asarray(image), mpp)
    tiling = tiling_of(*size_at(source, detector.mpp), detector.network.config, detector.tile)
    cells = cells_of(detector, source, tiling)
    scale = detector.mpp / source.mpp
    points_N2 = np.stack([cells["x"], cells["y"]], axis=1).astype(np.float32) * np.float32(scale)
    return CellSet(points_N2, cells["label"].astype(np.int64), cells["probability"])


def cells_of(
    detector: LoadedDetector,
    source: ImageSource,
    tiling: Tiling,
    batch_size: int = 1,
    precision: Precision = "auto",
) -> np.ndarray:
    """Cells of a whole source, of dtype `windows.CELL`, in the order of its tiles; all at once in memory.

    Raises:
        UserError: a part of it cannot be read.
    """
    batches = tiling.batches(range(len(tiling)), batch_size)
    reader = WindowReader(lambda: source, tiling, batches, detector.mpp, detector.network.config.views)
    parts = []
    for found in find_cells(detector, reader, range(len(batches)), precision):
        if found.failures:
            raise UserError(found.failures[0])
        parts.append(found.cells)
    cells = np.concatenate(parts) if parts else np.empty(0, CELL)
    cells = cells[np.argsort(cells["tile"], kind="stable")]
    return cells[without_seams(cells, detector.mpp)]
