"""The files of one slide, from its cells."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune.predict.config import PredictConfig
from finetune.predict.outputs.file_names import (
    CSV,
    DENSITY,
    ENDINGS,
    GEOJSON,
    PARQUET,
    REGIONS,
    REPORT,
    SUMMARY,
    file_of,
)
from finetune.predict.outputs.pictures import Painter
from finetune.predict.outputs.ratios import Ratio
from finetune.predict.outputs.report import Report, write_report
from finetune.predict.outputs.summary import count_cells, results
from finetune.predict.outputs.writers import Rows, write_csv, write_geojson, write_parquet
from finetune.predict.search.area import Area
from finetune.predict.search.cell_store import Progress, StoredCells
from finetune.predict.search.tiling import Tiling
from shared.cli import as_plain
from shared.files import atomic_path, write_json
from shared.model.cells import CellSet
from shared.model.detector_file import LoadedDetector
from shared.training.run_folder import provenance
from shared.wsi.image_source import ImageSource


@dataclass(frozen=True)
class Outputs:
    """A slide whose cells are all found."""

    config: PredictConfig
    detector: LoadedDetector
    ratios: tuple[Ratio, ...]
    path: Path
    stem: Path
    source: ImageSource
    area: Area
    cells: StoredCells
    corner: tuple[int, int]
    """Where QuPath counts from, px of level 0."""
    tiling: Tiling

    @property
    def offset(self) -> tuple[int, int]:
        """What is taken away from px of level 0 in all files."""
        return self.corner if self.config.bounds else (0, 0)

    def chunks(self) -> Iterator[Rows]:
        """The cells as they are written."""
        scale = self.detector.mpp / self.source.mpp
        for cells in self.cells.chunks():
            points_N2 = np.stack([cells["x"], cells["y"]], axis=1) * scale - self.offset
            labels_N = cells["label"].astype(np.int64)
            yield Rows(points_N2, self.source.mpp, labels_N, cells["probability"], cells["tile"])

    def file(self, ending: str) -> Path:
        """NAME.ending below --out."""
        return file_of(self.stem, ending)


def write_outputs(
    outputs: Outputs, annotated: CellSet | None, known: Progress, asked: int, made_with: dict[str, Any]
) -> dict[str, Any]:
    """Write everything, the summary last; returns it. What another prediction has written is removed before.

    Raises:
        UserError: the disk is full.
    """
    config, classes = outputs.config, outputs.detector.classes
    if outputs.file(SUMMARY).exists():  # else a table of this name is somebody else's
        for ending in ENDINGS:
            outputs.file(ending).unlink(missing_ok=True)
    endings = [GEOJSON[config.compress]]
    write_geojson(outputs.file(endings[0]), outputs.chunks, classes)
    if config.csv:
        write_csv(outputs.file(CSV), outputs.chunks, classes)
        endings.append(CSV)
    if config.parquet:
        write_parquet(outputs.file(PARQUET), outputs.chunks, classes)
        endings.append(PARQUET)
    counts = count_cells(outputs.chunks(), classes, outputs.area.mm2)
    summary = {
        "slide": str(outputs.path),
        **results(counts, outputs.area, outputs.ratios),
        "slide_mpp": outputs.source.mpp,
        "detector": str(config.detector),
        "detector_mpp": outputs.detector.mpp,
        "px_origin": list(outputs.offset),
        "tiles": {"asked": asked, "of": len(outputs.tiling), "core_px": outputs.tiling.core},
        "unreadable": list(known.failures),
        "seconds": round(known.seconds, 1),
        "made_with": made_with,
        "config": as_plain(config),
        **provenance(),
    }
    if config.report:
        endings += _draw(outputs, annotated, summary)
    summary["files"] = endings
    write_json(outputs.file(SUMMARY), summary)
    return summary


def _draw(outputs: Outputs, annotated: CellSet | None, summary: dict[str, Any]) -> list[str]:
    """Density, regions where there are any to show, report; returns their files' endings."""
    classes = outputs.detector.classes
    painter = Painter(outputs.source, outputs.chunks, outputs.offset, classes, outputs.area)
    density = painter.density_sheet()
    regions = painter.region_sheet(annotated)
    _save(density, outputs.file(DENSITY))
    if regions is not None:
        _save(regions, outputs.file(REGIONS))
    write_report(
        outputs.file(REPORT),
        Report(summary, outputs.source, outputs.chunks, outputs.offset, classes),
        density,
        regions,
    )
    return [DENSITY, REPORT] if regions is None else [DENSITY, REGIONS, REPORT]


def _save(picture: Image.Image, path: Path) -> None:
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")
