"""Record of a slide, `slides/SLIDE_ID.json`: its outcome, written once its tar is complete."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patch_extraction.slide_store.file_names import SLIDES, record_path
from shared.files import write_json

MAX_STEM = 64  # characters; keys then have fewer than 100, the limit of a plain tar header
HARVESTED, NO_PATCH, FAILED, KEPT, DUPLICATE = "harvested", "no patch", "failed", "kept", "duplicate"
BIN = 10  # cells per bar of the histograms


@dataclass(frozen=True)
class Record:
    """Outcome of one slide; most fields are columns of `slides.csv`."""

    slide: str
    slide_id: str
    biomarker: str
    # KEPT: harvested by an earlier run and not among the slides of this one. DUPLICATE: equal to another slide.
    status: str
    reason: str = ""  # of a failure, or of a slide without patches
    warning: str = ""
    slide_mpp: float | None = None
    mpp_source: str = ""
    tissue_mm2: float = 0.0
    candidates: int = 0  # grid cells on tissue
    screened: int = 0  # of these, passed by the screen or not screened
    counted: int = 0  # of these, counted exactly
    unreadable: int = 0  # of these, not decodable
    kept: int = 0
    focus: float | None = None  # median over the places with enough cells
    blurred: float = 0.0  # share of these that was left out
    seconds: float = 0.0
    bytes: int = 0
    sha256: str = ""
    # Sums of the pixels of the kept patches (0..255) and of their squares, for mean and standard deviation.
    pixel_sums: tuple[tuple[int, ...], tuple[int, ...]] = ((0, 0, 0), (0, 0, 0))
    histogram: tuple[int, ...] = ()  # counted grid cells by cells, BIN per bar
    source_bytes: int = 0
    source_changed: int = 0  # modification time of the slide's file, ns
    fingerprint: str = ""  # of the slide's file
    quickhash: str = ""  # OpenSlide's, of the slide's smallest level and description
    wsi_dir: str = ""  # folder of slides
    columns: Mapping[str, str] = field(default_factory=dict)  # further columns of --slides
    settings: Mapping[str, Any] = field(default_factory=dict)


def slide_id(name: str) -> str:
    """Return a slide's name in keys and files: without dots, and unique to its folder.

    Args:
        name: Path of the slide below --wsi-dir, with "/".
    """
    stem = Path(name).stem[:MAX_STEM]
    digest = hashlib.sha256(name.encode()).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9-]', '_', stem)}_{digest[:8]}"


def write_record(out: Path, record: Record) -> None:
    """Store a record beside the slide's tar."""
    write_json(record_path(out, record.slide_id), dataclasses.asdict(record))


def read_record(path: Path) -> Record | None:
    """Read a record; None if it is absent, cut short, of another version, or not that of its file name.

    The name matters because files are read and removed by `slide_id`, which must not lead out of the folder.
    """
    try:
        record = Record(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return record if record.slide_id == path.stem else None


def read_records(out: Path) -> list[Record]:
    """Read all records of an output folder."""
    records = [read_record(path) for path in sorted((out / SLIDES).glob("*.json"))]
    return [record for record in records if record is not None]
