"""One slide's patches on disk: `slides/SLIDE_ID.tar`, and beside it `SLIDE_ID.json`, written when it is whole.

The JSON file is the slide's record: what was found, with which settings, and the tar's size and SHA-256. A tar
without a matching record counts for nothing and is made again.
"""

import dataclasses
import hashlib
import io
import itertools
import json
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import simplejpeg

from patch_extraction.config import Source
from patch_extraction.slide_store.fingerprint import fingerprint
from shared.files import atomic_path, write_json

QUALITY = 90  # of the patches' JPEG, chroma halved: the contract of the shards
COPY_BYTES = 1 << 20  # a patch is written in one go
LONGEST_STEM = 64  # so that keys stay below 100 characters, what a plain tar header holds
ROWS = 128  # at a time: the sums of their bytes fit into 16 bits, and all of it into the processor's cache
Span = tuple[int, int]  # offset and size in a tar
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


def tar_path(out: Path, source_id: str) -> Path:
    """Where a slide's patches lie."""
    return out / "slides" / f"{source_id}.tar"


class SlideTar:
    """Writes a slide's patches; used as a context, the tar takes its place when the block ends well."""

    def __init__(self, path: Path) -> None:
        self._place = atomic_path(path)

    def __enter__(self) -> "SlideTar":
        self._path = self._place.__enter__()
        self._tar = tarfile.TarFile(self._path, "w", format=tarfile.USTAR_FORMAT, copybufsize=COPY_BYTES)
        self._sums_3 = np.zeros(3, np.int64)
        self._squares_3 = np.zeros(3, np.int64)
        self.facts: dict[str, Any] = {}  # of the record; known once the tar is closed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tar.close()
        if error is None:
            with self._path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            sums = (tuple(self._sums_3.tolist()), tuple(self._squares_3.tolist()))
            self.facts = {"bytes": self._path.stat().st_size, "sha256": sha256, "pixel_sums": sums}
        self._place.__exit__(kind, error, trace)

    def add(self, key: str, patch_HW3: np.ndarray, fields: Mapping[str, Any]) -> None:
        """Append `KEY.jpg` and `KEY.json`; the patch is uint8 RGB."""
        add_member(self._tar, f"{key}.jpg", as_jpeg(patch_HW3))
        add_member(self._tar, f"{key}.json", json.dumps(fields, ensure_ascii=False).encode())
        sums_3, squares_3 = pixel_sums(patch_HW3)
        self._sums_3 += sums_3
        self._squares_3 += squares_3


def as_jpeg(patch_HW3: np.ndarray) -> bytes:
    """A patch as it is stored; not by Pillow, which first copies it into a form of its own."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(patch_HW3), QUALITY, "RGB", "420")


def pixel_sums(patch_HW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the px of each channel, and of their squares; in types as small as they may be, which is fast."""
    rows_HN = patch_HW3.reshape(len(patch_HW3), -1)
    sums_N, squares_N = np.zeros((2, rows_HN.shape[1]), np.int64)
    for start in range(0, len(rows_HN), ROWS):
        part_HN = rows_HN[start : start + ROWS].astype(np.uint16)
        sums_N += part_HN.sum(axis=0, dtype=np.uint16)
        part_HN *= part_HN
        squares_N += part_HN.sum(axis=0, dtype=np.uint32)
    return sums_N.reshape(-1, 3).sum(axis=0), squares_N.reshape(-1, 3).sum(axis=0)


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Append a file whose header says nothing of time and user, so that equal content makes equal tars."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_record(out: Path, record: Record) -> None:
    """Store a record beside the slide's tar."""
    write_json(tar_path(out, record.slide_id).with_suffix(".json"), dataclasses.asdict(record))


def finished(out: Path, source: Source) -> Record | None:
    """The record of a slide that is done: its tar is whole and the slide what it was; else None.

    A slide that cannot be looked at now, as on a disk that is not mounted, does not undo what was harvested from
    it. The settings are not compared; that is for the caller, who must not redo silently.
    """
    path = tar_path(out, source.slide_id)
    record = read_record(path.with_suffix(".json"))
    if record is None:
        return None
    return record if _size(path) == record.bytes and _unchanged(source.path, record) else None


def _unchanged(slide: Path, record: Record) -> bool:
    """Whether a slide is the file that was harvested, be it with another date, or cannot be looked at."""
    try:
        status = slide.stat()
        if status.st_size != record.source_bytes:
            return False
        if status.st_mtime_ns == record.source_changed or not record.fingerprint:
            return True
        return fingerprint(slide) == record.fingerprint
    except OSError:
        return True


def _size(path: Path) -> int | None:
    """Bytes of a file; None where it cannot be looked at."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def read_record(path: Path) -> Record | None:
    """A stored record, or None where it is absent, cut short, or of another version."""
    try:
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def members(file: BinaryIO, most: int | None = None) -> list[tuple[str, Span]]:
    """Name and place of every member (or the first `most`) of an open tar."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        first = itertools.islice(tar, most)
        return [(member.name, (member.offset_data, member.size)) for member in first]


def read_at(file: BinaryIO, span: Span) -> bytes:
    """The bytes of a member."""
    file.seek(span[0])
    return file.read(span[1])
