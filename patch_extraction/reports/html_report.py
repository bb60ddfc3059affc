"""`report.html`: a harvest on one page, the failures first; one file, nothing in it is fetched from elsewhere."""

import base64
import html
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from patch_extraction.config import HarvestConfig
from patch_extraction.reports.histogram import bars
from patch_extraction.reports.pictures import STEPS
from patch_extraction.reports.summary import biomarker_rows, remarks
from patch_extraction.slide_store.file_names import CONTACT_SHEET, REJECTED_SHEET, REPORT, THUMBNAILS
from patch_extraction.slide_store.slide_record import DUPLICATE, FAILED, HARVESTED, KEPT, NO_PATCH, Record
from shared.cli import as_plain, flat
from shared.files import atomic_path

SHEET_WIDTH, THUMBNAIL_SIDE = 1600, 360  # px
MOST_THUMBNAILS = 60  # of thousands of slides; all lie in THUMBNAILS
MOST_HISTOGRAMS = 12  # biomarkers, those with the most patches
ORDER = (FAILED, NO_PATCH, DUPLICATE, KEPT, HARVESTED)  # what needs a look first
COUNTS = ("candidates", "screened", "counted", "kept")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1200px; padding: 0 1rem; color: #111 }
h1 { font-size: 1.5rem; margin-bottom: 0 }
h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #ccc }
table { border-collapse: collapse; font-size: 13px } th { text-align: left; border-bottom: 2px solid #888 }
td, th { padding: 2px 12px 2px 0; vertical-align: top }
td { overflow-wrap: anywhere } th { white-space: nowrap }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
tr:nth-child(even) td { background: #f6f6f6 } .failed { color: #a40000; font-weight: 600 }
.row { display: flex; flex-wrap: wrap; gap: 16px } figure { margin: 0; max-width: 360px }
figcaption { font-size: 12px; overflow-wrap: anywhere }
img { max-width: 100%; height: auto } .sheet { width: 100% }
summary { cursor: pointer; font-weight: 600; margin: 1rem 0 } .quiet { color: #555 }
"""
# Nothing may be fetched, and no script may run, whatever the names of slides hold.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(out: Path, records: Sequence[Record], config: HarvestConfig) -> None:
    """Write `report.html` from the records, and the pictures that lie in the output folder."""
    parts = [
        _opening(records, config),
        _troubles(records),
        _section("Biomarkers", _table(("biomarker", "slides", "patches"), biomarker_rows(records))),
        _histograms(records, config.min_cells),
        _sheet(out / CONTACT_SHEET, "Patches that were kept"),
        _sheet(out / REJECTED_SHEET, "Patches that were left out, near the threshold"),
        _thumbnails(out, records),
        _all_slides(records),
        _settings(config),
    ]
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>Harvest of {_text(config.wsi_dir)}</title>"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><style>{STYLE}</style></head><body>'
    )
    with atomic_path(out / REPORT) as temporary:
        temporary.write_text(head + "\n".join(parts) + "</body></html>\n", encoding="utf-8")


def _opening(records: Sequence[Record], config: HarvestConfig) -> str:
    counts = [(status, sum(record.status == status for record in records)) for status in ORDER]
    told = ", ".join(
        f'<span class="{_text(status.split()[0])}">{count} {_text(status)}</span>'
        for status, count in counts
        if count
    )
    patches = sum(record.kept for record in records)
    um = config.patch_size * config.patch_mpp
    return (
        f"<h1>Harvest of {_text(config.wsi_dir)}</h1><p><b>{patches:,} patches</b> of {um:g} um "
        f"({config.patch_size} px at {config.patch_mpp:g} um/px) with at least {config.min_cells} cells, "
        f"from {len(records):,} slides: {told}.</p>"
    )


def _troubles(records: Sequence[Record]) -> str:
    failed = [record for record in records if record.status == FAILED]
    empty = [record for record in records if record.status == NO_PATCH]
    header = ("slide", "biomarker", "reason")
    parts = [
        _section(f"{title}: {len(some)}", _table(header, [(r.slide, r.biomarker, r.reason) for r in some]))
        for title, some in (("Failed", failed), ("Without a patch", empty))
        if some
    ]
    others = [line for line in remarks(records) if not line.startswith(("failed:", "no patch:"))]
    if others:
        parts.append(_section("Notes", "<br>".join(map(_text, others))))
    return "".join(parts)


def _histograms(records: Sequence[Record], min_cells: int) -> str:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.biomarker, []).append(record)
    largest = sorted(groups, key=lambda name: (-sum(r.kept for r in groups[name]), name))[:MOST_HISTOGRAMS]
    chosen = [("all slides", list(records))]
    if len(groups) > 1:
        chosen += [(name or "(no biomarker)", groups[name]) for name in largest]
    drawings = [bars([record.histogram for record in some], min_cells, _text(name)) for name, some in chosen]
    note = (
        f'<p class="quiet">Places that were counted, by cells; grey ones hold fewer than {min_cells} '
        "and were left out.</p>"
    )
    return _section("Cells per patch", note + f'<div class="row">{"".join(filter(None, drawings))}</div>')


def _sheet(path: Path, title: str) -> str:
    if not path.exists():
        return ""
    with Image.open(path) as image:
        return _section(title, f'<img class="sheet" alt="{_text(title)}" src="{_inline(image, SHEET_WIDTH)}">')


def _thumbnails(out: Path, records: Sequence[Record]) -> str:
    """Slides as pictures: those with troubles first, the others evenly from all."""
    there = [record for record in records if (out / THUMBNAILS / f"{record.slide_id}.jpg").exists()]
    troubled = [record for status in ORDER[:2] for record in there if record.status == status][:MOST_THUMBNAILS]
    fine = [record for record in there if record.status not in ORDER[:2]]
    left = MOST_THUMBNAILS - len(troubled)
    chosen = troubled + (fine[:: -(-len(fine) // left)] if left and fine else [])
    figures = [_figure(out / THUMBNAILS / f"{record.slide_id}.jpg", record) for record in chosen]
    note = f"{len(chosen)} of {len(there)} in {_text(out / THUMBNAILS)}; frames by cells in a patch: {_legend()}."
    body = f'<p class="quiet">{note}</p><div class="row">{"".join(figures)}</div>'
    return _section("Slides", body) if figures else ""


def _legend() -> str:
    return ", ".join(
        f'<b style="color: {colour}">{"more" if limit == math.inf else f"&lt; {limit}"}</b>'
        for limit, colour in STEPS
    )


def _figure(path: Path, record: Record) -> str:
    try:
        with Image.open(path) as image:
            picture = f'<img alt="" src="{_inline(image, THUMBNAIL_SIDE)}">'
    except OSError:  # the shards are no worse for that
        picture = "its picture is damaged"
    said = f"{_text(record.status)}, {record.kept} patches, {record.tissue_mm2:g} mm2 of tissue"
    name = _text(record.slide)
    return f"<figure>{picture}<figcaption>{name}<br>{said}</figcaption></figure>"


def _all_slides(records: Sequence[Record]) -> str:
    header = ("slide", "biomarker", "status", "um/px", "stated by", "tissue mm2", *COUNTS, "seconds", "MB")
    rows = [
        (
            *(record.slide, record.biomarker, record.status),
            "" if record.slide_mpp is None else record.slide_mpp,
            *(record.mpp_source, record.tissue_mm2),
            *(getattr(record, name) for name in COUNTS),
            *(round(record.seconds, 1), round(record.bytes / 1e6, 1)),
        )
        for record in sorted(records, key=lambda record: ORDER.index(record.status))
    ]
    return f"<details><summary>All {len(rows):,} slides</summary>{_table(header, rows)}</details>"


def _settings(config: HarvestConfig) -> str:
    rows = [(name, str(value)) for name, value in flat(as_plain(config))]
    return f"<details><summary>Settings</summary>{_table(('name', 'value'), rows)}</details>"


def _section(title: str, body: str) -> str:
    return f"<h2>{_text(title)}</h2>{body}"


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    rows = list(rows)
    numeric = [all(isinstance(row[i], int | float) or row[i] == "" for row in rows) for i in range(len(header))]
    kinds = [' class="number"' if right else "" for right in numeric]
    head = "".join(f"<th{kind}>{_text(name)}</th>" for name, kind in zip(header, kinds, strict=True))
    lines = [
        "".join(f"<td{kind}>{_text(value)}</td>" for value, kind in zip(row, kinds, strict=True)) for row in rows
    ]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _text(value: object) -> str:
    return html.escape(str(value))


def _inline(image: Image.Image, side: int) -> str:
    """A picture, at most so many px wide and twice as high, as a data URL."""
    small = image.convert("RGB")
    small.thumbnail((side, 2 * side))
    stream = io.BytesIO()
    small.save(stream, format="JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
