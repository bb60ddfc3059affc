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
from shared.model.cells import classify
from shared.model.detector_file import LoadedDetector
from shared.model.dpa_p2pnet import Detections
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
                    found = detector.network(batch.image_BCHW.to(detector.device, non_blocking=True))
                cells = reported_cells(found, reader.tiling, batch.tiles, selection)
            yield Found(batch.number, cells, len(reader.batches[batch.number]), batch.failures)


def reported_cells(
    found: Detections, tiling: Tiling, tiles: Sequence[int], selection: Selection = PAPER_RULE
) -> np.ndarray:
    """Select the cells whose proposals are in the tiles' cores or close to them, and whose points are inside.

    The rule sees every proposal by itself, so that it holds alike on both sides of a seam.
    """
    device = found.logits_BNC.device
    probabilities_BNC = found.logits_BNC.softmax(-1)
    labels_BN, scores_BN, keep_BN = classify(probabilities_BNC, selection.threshold)
    windows_B4, cores_B4 = (
        torch.tensor([box(index) for index in tiles], device=device) for box in (tiling.window_of, tiling.core_of)
    )
    origin_B12 = windows_B4[:, None, :2]
    # In float64: at 100,000 px neighbours in single precision are 0.008 px apart.
    points_BN2 = found.points_BN2.double() + origin_B12
    size_2 = torch.tensor([tiling.width, tiling.height], dtype=torch.float64, device=device)
    proposals_BN2 = found.proposals_N2 + origin_B12
    depth_BN = _depth(proposals_BN2, cores_B4)
    keep_BN &= depth_BN >= (0 if tiling.whole else -BAND)
    keep_BN &= ((points_BN2 >= 0) & (points_BN2 < size_2)).all(-1)
    depth_N = depth_BN[keep_BN].cpu().numpy()
    columns = probabilities_BNC.shape[-1] if selection.probabilities else 0
    cells = np.empty(len(depth_N), record_type(columns))
    if columns:
        cells["probabilities"] = probabilities_BNC[keep_BN].float().cpu().numpy()
    cells["x"], cells["y"] = points_BN2[keep_BN].cpu().numpy().T
    cells["probability"] = scores_BN[keep_BN].float().cpu().numpy()
    cells["tile"] = np.asarray(tiles)[keep_BN.nonzero()[:, 0].cpu().numpy()]
    cells["owner"] = tiling.owners(proposals_BN2[keep_BN].cpu().numpy())
    cells["label"] = labels_BN[keep_BN].cpu().numpy()
    outer = INNER if tiling.whole else BORDER
    cells["zone"] = np.where(depth_N < 0, OVERLAP, np.where(depth_N < BAND, outer, INNER))
    return cells


def _depth(points_BN2: Tensor, boxes_B4: Tensor) -> Tensor:
    """Distance of points from the nearest side of their box, negative outside; left and top sides are inside."""
    from_corner_BN2 = points_BN2 - boxes_B4[:, None, :2]
    to_corner_BN2 = boxes_B4[:, None, 2:] - points_BN2
    # A point on the right or lower edge is the next box's.
    to_corner_BN2 = torch.where(to_corner_BN2 == 0, -1, to_corner_BN2)
    return torch.minimum(from_corner_BN2, to_corner_BN2).amin(-1)
