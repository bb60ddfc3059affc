"""Page about one slide that opens offline in any browser: numbers, the slide to zoom into, pictures."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune.predict.outputs.cell_files import Rows, colour_of
from shared.files import atomic_path
from shared.reporting.html import base64_text, embedded, render
from shared.wsi.image_source import ImageSource

# Longest side of the picture to zoom into, px, and most cells drawn on it: a page of about 5 MB.
PICTURE_SIDE = 3072
MOST_CELLS = 200_000
# Cells are placed on a raster with this many steps along each side of the slide.
PLACES = 65_535


@dataclass(frozen=True)
class Report:
    """Content of the page."""

    summary: dict[str, Any]
    source: ImageSource
    chunks: Callable[[], Iterable[Rows]]
    offset: tuple[int, int]
    """Offset from the cells' px to px of level 0."""
    classes: Sequence[str]


def write_report(path: Path, report: Report, density: Image.Image, regions: Image.Image | None) -> None:
    """Write the page with all of its pictures and cells inside."""
    source = report.source
    picture = source.overview(max(source.size) * source.mpp / PICTURE_SIDE)
    places_N2, labels_N = _sampled_cells(report)
    shown, total = len(labels_N), report.summary["cells"]
    data = {
        "width": picture.width,
        "height": picture.height,
        "umPerPx": source.size[0] * source.mpp / picture.width,
        "classes": [{"name": name, "colour": colour_of(label)} for label, name in enumerate(report.classes)],
        "places": base64_text(places_N2.astype("<u2").tobytes()),
        "labels": base64_text(labels_N.astype("u1").tobytes()),
    }
    page = render(
        Path(__file__).parent / "templates" / "report.html.j2",
        title=f"{source.path.name}: cells",
        name=source.path.name,
        facts=_facts(report.summary),
        header=[("class", False), ("cells", True), ("per mm²", True), ("mean probability", True)],
        classes=_class_rows(report.summary),
        ratios=_ratio_rows(report.summary),
        sampled="" if shown == total else f"{shown:,} of {total:,} cells are drawn, chosen at random.",
        picture=embedded(picture),
        data=data,
        density=embedded(density, "PNG"),
        regions="" if regions is None else embedded(regions),
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _sampled_cells(report: Report) -> tuple[np.ndarray, np.ndarray]:
    """Places on the raster, (N, 2), and labels of the cells to draw: all of them, or a random part."""
    total = report.summary["cells"]
    random = np.random.default_rng(0)
    share = min(1.0, MOST_CELLS / max(total, 1))
    places, labels = [np.empty((0, 2))], [np.empty(0, np.int64)]
    for rows in report.chunks():
        chosen_N = random.random(len(rows.labels_N)) < share
        places.append((rows.points_N2[chosen_N] + report.offset) / report.source.size * PLACES)
        labels.append(rows.labels_N[chosen_N])
    return np.concatenate(places).clip(0, PLACES).round(), np.concatenate(labels)


def _facts(summary: dict[str, Any]) -> list[str]:
    """Lines above the numbers."""
    area = summary["area"]
    facts = [
        f"{summary['cells']:,} cells on {area['mm2']:.4g} mm² ({area['kind']})",
        f"detector {summary['detector']}, read at {summary['detector_mpp']:g} µm/px",
    ]
    if summary["unreadable"]:
        facts.append(f"{len(summary['unreadable'])} tiles could not be read: their cells are missing")
    return facts


def _class_rows(summary: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    return [
        (name, f"{count['cells']:,}", _number(count["per_mm2"]), _number(count["mean_probability"]))
        for name, count in summary["classes"].items()
    ]


def _ratio_rows(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(name, ratio["definition"], _number(ratio["value"])) for name, ratio in summary["ratios"].items()]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"
