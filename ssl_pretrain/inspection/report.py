"""Report of several backbones: a table, `report.csv`, `report.html`."""

import base64
import csv
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shared.files import own_path
from shared.reporting.tables import table

# Name of a number -> head of its column.
COLUMNS = {
    "feature_std": "deviation",
    "rank_me": "RankMe",
    "most_rank": "at most",
    "knn_biomarker": "kNN biomarker",
    "knn_biomarker_chance": "chance",
    "knn_slide": "kNN slide",
    "knn_slide_chance": "chance",
}
EXPLANATION = (
    "deviation: how far features point apart, 1 everywhere, 0 all the same. RankMe: how many dimensions they "
    "fill. kNN: how often the 20 nearest patches share the biomarker (among other slides) or the slide, "
    "mean over labels. A slide recognised far better than the biomarker is a shortcut."
)
STYLE = (
    "body{font-family:sans-serif;margin:2em}table{border-collapse:collapse}"
    "td,th{padding:.3em .8em;border-bottom:1px solid #ccc;text-align:right}"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%}"
)


@dataclass(frozen=True)
class InspectionResult:
    """One row."""

    name: str
    samples_seen: int | None
    measures: dict[str, float]
    remarks: list[str] = field(default_factory=list)
    pictures: dict[str, Path] = field(default_factory=dict)


def as_table(results: Sequence[InspectionResult]) -> str:
    """For the terminal, with an explanation below."""
    return f"{table(_header(), [_row(result) for result in results])}\n\n{EXPLANATION}"


def write_csv(path: Path, results: Sequence[InspectionResult]) -> None:
    """One row a backbone, columns by the names that `metrics.jsonl` has."""
    with own_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "samples_seen", *COLUMNS])
        for result in results:
            seen = "" if result.samples_seen is None else result.samples_seen
            writer.writerow([result.name, seen, *(result.measures.get(name, "") for name in COLUMNS)])


def write_html(path: Path, results: Sequence[InspectionResult], sample: str) -> None:
    """Write one file that holds the table, the remarks and the pictures."""
    rows = [f"<tr>{''.join(f'<th>{html.escape(head)}</th>' for head in _header())}</tr>"]
    for result in results:
        rows.append(f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in _row(result))}</tr>")
    parts = [f"<h1>Backbones side by side</h1><p>{html.escape(sample)}</p>", f"<table>{''.join(rows)}</table>"]
    parts.append(f"<p>{html.escape(EXPLANATION)}</p>")
    parts += [
        f"<p><b>{html.escape(f.name)}</b>: {html.escape(remark)}</p>" for f in results for remark in f.remarks
    ]
    shown = {f"{f.name}: {title}": picture for f in results for title, picture in f.pictures.items()}
    parts += [f"<h2>{html.escape(title)}</h2>{_embedded(place)}" for title, place in shown.items()]
    page = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Backbones side by side</title>'
        f"<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    with own_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _header() -> list[str]:
    return ["backbone", "images seen", *COLUMNS.values()]


def _row(result: InspectionResult) -> list[str | int | float]:
    seen: str | int = "" if result.samples_seen is None else result.samples_seen
    return [result.name, seen, *(round(result.measures[n], 3) if n in result.measures else "" for n in COLUMNS)]


def _embedded(picture: Path) -> str:
    return f'<img src="data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}">'
