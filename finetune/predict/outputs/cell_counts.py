"""Numbers of a slide: cells per class and per mm2, and ratios."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.predict.outputs.cell_files import Rows
from finetune.predict.outputs.output_names import SUMMARY
from finetune.predict.outputs.ratios import Ratio, parse_ratio
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
    return ["slide", "patient", "slides", "area", "mm2", "cells", *of_classes, "unreadable tiles"]


def write_overview(folder: Path) -> Path:
    """Write `summary.csv`, a line for each finished slide below the folder, and `patients.csv`, if any has one."""
    found = {path: _read(path) for path in visible_files(folder) if path.name.endswith(f".{SUMMARY}")}
    summaries = {path: summary for path, summary in found.items() if summary}
    if lines := _lines_of_patients(summaries.values()):
        _write_table(folder / "patients.csv", lines)
    return _write_table(
        folder / "summary.csv", [_line(path.relative_to(folder), summary) for path, summary in summaries.items()]
    )


def _write_table(path: Path, lines: Sequence[Mapping[str, Any]]) -> Path:
    columns = list(dict.fromkeys(name for line in lines for name in line))
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
        **({"patient": summary["patient"]} if "patient" in summary else {}),
        "area": summary["area"]["kind"],
        "mm2": summary["area"]["mm2"],
        "cells": summary["cells"],
        **counts,
        **densities,
        **{name: ratio["value"] for name, ratio in summary["ratios"].items()},
        "unreadable tiles": len(summary["unreadable"]),
    }


def _lines_of_patients(summaries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Sum up the slides of each patient; densities and ratios are those of the sums."""
    slides_of: dict[str, list[Mapping[str, Any]]] = {}
    for summary in summaries:
        if "patient" in summary:
            slides_of.setdefault(summary["patient"], []).append(summary)
    return [_line_of_patient(patient, slides) for patient, slides in sorted(slides_of.items())]


def _line_of_patient(patient: str, slides: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    for summary in slides:
        counts.update({name: count["cells"] for name, count in summary["classes"].items()})
    mm2 = sum(summary["area"]["mm2"] for summary in slides)
    definitions = {name: ratio["definition"] for summary in slides for name, ratio in summary["ratios"].items()}
    ratios = {name: parse_ratio(f"{name} = {text}", list(counts)) for name, text in definitions.items()}
    return {
        "patient": patient,
        "slides": len(slides),
        "mm2": round(mm2, 6),
        "cells": counts.total(),
        **{f"{name} cells": count for name, count in counts.items()},
        **{f"{name} per mm2": round(count / mm2, 3) if mm2 else None for name, count in counts.items()},
        **{name: ratio.value(counts, mm2) for name, ratio in ratios.items()},
        "unreadable tiles": sum(len(summary["unreadable"]) for summary in slides),
    }
