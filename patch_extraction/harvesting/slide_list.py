"""Which slides to harvest: all below a folder, or those of a CSV; each with its biomarker and resolution."""

import csv
import dataclasses
import io
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patch_extraction.config import HarvestConfig, SlideEntry, overrides, pixel_settings
from patch_extraction.counters.base import CellCounter
from patch_extraction.slide_store.fingerprint import MANY_FILES, fingerprint
from patch_extraction.slide_store.slide_record import finished, slide_id
from shared.errors import UserError
from shared.files import printable
from shared.wsi.resolution import MPP_RANGE
from shared.wsi.slide_files import SUFFIXES, SlideListing, by_ending, list_slides

COLUMNS = ("slide", "slide_mpp", "biomarker")


@dataclass(frozen=True)
class ListedSlide:
    """A line of the CSV; None where a field is empty."""

    line: int
    slide: str
    slide_mpp: float | None
    biomarker: str | None


def find_sources(
    config: HarvestConfig, counter: CellCounter, listing: SlideListing | None = None
) -> list[SlideEntry]:
    """Return the slides to harvest, in the order of their paths or of --slides.

    Args:
        config: The configuration.
        counter: Its name is part of the settings.
        listing: The content of --wsi-dir, if it has been listed.

    Raises:
        UserError: there are none; --slide-mpp or --slides name one that is not there; the CSV is wrong.
    """
    listing = listing or list_slides(config.wsi_dir)
    if not listing.slides:
        endings = ", ".join(sorted(SUFFIXES))
        others = f" ({by_ending(listing.passed_over)} are others)" if listing.passed_over else ""
        raise UserError(
            f"{config.wsi_dir} holds no slides{others}; files with one of these endings are read: {endings}"
        )
    by_name = {printable(path.relative_to(config.wsi_dir).as_posix()): path for path in listing.slides}
    mpps = overrides(config, list(by_name))
    rows = (
        dict.fromkeys(by_name) if config.slides is None else select(config.slides, list(by_name), config.wsi_dir)
    )
    sources = [_source(config, counter, name, by_name[name], mpps.get(name), row) for name, row in rows.items()]
    return mark_duplicates(sources, config.out)


def _source(
    config: HarvestConfig, counter: CellCounter, name: str, path: Path, mpp: float | None, row: ListedSlide | None
) -> SlideEntry:
    """A slide with what is known of it: the CSV goes before the options, and those before the folder."""
    folder = name.split("/")[-2] if "/" in name else ""
    biomarker = folder if config.biomarker is None else config.biomarker
    if row is not None:
        biomarker = biomarker if row.biomarker is None else row.biomarker
        mpp = mpp if row.slide_mpp is None else row.slide_mpp
    return SlideEntry(
        path, name, slide_id(name), biomarker, mpp, pixel_settings(config, counter.name, biomarker, mpp)
    )


def select(path: Path, names: Sequence[str], wsi_dir: Path) -> dict[str, ListedSlide | None]:
    """The rows of a CSV by the slide's name, in its order.

    Raises:
        UserError: it cannot be read, names a slide that is not among `names`, several, or one twice.
    """
    known = _by_spelling(names)
    chosen: dict[str, ListedSlide | None] = {}
    for row in read_rows(path):
        fitting = known.get(_composed(row.slide), [])
        if not fitting:
            raise UserError(
                f"{path}, line {row.line}: there is no slide {row.slide} in {wsi_dir}; correct or remove the line"
            )
        if len(fitting) > 1:
            raise UserError(
                f"{path}, line {row.line}: {row.slide} may be {fitting[0]} or {fitting[1]}; "
                f"give the path below {wsi_dir}"
            )
        if fitting[0] in chosen:
            raise UserError(f"{path}, line {row.line}: {row.slide} is named twice; remove one of the lines")
        chosen[fitting[0]] = row
    return chosen


def read_rows(path: Path) -> list[ListedSlide]:
    """The rows of a CSV of slides, separated by comma, semicolon or tab.

    Raises:
        UserError: it cannot be read, has no column `slide`, no rows, or a resolution that is none.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read --slides {path}: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--slides {path} is not UTF-8 text; save it as CSV in UTF-8") from error
    header = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text), delimiter=max(",;\t", key=header.count), skipinitialspace=True)
    columns = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = columns
    if "slide" not in columns:
        raise UserError(
            f"--slides {path} has no column `slide` (its columns: {', '.join(columns) or 'none'}); "
            f"the first line must name the columns: {', '.join(COLUMNS)}"
        )
    if other := [name for name in columns if name not in COLUMNS]:
        print(f"note: these columns of {path} are not used: {', '.join(other)}")
    try:
        rows = [_row(path, reader.line_num, fields) for fields in reader if (fields["slide"] or "").strip()]
    except csv.Error as error:
        raise UserError(f"{path}, after line {reader.line_num}: {error}; close all quotation marks") from error
    if not rows:
        raise UserError(f"--slides {path} names no slide; give one a line")
    return rows


def _row(path: Path, line: int, fields: Mapping[str | None, Any]) -> ListedSlide:
    slide, mpp, biomarker = ((fields.get(name) or "").strip() for name in COLUMNS)
    if any(fields.get(None) or ()):  # where `csv` puts what is beyond the last column
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
    return ListedSlide(line, slide, value, biomarker or None)


def _by_spelling(names: Sequence[str]) -> dict[str, list[str]]:
    """Which names a word of the CSV may mean: its path, else its file's name, else that without the ending."""
    found: list[dict[str, list[str]]] = [defaultdict(list) for _ in range(3)]
    for name in names:
        for spellings, word in zip(found, (name, Path(name).name, Path(name).stem), strict=True):
            spellings[_composed(word)].append(name)
    paths, files, stems = found
    return {**stems, **files, **paths}


def _composed(text: str) -> str:
    """One of the several ways in which Unicode writes the same letters."""
    return unicodedata.normalize("NFC", text)


def mark_duplicates(sources: Sequence[SlideEntry], out: Path) -> list[SlideEntry]:
    """Return the slides with `original` set where a slide seems to be a copy of one that is harvested.

    Of several copies the one that is finished is harvested, else the first. Large files are compared by samples
    here and completely by the process that harvests them.
    """
    by_size: dict[int, list[SlideEntry]] = defaultdict(list)
    for source in sources:
        if source.path.suffix.lower() not in MANY_FILES and (size := _size(source.path)):
            by_size[size].append(source)
    original_of = {}
    for alike in by_size.values():
        for copies in _copies(alike) if len(alike) > 1 else ():
            original = next((copy for copy in copies if finished(out, copy)), copies[0])
            original_of.update({copy.slide_id: original for copy in copies if copy is not original})
    return [dataclasses.replace(source, original=original_of.get(source.slide_id)) for source in sources]


def _size(path: Path) -> int:
    """Bytes of a file; 0 for what is none or cannot be looked at."""
    try:
        status = path.stat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _copies(sources: Sequence[SlideEntry]) -> Iterator[list[SlideEntry]]:
    """Those of equally large files that hold the same."""
    by_content: dict[str, list[SlideEntry]] = defaultdict(list)
    for source in sources:
        try:
            by_content[fingerprint(source.path)].append(source)
        except OSError:
            continue  # the harvest will say why
    return (alike for alike in by_content.values() if len(alike) > 1)
