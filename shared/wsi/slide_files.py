"""Slides below a folder: formats recognised by their endings and, for unusual endings, by content."""

import os
import stat
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import openslide

from shared.errors import UserError
from shared.files import printable
from shared.wsi.dicom import DICOM_MAGIC, MAGIC_OFFSET, series_of
from shared.wsi.tiff_faults import MAGIC as TIFF_MAGIC

# Endings of the formats that OpenSlide 4 reads.
SUFFIXES = frozenset(
    (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".czi", ".dcm")
)
# Endings of downloads and copies in progress, which begin like whole files.
UNFINISHED = frozenset((".part", ".partial", ".crdownload", ".download", ".filepart", ".tmp"))
MOST_ENDINGS = 5  # named in a summary


@dataclass(frozen=True)
class SlideListing:
    """The content of a folder of slides."""

    slides: list[Path] = field(default_factory=list)
    """Sorted; the first file of a DICOM series represents the slide."""
    unlisted: list[str] = field(default_factory=list)
    """A sentence for each folder that cannot be listed."""
    passed_over: list[Path] = field(default_factory=list)
    """Visible files that OpenSlide does not read as slides."""


def find_slides(folder: Path) -> list[Path]:
    """Return the slides of `list_slides`."""
    return list_slides(folder).slides


def list_slides(folder: Path) -> SlideListing:
    """List the slides below a folder, following links; hidden files are left out.

    Folders that cannot be listed are also reported on stderr.

    Raises:
        UserError: there is no such folder, or it cannot be listed itself.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file; give its folder")
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; check the path")
    listing = SlideListing()
    for parent, names in _walk(folder, listing.unlisted):
        kinds = {parent / name: _kind(parent / name) for name in names}
        dicom = [path for path, kind in kinds.items() if kind == "dicom"]
        listing.slides.extend(path for path, kind in kinds.items() if kind == "slide")
        # Files without a series are taken for one slide.
        listing.slides.extend({series_of(path): path for path in reversed(dicom)}.values())
        if not parent.with_name(f"{parent.name}.mrxs").is_file():  # the folder of a MIRAX slide's own files
            listing.passed_over.extend(path for path, kind in kinds.items() if not kind)
    listing.slides.sort()
    return listing


def by_ending(paths: Sequence[Path]) -> str:
    """Summarise files by their endings, the most frequent first: `3 .xml, 1 .gz`."""
    counts = Counter(sorted(path.suffix.lower() or "no ending" for path in paths)).most_common()
    others = sum(count for _, count in counts[MOST_ENDINGS:])
    named = [f"{count} {printable(ending)}" for ending, count in counts[:MOST_ENDINGS]]
    return ", ".join([*named, *([f"{others} others"] if others else [])])


def _kind(path: Path) -> str:
    """Return "slide", "dicom", or "" for other files."""
    suffix = path.suffix.lower()
    if suffix == ".dcm":
        return "dicom"
    if suffix in SUFFIXES:
        return "slide"
    if suffix in UNFINISHED:
        return ""
    start = _start(path)
    if start[MAGIC_OFFSET:] == DICOM_MAGIC:
        return "dicom"
    return "slide" if start[:4] in TIFF_MAGIC and openslide.OpenSlide.detect_format(path) else ""


def _start(path: Path) -> bytes:
    """Return the first bytes of a regular file; none of others, as opening a pipe would block."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return b""
        with path.open("rb") as file:
            return file.read(MAGIC_OFFSET + len(DICOM_MAGIC))
    except OSError:
        return b""


def _walk(folder: Path, unlisted: list[str]) -> Iterator[tuple[Path, list[str]]]:
    """Yield every folder from `folder` downwards with the names of its visible files; each real folder once."""

    def refused(error: OSError) -> None:
        sentence = printable(f"{error.filename} cannot be listed: {error.strerror}")
        if Path(error.filename) == folder:
            raise UserError(f"{sentence}; fix this first") from error
        unlisted.append(sentence)
        print(f"warning: {sentence}; slides below it are left out", file=sys.stderr)

    seen = set()
    for parent, folders, names in os.walk(folder, onerror=refused, followlinks=True):
        folders.sort()
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield Path(parent), sorted(name for name in names if not name.startswith("."))
