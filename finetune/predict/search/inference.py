"""Inference: worker processes read windows ahead, the network predicts batches of them, cells come out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from finetune.predict.search.deduplicate import BAND, BORDER, INNER, OVERLAP
from finetune.predict.search.tiling import Box, Tiling
from shared.model.cells import DetectedCells
from shared.model.detector_file import LoadedDetector
from shared.model.image_tensors import to_image
from shared.training.batch_workers import BatchWorkers
from shared.training.precision import Precision, autocast
from shared.wsi.image_source import ImageSource
from shared.wsi.slide import SlideError

# Record of a cell: position in px of the detector's um/px, probability of its class, numbers of the tile that
# reports it and of the one whose core holds its proposal, class, and distance from a seam (see `deduplicate`).
CELL = np.dtype(
    [
        ("x", "<f8"),
        ("y", "<f8"),
        ("probability", "<f4"),
        ("tile", "<i4"),
        ("owner", "<i4"),
        ("label", "<i2"),
        ("zone", "u1"),
    ]
)


def record_type(probabilities: int = 0) -> np.dtype:
    """`CELL`, with the probabilities of so many classes, background among them."""
    return np.dtype([*CELL.descr, ("probabilities", "<f4", (probabilities,))]) if probabilities else CELL


@dataclass(frozen=True)
class Selection:
    """Rule for the proposals that are reported as cells, and for what is reported of them."""

    threshold: float | None = None
    """Least probability of a cell's class; None: the paper's rule (`shared.model.cells.classify`)."""
    probabilities: bool = False
    """Report the probabilities of all classes."""


PAPER_RULE = Selection()


class WindowBatch(NamedTuple):
    """Batch of windows of one size."""

    number: int
    """Number of the batch in the list of all."""
    tiles: list[int]
    """Tiles that could be read."""
    image_BCHW: Tensor
    """uint8; (B, K, 3, H, W) with K > 1 views."""
    failures: list[str]
    """A sentence for each tile that could not be read."""


class Found(NamedTuple):
    """Cells of a batch."""

    number: int
    cells: np.ndarray
    """Records of `record_type`."""
    tiles: int
    """Tiles of the batch, also those that could not be read."""
    failures: list[str]


@dataclass
class WindowReader(Dataset[WindowBatch]):
    """Reads batches of windows, having opened the source in the process that reads."""

    open_source: Callable[[], ImageSource]
    tiling: Tiling
    batches: Sequence[Sequence[int]]
    mpp: float
    views: int = 1
    _source: ImageSource | None = field(default=None, repr=False)

    def bytes_of(self, number: int) -> int:
        """Size of the images of a batch."""
        tiles = self.batches[number]
        left, top, right, bottom = self.tiling.window_of(tiles[0])
        return len(tiles) * self.views * 3 * (right - left) * (bottom - top)

    def __getitem__(self, number: int) -> WindowBatch:
        if self._source is None:
            self._source = self.open_source()
        tiles, images, failures = [], [], []
        for index in self.batches[number]:
            try:
                images.append(
                    to_image(read_views(self._source, self.tiling.window_of(index), self.mpp, self.views))
                )
                tiles.append(index)
            except SlideError as error:
                failures.append(f"tile {index}: {error}")
        return WindowBatch(number, tiles, torch.stack(images) if images else torch.empty(0), failures)


def read_views(source: ImageSource, window: Box, mpp: float, views: int) -> np.ndarray:
    """Read a window, last, and fields of view of 2, 4, ... times its width around its centre: uint8 (K, H, W, 3).

    Args:
        source: Slide or image.
        window: Px of `mpp`.
        mpp: um/px of the window; wider fields of view have as many px, which are larger.
        views: K, the detector's fields of view.

    Raises:
        SlideError: a part of it cannot be read.
    """
    left, top, right, bottom = window
    width, height, scale = right - left, bottom - top, mpp / source.mpp
    pictures = []
    for doublings in range(views - 1, -1, -1):
        wider = (2**doublings - 1) / 2  # what is visible on each side beyond the window, in its widths
        corner = ((left - wider * width) * scale, (top - wider * height) * scale)
        pictures.append(np.asarray(source.read(*corner, width, height, mpp * 2**doublings)))
    return np.stack(pictures)


def find_cells(  # noqa: PLR0913
    detector: LoadedDetector,
    reader: WindowReader,
    numbers: Sequence[int],
    precision: Precision = "auto",
    workers: int = 0,
    selection: Selection = PAPER_RULE,
) -> Iterator[Found]:
    """Yield the cells of the batches with these numbers, in order.

    Raises:
        SlideError: the source can no longer be opened.
    """
    detector.network.eval()
    size, remedy = max(map(reader.bytes_of, numbers), default=0), "--workers or --batch-size"
    columns = len(detector.classes) + 1 if selection.probabilities else 0
    with BatchWorkers(reader, workers, detector.device, size, remedy, batch_size=None, sampler=numbers) as batches:
        for batch in batches:
            cells = np.empty(0, record_type(columns))
            if batch.tiles:
                with torch.inference_mode(), autocast(detector.device, precision):
                    images = batch.image_BCHW.to(detector.device, non_blocking=True)
                    found = detector.network.detect(images, selection.threshold)
                cells = reported_cells(found, reader.tiling, batch.tiles, selection)
            yield Found(batch.number, cells, len(reader.batches[batch.number]), batch.failures)


def reported_cells(
    found: Sequence[DetectedCells], tiling: Tiling, tiles: Sequence[int], selection: Selection = PAPER_RULE
) -> np.ndarray:
    """Select the cells whose proposals are in the tiles' cores or close to them, and whose points are inside.

    The network's rule sees every proposal by itself, so that it holds alike on both sides of a seam.
    """
    return np.concatenate(
        [_reported(cells, tiling, tile, selection) for cells, tile in zip(found, tiles, strict=True)]
    )


def _reported(found: DetectedCells, tiling: Tiling, tile: int, selection: Selection) -> np.ndarray:
    """Make the records of one tile."""
    origin_2 = np.array(tiling.window_of(tile)[:2])
    # In float64: at 100,000 px neighbours in single precision are 0.008 px apart.
    points_N2, proposals_N2 = found.points_N2.astype(float) + origin_2, found.proposals_N2.astype(float) + origin_2
    depth_N = _depth(proposals_N2, tiling.core_of(tile))
    keep_N = depth_N >= (0 if tiling.whole else -BAND)
    keep_N &= ((points_N2 >= 0) & (points_N2 < (tiling.width, tiling.height))).all(axis=1)
    depth_N, proposals_N2, found = depth_N[keep_N], proposals_N2[keep_N], found.chosen(keep_N)
    columns = found.probabilities_NC.shape[1] if selection.probabilities else 0
    cells = np.empty(len(depth_N), record_type(columns))
    if columns:
        cells["probabilities"] = found.probabilities_NC
    cells["x"], cells["y"] = points_N2[keep_N].T
    cells["probability"], cells["label"] = found.scores_N, found.labels_N
    cells["tile"], cells["owner"] = tile, tiling.owners(proposals_N2)
    outer = INNER if tiling.whole else BORDER
    cells["zone"] = np.where(depth_N < 0, OVERLAP, np.where(depth_N < BAND, outer, INNER))
    return cells


def _depth(points_N2: np.ndarray, box: Box) -> np.ndarray:
    """Distance of points from the nearest side of a box, negative outside; left and top sides are inside."""
    from_corner_N2, to_corner_N2 = points_N2 - box[:2], box[2:] - points_N2
    # A point on the right or lower edge is the next box's.
    to_corner_N2[to_corner_N2 == 0] = -1
    depth_N: np.ndarray = np.minimum(from_corner_N2, to_corner_N2).min(axis=1)
    return depth_N
