"""Write the files of one slide from its cells."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune.predict.config import PredictConfig
from finetune.predict.outputs.cell_counts import count_cells, results
from finetune.predict.outputs.cell_files import Rows, write_csv, write_geojson, write_parquet
from finetune.predict.outputs.cell_pictures import Painter
from finetune.predict.outputs.output_names import (
    CSV,
    DENSITY,
    GEOJSON,
    PARQUET,
    REGIONS,
    REPORT,
    SUMMARY,
    file_of,
)
from finetune.predict.outputs.own_files import OwnFiles
from finetune.predict.outputs.ratios import Ratio
from finetune.predict.outputs.slide_page import Report, write_report
from finetune.predict.search.area import Area
from finetune.predict.search.cell_store import Progress, StoredCells
from finetune.predict.search.tiling import Tiling
from shared.cli import as_plain
from shared.files import atomic_path, sha256, write_json
from shared.model.cells import Cells
from shared.model.detector_file import LoadedDetector
from shared.training.run_folder import provenance
from shared.wsi.image_source import ImageSource


@dataclass(frozen=True)
class Outputs:
    """Slide whose cells are found, and what its files need."""

    config: PredictConfig
    detector: LoadedDetector
    ratios: tuple[Ratio, ...]
    path: Path
    stem: Path
    source: ImageSource
    area: Area
    cells: StoredCells
    corner: tuple[int, int]
    """QuPath's origin, px of level 0."""
    tiling: Tiling
    patient: str = ""
    """Patient of the slide; empty if not stated."""

    @property
    def offset(self) -> tuple[int, int]:
        """Origin of the coordinates in all files, px of level 0."""
        return self.corner if self.config.bounds else (0, 0)

    def chunks(self) -> Iterator[Rows]:
        """Yield the cells in px as written."""
        scale = self.detector.mpp / self.source.mpp
        for cells in self.cells.chunks():
            points_N2 = np.stack([cells["x"], cells["y"]], axis=1) * scale - self.offset
            labels_N = cells["label"].astype(np.int64)
            others = cells["probabilities"][:, :-1] if self.config.probabilities else None
            yield Rows(points_N2, self.source.mpp, labels_N, cells["probability"], cells["tile"], others)

    @property
    def own(self) -> OwnFiles:
        """Files of earlier predictions, and where new ones are staged."""
        return OwnFiles(self.stem)

    def file(self, ending: str) -> Path:
        """Path at which NAME.ending is staged."""
        return file_of(self.own.stage / self.stem.name, ending)


def endings_of(config: PredictConfig) -> list[str]:
    """List the endings of the files that a prediction may write, the summary last."""
    chosen = [(CSV, config.csv), (PARQUET, config.parquet)]
    pictures = [DENSITY, REGIONS, REPORT] if config.report else []
    return [GEOJSON[config.compress], *(ending for ending, wanted in chosen if wanted), *pictures, SUMMARY]


def write_outputs(
    outputs: Outputs, annotated: Cells | None, known: Progress, asked: int, made_with: dict[str, Any]
) -> dict[str, Any]:
    """Write all files of a slide and return its summary; files of an earlier prediction are replaced together.

    Raises:
        UserError: the disk is full, or a file of a user's would be replaced.
    """
    endings = _write_cells(outputs)
    counts = count_cells(outputs.chunks(), outputs.detector.classes, outputs.area.mm2)
    summary = {
        "slide": str(outputs.path),
        **({"patient": outputs.patient} if outputs.patient else {}),
        **results(counts, outputs.area, outputs.ratios),
        "slide_mpp": outputs.source.mpp,
        "detector": str(outputs.config.detector),
        "detector_mpp": outputs.detector.mpp,
        "px_origin": list(outputs.offset),
        "tiles": {"asked": asked, "of": len(outputs.tiling), "core_px": outputs.tiling.core},
        "unreadable": list(known.failures),
        "seconds": round(known.seconds, 1),
        "made_with": made_with,
        "config": as_plain(outputs.config),
        **provenance(),
    }
    if outputs.config.report:
        endings += _draw(outputs, annotated, summary)
    summary["files"] = {ending: sha256(outputs.file(ending)) for ending in endings}
    write_json(outputs.file(SUMMARY), summary)
    outputs.own.publish([*endings, SUMMARY])
    return summary


def _write_cells(outputs: Outputs) -> list[str]:
    """Stage the tables of cells; returns their endings."""
    config, classes = outputs.config, outputs.detector.classes
    endings = [GEOJSON[config.compress]]
    write_geojson(outputs.file(endings[0]), outputs.chunks, classes)
    if config.csv:
        write_csv(outputs.file(CSV), outputs.chunks, classes, config.probabilities)
        endings.append(CSV)
    if config.parquet:
        write_parquet(outputs.file(PARQUET), outputs.chunks, classes, config.probabilities)
        endings.append(PARQUET)
    return endings


def _draw(outputs: Outputs, annotated: Cells | None, summary: dict[str, Any]) -> list[str]:
    """Stage density, regions (if there are cells) and report; returns the endings of their files."""
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
