"""Windows read ahead by worker processes and given to the network in batches; out come cells."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from finetune.predict.search.deduplicate import BAND, BORDER, INNER, WITNESS
from finetune.predict.search.tiling import Box, Tiling
from shared.model.detector_file import LoadedDetector
from shared.model.dpa_p2pnet import Detections
from shared.model.image_tensors import to_image
from shared.training.batch_workers import BatchWorkers
from shared.training.precision import Precision, autocast
from shared.wsi.image_source import ImageSource
from shared.wsi.slide import SlideError

# A cell as it is kept: position in px of the detector's um/px, probability of its class, number of the tile that
# reports it and of the one in whose core its proposal stands, class, and how near a seam that is (see `seams`).
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


class WindowBatch(NamedTuple):
    """Windows of one size."""

    number: int
    """Of the batch in the list of all."""
    tiles: list[int]
    """Those that could be read."""
    image_BCHW: Tensor
    """uint8; (B, K, 3, H, W) with K > 1 views."""
    failures: list[str]
    """A sentence for each tile that could not be read."""


class Found(NamedTuple):
    """What came of a batch."""

    number: int
    cells: np.ndarray
    """Of dtype `CELL`."""
    tiles: int
    """How many were asked for."""
    failures: list[str]


@dataclass
class WindowReader(Dataset[WindowBatch]):
    """Reads batches of windows; opens the source in the process that reads."""

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
    """A window, last, and views of twice, four times, ... its width around its centre: uint8 (K, H, W, 3).

    Args:
        source: Where to read.
        window: Px of `mpp`.
        mpp: um/px of the window; wider views have as many px, which are larger.
        views: K, the detector's fields of view.

    Raises:
        SlideError: a part of it cannot be read.
    """
    left, top, right, bottom = window
    width, height, scale = right - left, bottom - top, mpp / source.mpp
    pictures = []
    for doublings in range(views - 1, -1, -1):
        wider = (2**doublings - 1) / 2  # what is seen on each side beyond the window, in its widths
        corner = ((left - wider * width) * scale, (top - wider * height) * scale)
        pictures.append(np.asarray(source.read(*corner, width, height, mpp * 2**doublings)))
    return np.stack(pictures)


def find_cells(
    detector: LoadedDetector,
    reader: WindowReader,
    numbers: Sequence[int],
    precision: Precision = "auto",
    workers: int = 0,
) -> Iterator[Found]:
    """Cells of the batches with these numbers, in order.

    Raises:
        SlideError: the source cannot be opened any more.
    """
    detector.network.eval()
    size, remedy = max(map(reader.bytes_of, numbers), default=0), "--workers or --batch-size"
    with BatchWorkers(reader, workers, detector.device, size, remedy, batch_size=None, sampler=numbers) as batches:
        for batch in batches:
            cells = np.empty(0, CELL)
            if batch.tiles:
                with torch.inference_mode(), autocast(detector.device, precision):
                    image_BCHW = batch.image_BCHW.to(detector.device, non_blocking=True)
                    found = detector.network(image_BCHW.float() / 255)
                cells = reported_cells(found, reader.tiling, batch.tiles)
            yield Found(batch.number, cells, len(reader.batches[batch.number]), batch.failures)


def reported_cells(found: Detections, tiling: Tiling, tiles: Sequence[int]) -> np.ndarray:
    """Cells whose proposals stand in the tiles' cores, or close to them, and whose points lie in the image.

    Cells are the proposals that are most probably one, as in `shared.model.cells.select_cells`.
    """
    device = found.logits_BNC.device
    scores_BN, labels_BN = found.logits_BNC.softmax(-1).max(-1)
    windows_B4, cores_B4 = (
        torch.tensor([box(index) for index in tiles], device=device) for box in (tiling.window_of, tiling.core_of)
    )
    origin_B12 = windows_B4[:, None, :2]
    # In float64: at 100,000 px neighbours in single precision are 0.008 px apart.
    points_BN2 = found.points_BN2.double() + origin_B12
    size_2 = torch.tensor([tiling.width, tiling.height], dtype=torch.float64, device=device)
    proposals_BN2 = found.proposals_N2 + origin_B12
    depth_BN = _depth(proposals_BN2, cores_B4)
    keep_BN = (labels_BN != found.logits_BNC.shape[-1] - 1) & (depth_BN >= (0 if tiling.whole else -BAND))
    keep_BN &= ((points_BN2 >= 0) & (points_BN2 < size_2)).all(-1)
    depth_N = depth_BN[keep_BN].cpu().numpy()
    cells = np.empty(len(depth_N), CELL)
    cells["x"], cells["y"] = points_BN2[keep_BN].cpu().numpy().T
    cells["probability"] = scores_BN[keep_BN].float().cpu().numpy()
    cells["tile"] = np.asarray(tiles)[keep_BN.nonzero()[:, 0].cpu().numpy()]
    cells["owner"] = tiling.owners(proposals_BN2[keep_BN].cpu().numpy())
    cells["label"] = labels_BN[keep_BN].cpu().numpy()
    outer = INNER if tiling.whole else BORDER
    cells["zone"] = np.where(depth_N < 0, WITNESS, np.where(depth_N < BAND, outer, INNER))
    return cells


def _depth(points_BN2: Tensor, boxes_B4: Tensor) -> Tensor:
    """How far inside its box (edges at the left and top belong to it) a point lies along the nearest side."""
    from_corner_BN2 = points_BN2 - boxes_B4[:, None, :2]
    to_corner_BN2 = boxes_B4[:, None, 2:] - points_BN2
    # A point on the right or lower edge is the next box's.
    to_corner_BN2 = torch.where(to_corner_BN2 == 0, -1, to_corner_BN2)
    return torch.minimum(from_corner_BN2, to_corner_BN2).amin(-1)
