"""Cells of single images in memory: `Detector.predict`, and the annotated tiles that a detector is scored on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from finetune.datasets.dataset import Tile
from finetune.predict.search.area import Area, default_area, inside, touched
from finetune.predict.search.deduplicate import final_cells
from finetune.predict.search.inference import PAPER_RULE, Selection, WindowReader, find_cells, record_type
from finetune.predict.search.tiling import Tiling, tiling_of
from finetune.scoring.operating_point import FLOOR
from shared.errors import UserError
from shared.model.cells import Cells, classify
from shared.model.detector_file import LoadedDetector
from shared.wsi.image_source import ImageSource, Picture, open_source, require_fine, size_at, stated_mpp
from shared.wsi.resolution import MPP_RANGE

BATCH_SIZE = 4  # windows of a tile, as by default in `finetune.predict`


@dataclass(frozen=True)
class FoundCells:
    """Reports on one image down to a low score, from which the cells at any higher threshold follow."""

    records: np.ndarray
    """`inference.record_type` with the probabilities of all classes."""
    mpp: float
    """um/px of the records."""
    scale: float
    """Px of the image that make one of the records."""

    def cells(self, threshold: float | None = None) -> Cells:
        """Cells in px of the image, as `finetune.predict` finds them."""
        labels_N, scores_N, keep_N = classify(self.records["probabilities"], threshold)
        records = self.records[keep_N]
        records["label"], records["probability"] = labels_N[keep_N], scores_N[keep_N]
        return _as_cells(records[final_cells(records, self.mpp)], self.scale)


class AnnotatedTile(Picture):
    """An annotated tile whose wider fields of view come from their own files."""

    def __init__(self, tile: Tile, views: int, mpp: float, read_mpp: float) -> None:
        """Read the images.

        Args:
            tile: The tile.
            views: Fields of view that the detector takes.
            mpp: um/px of the tile.
            read_mpp: um/px of the detector; wider fields are read at 2, 4, ... times as much.
        """
        *wider, own = tile.read_views(views)
        super().__init__(Image.fromarray(own), mpp, tile.image)
        self._wider = [Picture.of_array(view, mpp) for view in reversed(wider)]
        self._read_mpp = read_mpp

    def read(self, x: float, y: float, width: int, height: int, mpp: float) -> Image.Image:
        """See `ImageSource`; a wider field of view covers 2, 4, ... times the tile's width around its centre."""
        doublings = round(math.log2(mpp / self._read_mpp))
        if doublings < 1:
            return super().read(x, y, width, height, mpp)
        times = 2**doublings
        beyond_x, beyond_y = ((times - 1) / 2 * side for side in self.size)
        return self._wider[doublings - 1].read(
            (x + beyond_x) / times, (y + beyond_y) / times, width, height, mpp / times
        )


def predict_image(
    detector: LoadedDetector, image: np.ndarray | Image.Image | str | Path, mpp: float | None
) -> Cells:
    """Cells of an image in px of its level 0, found as by `finetune.predict`: of a slide those on its tissue.

    Raises:
        UserError: it is no image, parts of it cannot be read, its um/px are out of range or far coarser than what
            the detector was trained at.
    """
    least, most = MPP_RANGE
    if mpp is not None and not least <= mpp <= most:
        raise UserError(f"an image of {mpp:g} um/px makes no sense; give mpp between {least:g} and {most:g}")
    source = _source(image, mpp, detector.mpp)
    require_fine(source, detector.mpp)
    tiling = tiling_of(size_at(source, detector.mpp), detector.network.config, detector.tile)
    scale = detector.mpp / source.mpp
    area = default_area(source)
    cells = cells_of(detector, source, tiling, area=area)
    source.close()
    return _as_cells(cells, scale)


def predict_tiles(detector: LoadedDetector, tiles: Sequence[Tile], mpp: float) -> list[FoundCells]:
    """Cells of annotated tiles of `mpp` um/px, found as `finetune.predict` finds them in images.

    Raises:
        UserError: the tiles are far coarser than what the detector was trained at.
    """
    views, classes = detector.network.config.views, len(detector.classes)
    # A cell by the paper's rule is at least as probable as one of all classes and background on average.
    selection = Selection(min(FLOOR, 0.99 / (classes + 1)), probabilities=True)
    found = []
    for tile in tiles:
        source = AnnotatedTile(tile, views, mpp, detector.mpp)
        require_fine(source, detector.mpp)
        tiling = tiling_of(size_at(source, detector.mpp), detector.network.config, detector.tile)
        records = _records(detector, source, tiling, tiling.batches(range(len(tiling)), BATCH_SIZE), selection)
        found.append(FoundCells(records, detector.mpp, detector.mpp / mpp))
    return found


def cells_of(
    detector: LoadedDetector,
    source: ImageSource,
    tiling: Tiling,
    batch_size: int = 1,
    area: Area | None = None,
) -> np.ndarray:
    """Predict the records of a whole source, or of an area of it, in the order of its tiles, in memory.

    Raises:
        UserError: a part of it cannot be read.
    """
    scale = detector.mpp / source.mpp
    tiles = touched(tiling, area, scale) if area else range(len(tiling))
    records = _records(detector, source, tiling, tiling.batches(tiles, batch_size))
    if area:
        records = inside(records, area, scale)
    cells: np.ndarray = records[final_cells(records, detector.mpp)]
    return cells


def _records(
    detector: LoadedDetector,
    source: ImageSource,
    tiling: Tiling,
    batches: list[list[int]],
    selection: Selection = PAPER_RULE,
) -> np.ndarray:
    """Collect the reports of batches of tiles, also on cells of their neighbours."""
    reader = WindowReader(lambda: source, tiling, batches, detector.mpp, detector.network.config.views)
    parts = []
    for found in find_cells(detector, reader, range(len(batches)), selection=selection):
        if found.failures:
            raise UserError(found.failures[0])
        parts.append(found.cells)
    columns = len(detector.classes) + 1 if selection.probabilities else 0
    records = np.concatenate(parts) if parts else np.empty(0, record_type(columns))
    return records[np.argsort(records["tile"], kind="stable")]


def _source(image: np.ndarray | Image.Image | str | Path, mpp: float | None, default: float) -> ImageSource:
    """Resolve the um/px of an image: what is given, else what it states, else the detector's."""
    if isinstance(image, str | Path):
        return open_source(Path(image), mpp, default)
    if isinstance(image, Image.Image):
        return Picture(image, mpp or stated_mpp(image) or default)
    return Picture.of_array(np.asarray(image), mpp or default)


def _as_cells(records: np.ndarray, scale: float) -> Cells:
    points_N2 = np.stack([records["x"], records["y"]], axis=1).astype(np.float32) * np.float32(scale)
    return Cells(points_N2, records["label"].astype(np.int64), records["probability"])
