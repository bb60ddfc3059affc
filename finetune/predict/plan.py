"""What holds for all slides of a prediction: the detector, the ratios, and what results depend on."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.predict.config import PredictConfig, check
from finetune.predict.outputs.ratios import Ratio, parse_ratio
from finetune.predict.search.tiling import Tiling, tiling_of
from shared.errors import UserError
from shared.model.detector_file import LoadedDetector
from shared.wsi.image_source import ImageSource, size_at


@dataclass(frozen=True)
class PredictPlan:
    """What holds for all slides."""

    config: PredictConfig
    detector: LoadedDetector
    detector_digest: str
    ratios: tuple[Ratio, ...]

    def tiling(self, source: ImageSource) -> Tiling:
        """The tiles of a source."""
        config, detector = self.config, self.detector
        size = size_at(source, detector.mpp)
        return tiling_of(*size, detector.network.config, detector.tile, config.tile, config.margin)

    def key(self, path: Path, regions: Path | None) -> dict[str, Any]:
        """What the cells of a slide depend on."""
        config, stat = self.config, path.stat()
        return {
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

    def output_key(self, annotations: Path | None) -> dict[str, Any]:
        """What else the files depend on."""
        config = self.config
        names = ("bounds", "ratio", "compress", "csv", "parquet", "report")
        options = json.loads(json.dumps({name: getattr(config, name) for name in names}))
        return {**options, "annotations": digest_of(annotations) if annotations else None}


def make_plan(config: PredictConfig, device: str | None) -> PredictPlan:
    """Load the detector and read the ratios.

    Raises:
        UserError: an option makes no sense, or the detector cannot be used.
    """
    check(config)
    detector = LoadedDetector.load(config.detector, device)
    tiling_of(1, 1, detector.network.config, detector.tile, config.tile, config.margin)
    ratios = tuple(parse_ratio(line, detector.classes) for line in config.ratio)
    return PredictPlan(config, detector, digest_of(config.detector), ratios)


def digest_of(path: Path) -> str:
    """Tells one content of a file from another."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def refuse_other_key(before: Mapping[str, Any], now: Mapping[str, Any], what: Path) -> None:
    """Compare what cells depend on.

    Raises:
        UserError: they were made by another detector or with other settings.
    """
    for name in now:
        if before.get(name) != now[name]:
            raise UserError(
                f"{what} was made with another {name.replace('_', ' ')}; give another --out, or remove it"
            )
