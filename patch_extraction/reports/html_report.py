"""`report.html`: a harvest on one page, failures first; a single file that fetches nothing."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from patch_extraction.config import HarvestConfig
from patch_extraction.reports.contact_sheets import COLOURS
from patch_extraction.reports.histogram import Histogram, summed
from patch_extraction.reports.summary import biomarker_rows, remarks
from patch_extraction.slide_store.file_names import (
    CONTACT_SHEET,
    REJECTED_SHEET,
    REPORT,
    THUMBNAILS,
    thumbnail_path,
)
from patch_extraction.slide_store.slide_record import DUPLICATE, FAILED, HARVESTED, KEPT, NO_PATCH, Record
from shared.cli import as_plain
from shared.config_file import flat
from shared.files import atomic_path
from shared.reporting.html import embedded, render

TEMPLATE = Path(__file__).parent / "templates" / "report.html.j2"
SHEET_WIDTH, THUMBNAIL_SIDE = 1600, 360  # px
MAX_THUMBNAILS = 60
MAX_HISTOGRAMS = 12  # of the biomarkers with the most patches
ORDER = (FAILED, NO_PATCH, DUPLICATE, KEPT, HARVESTED)  # most urgent first
COLUMNS = (
    *(("slide", False), ("biomarker", False), ("status", False), ("um/px", True), ("stated by", False)),
    *(("tissue mm2", True), ("candidates", True), ("screened", True), ("counted", True), ("kept", True)),
    *(("focus", True), ("blurred", True), ("seconds", True), ("MB", True)),
)


def write_report(out: Path, records: Sequence[Record], config: HarvestConfig) -> None:
    """Write `report.html` from the records and the pictures in the output folder."""
    statuses = [(status, sum(record.status == status for record in records)) for status in ORDER]
    troubles = [
        (title, [(record.slide, record.biomarker, record.reason) for record in records if record.status == status])
        for title, status in (("Failed", FAILED), ("Without a patch", NO_PATCH))
    ]
    there = [record for record in records if thumbnail_path(out, record.slide_id).exists()]
    page = render(
        TEMPLATE,
        title=f"Harvest of {config.wsi_dir}",
        config=config,
        patches=sum(record.kept for record in records),
        slides=len(records),
        statuses=[(status, count) for status, count in statuses if count],
        troubles=[(title, rows) for title, rows in troubles if rows],
        notes=[line for line in remarks(records) if not line.startswith(("failed:", "no patch:"))],
        biomarkers=biomarker_rows(records),
        histograms=_histograms(records, config.min_cells),
        sheets=_sheets(out),
        figures=[(record, _thumbnail(out, record)) for record in _shown(there)],
        thumbnails=len(there),
        thumbnail_folder=out / THUMBNAILS,
        legend=[("more" if limit == math.inf else f"< {limit}", colour) for limit, colour in COLOURS],
        columns=COLUMNS,
        rows=[_row(record) for record in sorted(records, key=lambda record: ORDER.index(record.status))],
        settings=list(flat(as_plain(config))),
    )
    with atomic_path(out / REPORT) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _histograms(records: Sequence[Record], min_cells: int) -> list[Histogram]:
    """Return the histogram of all slides and, if there are several, of the largest biomarkers."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.biomarker, []).append(record)
    largest = sorted(groups, key=lambda name: (-sum(r.kept for r in groups[name]), name))[:MAX_HISTOGRAMS]
    chosen = [("all slides", list(records))]
    if len(groups) > 1:
        chosen += [(name or "(no biomarker)", groups[name]) for name in largest]
    histograms = [
        Histogram(name, summed([record.histogram for record in some]), min_cells) for name, some in chosen
    ]
    return [histogram for histogram in histograms if histogram.total]


def _sheets(out: Path) -> list[tuple[str, str]]:
    titles = {CONTACT_SHEET: "Patches that were kept", REJECTED_SHEET: "Rejected patches near the threshold"}
    return [(title, _inline(out / name, SHEET_WIDTH)) for name, title in titles.items() if (out / name).exists()]


def _shown(records: Sequence[Record]) -> list[Record]:
    """Choose slides for thumbnails: those with failures first, the others evenly from all."""
    troubled = [record for status in ORDER[:2] for record in records if record.status == status][:MAX_THUMBNAILS]
    fine = [record for record in records if record.status not in ORDER[:2]]
    left = MAX_THUMBNAILS - len(troubled)
    return troubled + (fine[:: -(-len(fine) // left)] if left and fine else [])


def _thumbnail(out: Path, record: Record) -> str:
    try:
        return _inline(thumbnail_path(out, record.slide_id), THUMBNAIL_SIDE)
    except OSError:  # a damaged thumbnail does not affect the shards
        return ""


def _inline(path: Path, side: int) -> str:
    """Return an image as a data URL, at most `side` px wide and twice as high."""
    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((side, 2 * side))
    return embedded(small)


def _row(record: Record) -> tuple[Any, ...]:
    return (
        *(record.slide, record.biomarker, record.status),
        "" if record.slide_mpp is None else record.slide_mpp,
        *(record.mpp_source, record.tissue_mm2),
        *(record.candidates, record.screened, record.counted, record.kept),
        *("" if record.focus is None else record.focus, f"{record.blurred:.1%}"),
        *(round(record.seconds, 1), round(record.bytes / 1e6, 1)),
    )
