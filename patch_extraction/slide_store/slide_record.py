"""What came of one slide: `slides/SLIDE_ID.json`, written when the slide's tar is whole."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patch_extraction.config import SlideEntry
from patch_extraction.slide_store.file_names import tar_path
from patch_extraction.slide_store.fingerprint import fingerprint, is_sampled, last_change
from shared.files import write_json
from shared.wsi.slide import Slide, SlideError

LONGEST_STEM = 64  # so that keys stay below 100 characters, what a plain tar header holds
HARVESTED, NO_PATCH, FAILED, KEPT, DUPLICATE = "harvested", "no patch", "failed", "kept", "duplicate"
BIN = 10  # cells: width of a bar in the histograms


@dataclass(frozen=True)
class Record:
    """What came of one slide; the fields are the columns of `slides.csv`."""

    slide: str
    slide_id: str
    biomarker: str
    # HARVESTED, NO_PATCH, FAILED; KEPT: from an earlier run, not among this run's slides; DUPLICATE: another
    # slide is the same file.
    status: str
    reason: str = ""  # why it failed or gave no patch
    warning: str = ""
    slide_mpp: float | None = None
    mpp_source: str = ""
    tissue_mm2: float = 0.0
    candidates: int = 0  # places on tissue
    screened: int = 0  # of these, not refused by the screen; it does not look where that would not pay
    counted: int = 0  # of these, counted exactly
    unreadable: int = 0  # of these, could not be decoded
    kept: int = 0
    seconds: float = 0.0
    bytes: int = 0
    sha256: str = ""
    # Sums over the kept patches' pixels (0..255) and their squares, for mean and standard deviation.
    pixel_sums: tuple[tuple[int, ...], tuple[int, ...]] = ((0, 0, 0), (0, 0, 0))
    histogram: tuple[int, ...] = ()  # places counted, by BIN cells
    source_bytes: int = 0
    source_changed: int = 0  # when the slide's file was last written, ns
    fingerprint: str = ""  # of the slide's file
    quickhash: str = ""  # OpenSlide's, of the slide's smallest level and description
    wsi_dir: str = ""  # where the slide was found
    settings: Mapping[str, Any] = field(default_factory=dict)


def slide_id(name: str) -> str:
    """A slide's name in keys and files: no dot, told apart from slides of the same name in other folders.

    Args:
        name: Path of the slide below --wsi-dir, with "/".
    """
    stem = Path(name).stem[:LONGEST_STEM]
    digest = hashlib.sha256(name.encode()).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9-]', '_', stem)}_{digest[:8]}"


def write_record(out: Path, record: Record) -> None:
    """Store a record beside the slide's tar."""
    write_json(tar_path(out, record.slide_id).with_suffix(".json"), dataclasses.asdict(record))


def finished(out: Path, source: SlideEntry) -> Record | None:
    """The record of a slide that is done: its tar is whole and the slide what it was; else None.

    A slide that cannot be looked at now, as on a disk that is not mounted, does not undo what was harvested from
    it. The settings are not compared; that is for the caller, who must not redo silently.
    """
    path = tar_path(out, source.slide_id)
    record = read_record(path.with_suffix(".json"))
    if record is None:
        return None
    return record if _size(path) == record.bytes and _unchanged(source, record) else None


def _unchanged(source: SlideEntry, record: Record) -> bool:
    """Return whether a slide is the one that was harvested, or is inaccessible.

    A file with another date is the same if its fingerprint is and, where this covers samples, um/px and quickhash.
    """
    try:
        if source.path.stat().st_size != record.source_bytes:
            return False
        if last_change(source.path) == record.source_changed:
            return True
        if record.fingerprint and fingerprint(source.path) != record.fingerprint:
            return False
        if record.fingerprint and not is_sampled(record.source_bytes):
            return True
        with Slide(source.path, source.slide_mpp, source.settings.get("trust_objective", False)) as slide:
            mpp, quickhash = round(slide.mpp, 6), slide.quickhash
    except OSError:
        return True
    except SlideError:
        return not record.fingerprint  # one of many files, the others of which may be inaccessible
    return mpp == record.slide_mpp and quickhash == (record.quickhash or quickhash)


def _size(path: Path) -> int | None:
    """Bytes of a file; None where it cannot be looked at."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def read_record(path: Path) -> Record | None:
    """Return a stored record; None if it is absent, cut short, of another version, or not that of its file name.

    The name matters because files are read and removed by `slide_id`, which must not point out of the folder.
    """
    try:
        record = Record(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return record if record.slide_id == path.stem else None
