"""Options of suggestions; without torch, as the other commands of `finetune.datasets`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from shared.cli import Range, check_range, require_paths, validate
from shared.errors import UserError
from shared.wsi.resolution import MPP_RANGE


@dataclass(frozen=True, kw_only=True)
class Suggest:
    """Choose the regions of slides most worth annotating: uncertain to the detector, and unlike each other.

    For each slide, OUT/NAME.geojson holds rectangles of class Region* and the cells predicted inside, for QuPath.
    """

    help_groups: ClassVar = {
        "detector": "input",
        "out": "output",
        "per_slide": "selection",
        "slide_mpp": "input",
        "batch_size": "run",
    }

    detector: tyro.conf.Positional[Path]
    """Detector file (finetune writes detector.pth), or nuclei, the one that comes with this package."""
    slides: tyro.conf.Positional[tuple[Path, ...]]
    """Slides, images, or folders of them."""
    out: Path = Path("suggestions")
    """Output folder of NAME.geojson; new or empty."""
    per_slide: Annotated[int, Range(1, 10_000)] = 5
    """Regions of a slide."""
    side_um: Annotated[float, Range(10, 2000)] = 128.0
    """Side of a region, um; the nearest that the detector's grids allow (a ViT's are as large as its tiles)."""
    candidates: Annotated[int, Range(1, 10**6)] = 400
    """Regions that are looked at on the tissue of a slide, drawn at random."""
    annotated: Path | None = None
    """Regions that are annotated already (GeoJSON, or a folder of NAME.geojson); none is suggested there."""
    threshold: str = "paper"
    """Rule by which a proposal is a cell, as of finetune.predict: paper, best or a probability."""
    slide_mpp: Annotated[float | None, Range(*MPP_RANGE)] = None
    """um/px of level 0, for slides and images that state none or a wrong one."""
    bounds: bool = True
    """Count px from the corner of the scanned area, as QuPath does; off: from the corner of the slide."""
    batch_size: Annotated[int, Range(1, 4096)] = 4
    """Regions per batch."""
    workers: Annotated[int, Range(0, 256)] = 2
    """Processes that read regions ahead."""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    """Seed of the candidates."""


def check(config: Suggest) -> None:
    """Validate the options.

    Raises:
        UserError: names the option and what it takes.
    """
    if not config.slides:
        raise UserError("there is nothing to choose from; give slides or folders after the detector")
    validate(config)
    check_range("candidates", config.candidates, config.per_slide, 10**6)
    require_paths(annotated=config.annotated)
    if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        raise UserError(f"--out {config.out} exists already; give a new folder, or remove it")
