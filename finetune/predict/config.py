"""What a prediction is asked to do."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from shared.cli import check_range
from shared.errors import UserError
from shared.training.precision import Precision
from shared.wsi.resolution import MPP_RANGE


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Find the cells of slides and images; write them for QuPath, spreadsheets and people.

    The same command goes on where it was interrupted, and repeats nothing that is done.
    """

    detector: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DETECTOR")]
    """Detector file (finetune writes detector.pth)."""
    sources: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SLIDE_OR_IMAGE_OR_DIR ...")]
    """Slides that OpenSlide reads, PNG, JPEG or TIFF images, or folders of them."""
    out: Path = Path("cells")
    """Where NAME.geojson, NAME.csv, NAME.summary.json, pictures and NAME.html are written."""
    slide_mpp: float | None = None
    """um/px of level 0, for slides that do not say it or say it wrongly, and for images."""
    everywhere: bool = False
    """Look at the whole slide, not just at its tissue (of an image always all is looked at)."""
    regions: Path | None = None
    """Look only inside the polygons of QuPath's GeoJSON; a folder of NAME.geojson for several slides."""
    region_class: str | None = None
    """Take only the regions of this class."""
    annotations: Path | None = None
    """Annotated cells (GeoJSON, or a folder of NAME.geojson), to be shown beside the predicted ones."""
    bounds: bool = True
    """Count px from the corner of what was scanned, as QuPath does; off: from that of the slide."""
    ratio: tuple[str, ...] = ()
    """Such as "Ki-67 = positive / (positive + negative)", also of cells, mm2; classes like "1" in quotes."""
    tile: int | None = None
    """Px that the network sees at a time along a side; the result hardly depends on it (default 1024)."""
    margin: int | None = None
    """Px of a tile's sides that are only looked at, its neighbours answering for them (default 128)."""
    batch_size: int = 4
    """Tiles at a time."""
    workers: int = 2
    """Processes that read ahead."""
    precision: Precision = "auto"
    """Of convolutions and matrix products: float32, bfloat16, or auto: bfloat16 on a GPU."""
    compress: Literal["no", "zip", "gzip"] = "no"
    """The GeoJSON: to NAME.zip, which QuPath opens as it is, or to NAME.geojson.gz, which it does not."""
    csv: bool = True
    """Write the table of cells."""
    parquet: bool = False
    """Write the table of cells as Parquet, too (needs pyarrow)."""
    report: bool = True
    """Write the pictures and the HTML report."""
    part: str | None = None
    """I/N, as 3/16: look only at this part of the slides, other processes looking at the others."""


def check(config: PredictConfig) -> None:
    """Refuse numbers and options that make no sense.

    Raises:
        UserError: names the option and what it takes.
    """
    if not config.sources:
        raise UserError("there is nothing to look at; give slides, images or folders after the detector")
    check_range("slide-mpp", config.slide_mpp, *MPP_RANGE)
    check_range("tile", config.tile, 64, 2**15)
    check_range("margin", config.margin, 0, 2**14)
    check_range("batch-size", config.batch_size, 1, 4096)
    check_range("workers", config.workers, 0, 256)
    if config.everywhere and config.regions:
        raise UserError("--everywhere and --regions exclude each other; give one of them")
    if config.region_class is not None and config.regions is None:
        raise UserError("--region-class chooses among regions; give them with --regions")
    for option, path in (("regions", config.regions), ("annotations", config.annotations)):
        if path is not None and not path.exists():
            raise UserError(f"there is no file or folder --{option} {path}; check the path")
    if config.parquet:
        import_parquet()


def import_parquet() -> tuple[Any, Any]:
    """The two modules of pyarrow that are needed.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise UserError("--parquet needs the package pyarrow; install it: pip install pyarrow") from error
