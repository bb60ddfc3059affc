"""Slides to harvest: all below a folder, or those of a CSV, each with its biomarker and resolution."""

import csv
import dataclasses
import io
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patch_extraction.config import HarvestConfig, SlideEntry, overrides, pixel_settings
from patch_extraction.counters.base import CellCounter
from patch_extraction.harvesting.search_area import with_regions
from patch_extraction.slide_store.completed import stored_record
from patch_extraction.slide_store.fingerprint import MULTI_FILE, fingerprint
from patch_extraction.slide_store.slide_record import slide_id
from shared.errors import UserError
from shared.files import printable
from shared.wsi.resolution import MPP_RANGE
from shared.wsi.slide_files import SUFFIXES, SlideListing, by_ending, list_slides

COLUMNS = ("slide", "slide_mpp", "biomarker")


@dataclass(frozen=True)
class ListedSlide:
    """A line of the CSV; empty fields are None."""

    slide: str
    line: int = 0
    slide_mpp: float | None = None
    biomarker: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)  # all others


def find_entries(
    config: HarvestConfig, counter: CellCounter, listing: SlideListing | None = None
) -> list[SlideEntry]:
    """Return the slides to harvest, in the order of their paths or of --slides.

    Args:
        config: The configuration.
        counter: Its name is part of the settings.
        listing: The content of --wsi-dir, if it has been listed.

    Raises:
        UserError: there are no slides; --slide-mpp or --slides name an absent one; the CSV is malformed;
            --regions is one file for several slides.
    """
    listing = listing or list_slides(config.wsi_dir)
    if not listing.slides:
        endings = ", ".join(sorted(SUFFIXES))
        others = f", only {by_ending(listing.passed_over)}" if listing.passed_over else ""
        raise UserError(
            f"{config.wsi_dir} holds no slides{others}; files with one of these endings are read: {endings}"
        )
    by_name = {printable(path.relative_to(config.wsi_dir).as_posix()): path for path in listing.slides}
    names = list(by_name)
    mpps = overrides(config, names)
    rows = select(config.slides, names, config.wsi_dir) if config.slides else map(ListedSlide, names)
    entries = [_entry(config, counter, row, by_name[row.slide], mpps.get(row.slide)) for row in rows]
    entries = [with_regions(entry, config, len(entries) > 1) for entry in entries]
    return mark_duplicates(entries, config.out)


def select(path: Path, names: Sequence[str], wsi_dir: Path) -> list[ListedSlide]:
    """Return the rows of a CSV, each with one of `names` as its slide, in the order of the CSV.

    Raises:
        UserError: it cannot be read, or a row matches none or several of `names`, or one that another row matches.
    """
    known = _by_spelling(names)
    chosen: dict[str, ListedSlide] = {}
    for row in read_rows(path):
        matching = known.get(_composed(row.slide), [])
        if not matching:
            raise UserError(
                f"{path}, line {row.line}: there is no slide {row.slide} in {wsi_dir}; correct or remove the line"
            )
        if len(matching) > 1:
            raise UserError(
                f"{path}, line {row.line}: {row.slide} may be {matching[0]} or {matching[1]}; "
                f"give the path below {wsi_dir}"
            )
        if matching[0] in chosen:
            raise UserError(f"{path}, line {row.line}: {row.slide} is named twice; remove one of the lines")
        chosen[matching[0]] = dataclasses.replace(row, slide=matching[0])
    return list(chosen.values())


def read_rows(path: Path) -> list[ListedSlide]:
    """Read a CSV of slides, separated by comma, semicolon or tab.

    Raises:
        UserError: it cannot be read, has no column `slide` or no rows, or a resolution is out of range.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read --slides {path}: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--slides {path} is not UTF-8 text; save it as CSV in UTF-8") from error
    header = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text), delimiter=max(",;\t", key=header.count), skipinitialspace=True)
    try:
        columns = [name.strip() for name in reader.fieldnames or ()]
    except csv.Error as error:  # a field of megabytes
        raise UserError(
            f"--slides {path}, first line: {error}; give a CSV with the columns {', '.join(COLUMNS)}"
        ) from error
    reader.fieldnames = columns
    if "slide" not in columns:
        raise UserError(
            f"--slides {path} has no column `slide` (its columns: {', '.join(columns) or 'none'}); "
            f"the first line must name the columns: {', '.join(COLUMNS)}"
        )
    if others := [name for name in columns if name not in COLUMNS]:
        print(f"note: these columns of {path} go into the JSON of every patch: {', '.join(others)}")
    try:
        rows = [_row(path, reader.line_num, fields) for fields in reader if (fields["slide"] or "").strip()]
    except csv.Error as error:
        raise UserError(f"{path}, after line {reader.line_num}: {error}; close all quotation marks") from error
    if not rows:
        raise UserError(f"--slides {path} names no slide; give one a line")
    return rows


def mark_duplicates(entries: Sequence[SlideEntry], out: Path) -> list[SlideEntry]:
    """Return the slides with `original` set where a slide seems to be a copy of one that is harvested.

    Of several copies the one that is complete is harvested, else the first. Large files are compared by samples
    here and completely by the process that harvests them.
    """
    by_size: dict[int, list[SlideEntry]] = defaultdict(list)
    for entry in entries:
        if entry.path.suffix.lower() not in MULTI_FILE and (size := _size(entry.path)):
            by_size[size].append(entry)
    original_of = {}
    for alike in by_size.values():
        for copies in _copies(alike) if len(alike) > 1 else ():
            original = next((copy for copy in copies if stored_record(out, copy)), copies[0])
            original_of.update({copy.slide_id: original for copy in copies if copy is not original})
    return [dataclasses.replace(entry, original=original_of.get(entry.slide_id)) for entry in entries]


def _entry(
    config: HarvestConfig, counter: CellCounter, row: ListedSlide, path: Path, mpp: float | None
) -> SlideEntry:
    """Describe a slide: the CSV overrides options, and these the name of the folder."""
    folder = row.slide.split("/")[-2] if "/" in row.slide else ""
    biomarker = next(name for name in (row.biomarker, config.biomarker, folder) if name is not None)
    mpp = mpp if row.slide_mpp is None else row.slide_mpp
    settings = pixel_settings(config, counter.name, biomarker, mpp)
    return SlideEntry(path, row.slide, slide_id(row.slide), biomarker, mpp, settings, row.columns)


def _row(path: Path, line: int, fields: Mapping[str | None, Any]) -> ListedSlide:
    slide, mpp, biomarker = ((fields.get(name) or "").strip() for name in COLUMNS)
    if any(fields.get(None) or ()):  # the fields beyond the last column
        raise UserError(
            f"{path}, line {line} has more fields than there are columns; put quotation marks around a field that "
            "holds a separator"
        )
    try:
        value = float(mpp) if mpp else None
    except ValueError:
        value = 0.0
    if value is not None and not MPP_RANGE[0] <= value <= MPP_RANGE[1]:
        raise UserError(
            f"{path}, line {line}: slide_mpp {mpp} is not a resolution; give um/px "
            f"from {MPP_RANGE[0]} to {MPP_RANGE[1]}, or leave it empty"
        )
    others = {name: (text or "").strip() for name, text in fields.items() if name and name not in COLUMNS}
    return ListedSlide(slide, line, value, biomarker or None, others)


def _by_spelling(names: Sequence[str]) -> dict[str, list[str]]:
    """Map spellings to names: paths first, then file names, then file names without ending."""
    found: list[dict[str, list[str]]] = [defaultdict(list) for _ in range(3)]
    for name in names:
        for spellings, word in zip(found, (name, Path(name).name, Path(name).stem), strict=True):
            spellings[_composed(word)].append(name)
    paths, files, stems = found
    return {**stems, **files, **paths}


def _composed(text: str) -> str:
    """Return text in the composed form of Unicode (NFC)."""
    return unicodedata.normalize("NFC", text)


def _size(path: Path) -> int:
    """Return the bytes of a regular file; 0 for others and for inaccessible ones."""
    try:
        status = path.stat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _copies(entries: Sequence[SlideEntry]) -> Iterator[list[SlideEntry]]:
    """Group files of one size by their fingerprint; yield groups of several."""
    by_content: dict[str, list[SlideEntry]] = defaultdict(list)
    for entry in entries:
        try:
            by_content[fingerprint(entry.path)].append(entry)
        except OSError:
            continue  # the harvest reports the reason
    return (alike for alike in by_content.values() if len(alike) > 1)
