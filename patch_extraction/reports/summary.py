"""Summary of a harvest: a table for the terminal, and `slides.csv`."""

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from patch_extraction.slide_store.slide_record import DUPLICATE, FAILED, KEPT, NO_PATCH, Record
from shared.files import atomic_path
from shared.reporting.tables import table

NOT_IN_CSV = (
    "pixel_sums",
    "histogram",
    "source_bytes",
    "source_changed",
    "fingerprint",
    "quickhash",
    "wsi_dir",
    "columns",
    "settings",
)
MANY_BLURRED = 0.05
MAX_ROWS = 40  # slides listed in the terminal; more are summarised by biomarker


def write_slide_table(path: Path, records: Sequence[Record]) -> None:
    """Write `slides.csv`, one row per slide, with the further columns of --slides."""
    own = [field.name for field in dataclasses.fields(Record) if field.name not in NOT_IN_CSV]
    further = list(dict.fromkeys(name for record in records for name in record.columns if name not in own))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*own, *further])
        writer.writerows(
            [*(getattr(record, name) for name in own), *(record.columns.get(name, "") for name in further)]
            for record in records
        )


def summary(records: Sequence[Record]) -> str:
    """Return tables of slides and of biomarkers (the paper's Table 1), and failures, as text."""
    parts = [_slides_table(records)] if len(records) <= MAX_ROWS else []
    if any(record.kept for record in records):
        parts.append(table(("biomarker", "slides", "patches"), biomarker_rows(records)))
    parts.append("\n".join(remarks(records)))
    return "\n\n".join(part for part in parts if part)


def _slides_table(records: Sequence[Record]) -> str:
    header = ("slide", "biomarker", "status", "um/px", "tissue mm2", "candidates", "counted", "patches", "seconds")
    rows = [
        (
            record.slide,
            record.biomarker,
            record.status,
            record.slide_mpp if record.slide_mpp is not None else "",
            round(record.tissue_mm2, 1) if record.slide_mpp is not None else "",
            record.candidates,
            record.counted,
            record.kept,
            round(record.seconds, 1),
        )
        for record in records
    ]
    return table(header, rows)


def biomarker_rows(records: Sequence[Record]) -> list[tuple[str, int, int]]:
    """Return biomarker, number of slides with patches and number of patches; and the totals."""
    rows = []
    for biomarker in sorted({record.biomarker for record in records}):
        kept = [record.kept for record in records if record.biomarker == biomarker and record.kept]
        rows.append((biomarker or "(none)", len(kept), sum(kept)))
    return [*rows, ("all", sum(row[1] for row in rows), sum(row[2] for row in rows))]


def remarks(records: Sequence[Record]) -> list[str]:
    """Return one line per failure, slide without a patch, kept slide, duplicate and warning, in this order."""
    lines = [f"failed: {record.reason}" for record in records if record.status == FAILED]
    lines += [f"no patch: {record.slide}: {record.reason}" for record in records if record.status == NO_PATCH]
    lines += [
        f"kept from an earlier run: {record.slide}: it is gone or not chosen, its {record.kept} patches stay"
        for record in records
        if record.status == KEPT
    ]
    lines += [f"duplicate: {record.slide}: {record.reason}" for record in records if record.status == DUPLICATE]
    lines += [f"note: {record.slide}: {record.warning}" for record in records if record.warning]
    lines += [
        f"note: {record.slide}: {record.unreadable} of {record.counted} candidates could not be decoded, left out"
        for record in records
        if record.unreadable and record.status != FAILED
    ]
    lines += [
        f"note: {record.slide}: {record.blurred:.0%} of the places with enough cells are out of focus, left out "
        "(--min-focus)"
        for record in records
        if record.blurred >= MANY_BLURRED and record.kept
    ]
    if any("--slide-mpp" in record.reason for record in records):
        lines.append("hint: --slide-mpp NAME=0.25 sets the resolution of one slide, --slide-mpp 0.25 of all")
    return lines
