"""Settings common to all slides of a prediction: detector, ratios, and the keys of results."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from finetune.datasets.patients import read_patients
from finetune.predict.config import PredictConfig, check
from finetune.predict.outputs.cell_counts import columns_of
from finetune.predict.outputs.ratios import Ratio, parse_ratios
from finetune.predict.search.inference import PAPER_RULE, Selection
from finetune.predict.search.tiling import Tiling, tiling_of
from finetune.scoring.operating_point import resolve_threshold
from shared.errors import UserError
from shared.files import sha256
from shared.model.detector_file import LoadedDetector
from shared.weights.shipped import shipped_or_given
from shared.wsi.image_source import ImageSource, size_at


@dataclass(frozen=True)
class PredictPlan:
    """Detector, options and ratios of all slides."""

    config: PredictConfig
    detector: LoadedDetector
    detector_digest: str
    ratios: tuple[Ratio, ...]
    selection: Selection = PAPER_RULE
    patients: Mapping[str, str] = field(default_factory=dict)
    """Patients of slides, as `--patients` names them."""

    @property
    def columns(self) -> int:
        """Classes whose probabilities are kept of every cell, background among them; 0: none."""
        return len(self.detector.classes) + 1 if self.selection.probabilities else 0

    def tiling(self, source: ImageSource) -> Tiling:
        """Tiles of a slide or image."""
        config, detector = self.config, self.detector
        size = size_at(source, detector.mpp)
        return tiling_of(size, detector.network.config, detector.tile, config.tile, config.margin)

    def key(self, path: Path, regions: Path | None) -> dict[str, Any]:
        """Collect the settings and files that determine the cells of a slide."""
        config, stat = self.config, path.stat()
        # Only where they differ from what they were before these options: cells of then are still good.
        chosen = {name: value for name, value in asdict(self.selection).items() if value}
        return {
            **chosen,
            "detector": self.detector_digest,
            "slide": [stat.st_size, stat.st_mtime_ns],
            "slide_mpp": config.slide_mpp,
            "area": "everywhere" if config.everywhere else digest_of(regions) if regions else "default",
            "region_class": config.region_class,
            "region_bounds": config.bounds if regions else None,
            "tile": config.tile,
            "margin": config.margin,
            "batch_size": config.batch_size,
            "precision": f"{config.precision} on {self.detector.device.type}",
        }

    def output_key(self, annotations: Path | None, patient: str) -> dict[str, Any]:
        """Collect the settings and files that determine a slide's output files, given its cells."""
        config = self.config
        names = ("bounds", "ratio", "compress", "csv", "parquet", "report")
        options = json.loads(json.dumps({name: getattr(config, name) for name in names}))
        if config.min_distance_um:
            options["min_distance_um"] = config.min_distance_um
        if patient:
            options["patient"] = patient
        return {**options, "annotations": digest_of(annotations) if annotations else None}


def make_plan(config: PredictConfig, device: str | None) -> PredictPlan:
    """Load the detector and parse the ratios.

    Raises:
        UserError: an option makes no sense, or the detector cannot be used.
    """
    check(config)
    detector = LoadedDetector.load(config.detector, device)
    tiling_of((1, 1), detector.network.config, detector.tile, config.tile, config.margin)
    ratios = parse_ratios(config.ratio, detector.classes, columns_of(detector.classes))
    selection = Selection(resolve_threshold(config.threshold, detector), config.probabilities)
    return PredictPlan(
        config,
        detector,
        digest_of(shipped_or_given(config.detector)),
        ratios,
        selection,
        read_patients(config.patients),
    )


def digest_of(path: Path) -> str:
    """Short SHA-256 of a file."""
    return sha256(path)[:16]


def refuse_other_key(before: Mapping[str, Any], now: Mapping[str, Any], what: Path) -> None:
    """Refuse to mix cells of different settings.

    Raises:
        UserError: they were made by another detector or with other settings.
    """
    for name in (*now, *(before.keys() - now.keys())):
        if before.get(name) != now.get(name):
            raise UserError(
                f"{what} was made with another {name.replace('_', ' ')}; give another --out, or remove it"
            )
