"""Candidate regions of a slide, each with its cells, the detector's uncertainty and a description of its look."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor, nn

from finetune.predict.search.area import default_area, touched
from finetune.predict.search.deduplicate import OVERLAP
from finetune.predict.search.inference import Selection, WindowReader, find_cells
from finetune.predict.search.tiling import Box, Tiling, margin_of, tiling_of
from finetune.review.config import Suggest
from finetune.scoring.operating_point import FLOOR
from shared.annotations.polygons import PolygonIndex
from shared.errors import UserError
from shared.model.cells import Cells, classify
from shared.model.detector_file import LoadedDetector
from shared.model.dpa_p2pnet import DPAP2PNet
from shared.wsi.image_source import ImageSource, open_source, size_at

LEAST_AREA = 0.75  # of the largest region: those at the edges of a slide may be slivers
LOOK = 2  # map of the backbone that describes a region: stride 16


@dataclass(frozen=True)
class Candidate:
    """Region that may be suggested."""

    box: tuple[float, float, float, float]
    """Left, top, right, bottom in px of level 0."""
    records: np.ndarray
    """Reports of all proposals inside and close to it that may be cells, with all probabilities."""
    scale: float
    """Px of level 0 that make one of the records."""
    look_D: np.ndarray
    """Mean features of the backbone."""

    @property
    def uncertainty(self) -> float:
        """Expected number of wrong decisions: of every proposal one minus its highest probability."""
        own = self.records[self.records["zone"] != OVERLAP]
        return float((1 - own["probabilities"].max(axis=1, initial=0)).sum())

    def cells(self, threshold: float | None) -> Cells:
        """Cells with their points inside, px of level 0; `threshold` as of `shared.model.cells.classify`."""
        labels_N, scores_N, keep_N = classify(self.records["probabilities"], threshold)
        points_N2 = np.stack([self.records["x"], self.records["y"]], axis=1) * self.scale
        low, high = np.split(np.array(self.box), 2)
        inside_N = np.all((points_N2 >= low) & (points_N2 < high), axis=1)
        return Cells(points_N2, labels_N, scores_N).chosen(keep_N & inside_N)


def find_candidates(
    detector: LoadedDetector, source: ImageSource, config: Suggest, annotated: PolygonIndex | None
) -> list[Candidate]:
    """Draw regions on the tissue of a slide and predict their cells; batches that cannot be read are left out.

    Args:
        detector: The detector.
        source: Slide or image.
        config: Size and number of the candidates.
        annotated: Regions that are not looked at, px of level 0.

    Raises:
        SlideError: the slide shows no tissue or cannot be read.
        UserError: the detector is a rival's.
    """
    if not isinstance(detector.network, DPAP2PNet):
        raise UserError(f"{detector.path} has no backbone that describes regions; give a detector of DPA-P2PNet")
    tiling = _tiling(detector, source, config.side_um)
    places = _places(tiling, detector, source, annotated)
    if len(places) > config.candidates:
        drawn = np.random.default_rng(config.seed).choice(len(places), config.candidates, replace=False)
        places = [places[index] for index in sorted(drawn)]
    batches = tiling.batches(places, config.batch_size)
    views = detector.network.config.views
    reader = WindowReader(
        partial(open_source, source.path, config.slide_mpp), tiling, batches, detector.mpp, views
    )
    selection = Selection(min(FLOOR, 0.99 / (len(detector.classes) + 1)), probabilities=True)
    candidates = []
    with _looks(detector.network.backbone) as looks:
        workers = min(config.workers, len(batches))
        for found in find_cells(detector, reader, range(len(batches)), workers=workers, selection=selection):
            for tile, look_D in () if found.failures else zip(batches[found.number], looks.pop(), strict=True):
                records = found.cells[found.cells["tile"] == tile]
                box = _box(tiling.core_of(tile), detector, source)
                candidates.append(Candidate(box, records, detector.mpp / source.mpp, look_D))
            looks.clear()
    return candidates


def _tiling(detector: LoadedDetector, source: ImageSource, side_um: float) -> Tiling:
    """Tiles whose cores are the regions."""
    network, size = detector.network.config, size_at(source, detector.mpp)
    if detector.tile is not None:
        return tiling_of(size, network, detector.tile)
    step = network.step
    margin = math.ceil(margin_of(network) / step) * step
    core = max(1, round(side_um / detector.mpp / step)) * step
    return tiling_of(size, network, None, core + 2 * margin, margin)


def _places(
    tiling: Tiling, detector: LoadedDetector, source: ImageSource, annotated: PolygonIndex | None
) -> list[int]:
    """Tiles whose regions have their centre on tissue, without slivers and those that are annotated."""
    area = default_area(source)
    places = touched(tiling, area, detector.mpp / source.mpp)
    boxes_N4 = np.array([_box(tiling.core_of(place), detector, source) for place in places]).reshape(-1, 4)
    chosen_N = area.contains((boxes_N4[:, :2] + boxes_N4[:, 2:]) / 2)
    areas_N = np.prod(boxes_N4[:, 2:] - boxes_N4[:, :2], axis=1)
    chosen_N &= areas_N >= LEAST_AREA * areas_N.max(initial=0)
    if annotated is not None:  # half a px aside: neighbours touch
        inner_N4 = boxes_N4 + np.array([0.5, 0.5, -0.5, -0.5])
        chosen_N &= [not annotated.touches(*box) for box in inner_N4.tolist()]
    return [place for place, is_chosen in zip(places, chosen_N, strict=True) if is_chosen]


def _box(core: Box, detector: LoadedDetector, source: ImageSource) -> tuple[float, float, float, float]:
    """Convert a tile's core to px of level 0, clipped to the slide."""
    scale, (width, height) = detector.mpp / source.mpp, source.size
    left, top, right, bottom = (side * scale for side in core)
    return left, top, min(right, width), min(bottom, height)


@contextmanager
def _looks(backbone: nn.Module) -> Iterator[list[np.ndarray]]:
    """Collect the mean features of the images of each batch that the network sees: (B, D)."""
    looks: list[np.ndarray] = []

    def keep(_module: nn.Module, _inputs: object, maps: Sequence[Tensor]) -> None:
        looks.append(maps[LOOK].float().mean((2, 3)).cpu().numpy())

    handle = backbone.register_forward_hook(keep)
    yield looks
    handle.remove()
