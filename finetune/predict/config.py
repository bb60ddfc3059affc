"""Options of a prediction."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from shared.cli import Range, require_paths, validate
from shared.errors import UserError
from shared.training.precision import Precision
from shared.wsi.resolution import MPP_RANGE


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Find the cells of slides and images; write them for QuPath, as tables and as pages to read.

    Interrupted, the same command resumes and repeats nothing that is done.
    """

    help_groups: ClassVar = {
        "detector": "input",
        "out": "output",
        "slide_mpp": "input",
        "ratio": "output",
        "threshold": "detection",
        "batch_size": "run",
        "compress": "output",
        "part": "run",
    }

    detector: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DETECTOR")]
    """Detector file (finetune writes detector.pth), or nuclei, the one that comes with this package."""
    sources: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SLIDE_OR_IMAGE_OR_DIR ...")]
    """Slides that OpenSlide reads, PNG, JPEG or TIFF images, or folders of them."""
    out: Path = Path("cells")
    """Output folder: NAME.geojson, NAME.csv, NAME.summary.json, pictures and NAME.html of every slide."""
    slide_mpp: Annotated[float | None, Range(*MPP_RANGE)] = None
    """um/px of level 0, for slides and images that state none or a wrong one."""
    everywhere: bool = False
    """Predict on the whole slide instead of its tissue (images are always processed in full)."""
    regions: Path | None = None
    """Predict only inside the polygons of QuPath's GeoJSON; for several slides a folder of NAME.geojson."""
    region_class: str | None = None
    """Use only regions of this class."""
    annotations: Path | None = None
    """Annotated cells (GeoJSON, or a folder of NAME.geojson) to draw beside the predicted ones."""
    patients: Path | None = None
    """CSV with the columns `slide` and `patient` (a harvest's list): also write patients.csv, a row for each."""
    bounds: bool = True
    """Count px from the corner of the scanned area, as QuPath does; off: from the corner of the slide."""
    ratio: tuple[str, ...] = ()
    """Ratio to report, e.g. "Ki-67 = positive / (positive + negative)"; `cells` and `mm2` are known, too."""
    threshold: str = "paper"
    """Rule by which a proposal is a cell: paper (a class is more probable than background), a least probability of
    its class, or best (the least probability that was best on validation, stored in the detector)."""
    min_distance_um: Annotated[float, Range(0, 100)] = 0.0
    """Least distance of two cells of any class, um; the more probable one is kept."""
    tile: Annotated[int | None, Range(64, 2**15)] = None
    """Side of a tile (px, default 1024); memory grows with it, the result hardly changes."""
    margin: Annotated[int | None, Range(0, 2**14)] = None
    """Overlap on each side of a tile (px, default 128): context, whose cells the neighbouring tile reports."""
    batch_size: Annotated[int, Range(1, 4096)] = 4
    """Tiles per batch."""
    workers: Annotated[int, Range(0, 256)] = 2
    """Processes that read tiles ahead."""
    precision: Precision = "auto"
    """Precision of convolutions and matrix products; auto: bfloat16 on a GPU, else float32."""
    compress: Literal["no", "zip", "gzip"] = "no"
    """Compress the GeoJSON to NAME.zip, which QuPath opens, or to NAME.geojson.gz, which it does not."""
    csv: bool = True
    """Write the table of cells."""
    parquet: bool = False
    """Also write the table of cells as Parquet (needs pyarrow)."""
    probabilities: bool = False
    """Add the probability of every class to the tables of cells."""
    report: bool = True
    """Write the pictures and the HTML report."""
    part: str | None = None
    """Part of the slides for this process, I/N, e.g. 3/16; other processes take the others."""


def check(config: PredictConfig) -> None:
    """Validate the options.

    Raises:
        UserError: names the option and what it takes.
    """
    if not config.sources:
        raise UserError("there is nothing to predict; give slides, images or folders after the detector")
    validate(config)
    if config.everywhere and config.regions:
        raise UserError("--everywhere and --regions exclude each other; give one of them")
    if config.region_class is not None and config.regions is None:
        raise UserError("--region-class chooses among regions; give them with --regions")
    require_paths(regions=config.regions, annotations=config.annotations, patients=config.patients)
    if config.parquet:
        import_parquet()


def import_parquet() -> tuple[Any, Any]:
    """Import the two modules of pyarrow that write Parquet.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise UserError("--parquet needs the package pyarrow; install it: pip install pyarrow") from error
