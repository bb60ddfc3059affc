"""Numbers of a slide: cells per class and per mm2, and ratios."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.predict.outputs.output_names import SUMMARY
from finetune.predict.outputs.ratios import Ratio
from finetune.predict.outputs.writers import Rows
from finetune.predict.search.area import Area
from shared.files import own_path
from shared.wsi.image_source import visible_files


@dataclass(frozen=True)
class ClassCount:
    """Number, density and mean probability of the cells of one class."""

    cells: int
    per_mm2: float | None
    mean_probability: float | None


def count_cells(chunks: Iterable[Rows], classes: Sequence[str], mm2: float) -> dict[str, ClassCount]:
    """Count the cells of every class."""
    counts = np.zeros(len(classes), np.int64)
    sums = np.zeros(len(classes))
    for rows in chunks:
        counts += np.bincount(rows.labels_N, minlength=len(classes))
        sums += np.bincount(rows.labels_N, rows.probability_N, minlength=len(classes))
    return {
        name: ClassCount(
            int(count),
            round(count / mm2, 3) if mm2 else None,
            round(float(total / count), 4) if count else None,
        )
        for name, count, total in zip(classes, counts, sums, strict=True)
    }


def results(counts: Mapping[str, ClassCount], area: Area, ratios: Sequence[Ratio]) -> dict[str, Any]:
    """Numbers of a slide, all on the same area."""
    cells = {name: count.cells for name, count in counts.items()}
    total = sum(cells.values())
    return {
        "area": {"kind": area.kind, "mm2": round(area.mm2, 6)},
        "cells": total,
        "cells_per_mm2": round(total / area.mm2, 3) if area.mm2 else None,
        "classes": {name: vars(count) for name, count in counts.items()},
        "ratios": {
            ratio.name: {"definition": ratio.expression, "value": ratio.value(cells, area.mm2)} for ratio in ratios
        },
    }


def columns_of(classes: Sequence[str]) -> list[str]:
    """Columns of `summary.csv` apart from ratios."""
    of_classes = [f"{name} {what}" for what in ("cells", "per mm2") for name in classes]
    return ["slide", "area", "mm2", "cells", *of_classes, "unreadable tiles"]


def write_overview(folder: Path) -> Path:
    """Write `summary.csv`: a line for each finished slide below the folder, from the slides' summaries."""
    summaries = {path: _read(path) for path in visible_files(folder) if path.name.endswith(f".{SUMMARY}")}
    lines = [_line(path.relative_to(folder), summary) for path, summary in summaries.items() if summary]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    path = folder / "summary.csv"
    with own_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(lines)
    return path


def _read(path: Path) -> dict[str, Any] | None:
    """Read a slide's numbers; None if another program has written the file."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) and "made_with" in summary else None


def _line(path: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    counts = {f"{name} cells": count["cells"] for name, count in summary["classes"].items()}
    densities = {f"{name} per mm2": count["per_mm2"] for name, count in summary["classes"].items()}
    return {
        "slide": path.as_posix().removesuffix(f".{SUMMARY}"),
        "area": summary["area"]["kind"],
        "mm2": summary["area"]["mm2"],
        "cells": summary["cells"],
        **counts,
        **densities,
        **{name: ratio["value"] for name, ratio in summary["ratios"].items()},
        "unreadable tiles": len(summary["unreadable"]),
    }
