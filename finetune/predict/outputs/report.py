"""A page about one slide that opens offline in any browser: numbers, the slide to zoom into, pictures."""

import base64
import html
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from finetune.predict.outputs.report_page import PAGE
from finetune.predict.outputs.writers import Rows, colour_of
from shared.files import atomic_path
from shared.wsi.image_source import ImageSource

# Longest side of the picture to zoom into, px, and how many cells are drawn on it: a page of about 5 MB.
PICTURE_SIDE = 3072
MOST_CELLS = 200_000
# Cells lie on a raster of so many places along each side of the slide.
PLACES = 65_535


@dataclass(frozen=True)
class Report:
    """What the page is about."""

    summary: dict[str, Any]
    source: ImageSource
    chunks: Callable[[], Iterable[Rows]]
    offset: tuple[int, int]
    """To be added to the cells' px to get px of level 0."""
    classes: Sequence[str]


def write_report(path: Path, report: Report, density: Image.Image, regions: Image.Image | None) -> None:
    """Write the page; everything it shows is inside."""
    source = report.source
    picture = source.overview(max(source.size) * source.mpp / PICTURE_SIDE)
    places_N2, labels_N = _sampled_cells(report)
    shown, total = len(labels_N), report.summary["cells"]
    data = {
        "width": picture.width,
        "height": picture.height,
        "umPerPx": source.size[0] * source.mpp / picture.width,
        "classes": [{"name": name, "colour": colour_of(label)} for label, name in enumerate(report.classes)],
        "places": _base64(places_N2.astype("<u2").tobytes()),
        "labels": _base64(labels_N.astype("u1").tobytes()),
    }
    name = html.escape(source.path.name)
    page = Template(PAGE).substitute(
        title=name,
        facts=_facts(report.summary),
        table=_table(report.summary),
        sampled="" if shown == total else f"{shown:,} of {total:,} cells are drawn, chosen at random.",
        picture=_embedded(picture, "JPEG"),
        # A class may be called </script>.
        data=json.dumps(data).replace("<", "\\u003c"),
        density=_embedded(density, "PNG"),
        regions=""
        if regions is None
        else f'<h2>Regions</h2><img src="{_embedded(regions, "JPEG")}" alt="regions">',
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _sampled_cells(report: Report) -> tuple[np.ndarray, np.ndarray]:
    """Places on the raster, (N, 2), and labels of the cells to draw: all, or a random part."""
    total = report.summary["cells"]
    random = np.random.default_rng(0)
    share = min(1.0, MOST_CELLS / max(total, 1))
    places, labels = [np.empty((0, 2))], [np.empty(0, np.int64)]
    for rows in report.chunks():
        chosen_N = random.random(len(rows.labels_N)) < share
        places.append((rows.points_N2[chosen_N] + report.offset) / report.source.size * PLACES)
        labels.append(rows.labels_N[chosen_N])
    return np.concatenate(places).clip(0, PLACES).round(), np.concatenate(labels)


def _facts(summary: dict[str, Any]) -> str:
    """A line for each thing worth knowing before the numbers."""
    area = summary["area"]
    facts = [
        f"{summary['cells']:,} cells on {area['mm2']:.4g} mm² ({area['kind']})",
        f"detector {summary['detector']}, read at {summary['detector_mpp']:g} µm/px",
    ]
    if summary["unreadable"]:
        facts.append(f"{len(summary['unreadable'])} tiles could not be read: their cells are missing")
    return "".join(f"<p>{html.escape(fact)}</p>" for fact in facts)


def _table(summary: dict[str, Any]) -> str:
    """Classes and ratios."""
    rows = ["<tr><th>class</th><th>cells</th><th>per mm²</th><th>mean probability</th></tr>"]
    for name, count in summary["classes"].items():
        values = (f"{count['cells']:,}", _number(count["per_mm2"]), _number(count["mean_probability"]))
        rows.append(f"<tr><td>{html.escape(name)}</td>{''.join(f'<td>{value}</td>' for value in values)}</tr>")
    for name, ratio in summary["ratios"].items():
        label = html.escape(f"{name} = {ratio['definition']}")
        rows.append(f'<tr><td colspan="3">{label}</td><td>{_number(ratio["value"])}</td></tr>')
    return f"<table>{''.join(rows)}</table>"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"


def _embedded(picture: Image.Image, kind: str) -> str:
    stream = io.BytesIO()
    picture.save(stream, format=kind, **({"quality": 82} if kind == "JPEG" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{_base64(stream.getvalue())}"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
