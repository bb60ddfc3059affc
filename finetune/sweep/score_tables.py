"""Tables of the runs' test scores: mean and spread over seeds beside the paper's numbers."""

import csv
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.datasets.dataset import AnnotatedData
from finetune.results import TEST_SCORES
from finetune.sweep.config import SweepRun, read_kept
from finetune.sweep.detector_size import config_of, multiply_adds
from finetune.sweep.paper_tables import VARIANTS, Table, TableRow
from shared.errors import UserError
from shared.files import own_path
from shared.model.detector_file import network_of
from shared.model.dpa_p2pnet import DPAP2PNet
from shared.reporting.tables import table as text_table
from shared.training.network_size import count_parameters

# Best weights are those of the best validation score, last weights those of the last step.
COLUMNS = {
    "best_f1": "best F1",
    "best_ap": "best AP",
    "last_f1": "last F1",
    "last_ap": "last AP",
}
# Matching distance of the paper (Table 2), px of its images.
PAPER_RADII = {"CoNSeP": "6 px", "BCData": "10 px", "PD-L1": "12 px", "OCELOT": "9 px"}
# Table 3 counts operations with the classes, the size and the interval of PD-L1.
SIZE, CLASSES, INTERVAL = 1024, 10, 16


@dataclass(frozen=True)
class Result:
    """Test scores of one run, in percent, and its provenance."""

    row: str
    seed: int
    best_f1: float
    best_ap: float
    last_f1: float
    last_ap: float
    machine: str
    versions: str
    date: str
    commit: str

    def __str__(self) -> str:
        return ", ".join(f"{title} {getattr(self, name):.1f}" for name, title in COLUMNS.items())


def read_result(run: SweepRun) -> Result:
    """Read the scores and the provenance of a finished run.

    Raises:
        UserError: their files are missing or damaged.
    """
    path = run.recipe.run_dir / TEST_SCORES
    scores, made = read_kept(path), read_kept(run.recipe.run_dir / "provenance.json")
    try:
        percents = {
            f"{weights}_{name}": 100 * scores[weights][f"macro_{name}"]
            for weights in ("best", "last")
            for name in ("f1", "ap")
        }
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} lacks scores; remove it, and the same command makes it again") from error
    versions = " ".join(f"{name}={version}" for name, version in made["versions"].items())
    return Result(
        run.row.name,
        run.recipe.seed,
        **percents,
        machine=made["machine"],
        versions=versions,
        date=made["time"],
        commit=made["git_commit"],
    )


def print_table(table: Table, runs: Sequence[SweepRun], layout: str, data: AnnotatedData) -> None:
    """Print the table."""
    whose = table.data_set(layout)
    sized = any(row.variant for row in table.rows)
    head = ["", *COLUMNS.values(), "n", "paper F1", "paper AP"]
    head += ["params M", "paper", "MACs G", "paper"] if sized else []
    lines = []
    for row in table.rows:
        results = _results(row, runs)
        scores = [mean_and_spread([getattr(each, name) for each in results]) for name in COLUMNS]
        printed = ["-" if value is None else f"{value:.1f}" for value in row.printed.get(whose, (None, None))]
        lines.append([row.label, *scores, str(len(results)), *printed, *(_sizes(row) if sized else [])])
    ours = f"ours: {data.folder}, within {data.radius_um:.3g} um"
    paper = f"paper: {whose}, within {PAPER_RADII[whose]}"
    print(f"\n{table.title}\n{ours}; {paper}\n{text_table(head, lines)}\n")
    print("test tiles; percent, mean +- standard deviation over n seeds; best: highest F1 on the validation tiles")


def mean_and_spread(values: Sequence[float]) -> str:
    """Format the mean and, of two values or more, the sample standard deviation (n - 1)."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} +- {statistics.stdev(values):.1f}"


def write_tables(folder: Path, name: str, table: Table, runs: Sequence[SweepRun], layout: str) -> None:
    """Write `runs.csv`, a line per row and seed, and `NAME.csv`, a line per row."""
    each = [read_result(run) for run in runs]
    _write(folder / "runs.csv", [{"table": name, **vars(result)} for result in each])
    whose = table.data_set(layout)
    lines = []
    for row in table.rows:
        f1, ap = ("" if value is None else value for value in row.printed.get(whose, (None, None)))
        paper = {"paper_data": whose, "paper_f1": f1, "paper_ap": ap}
        lines.append({"table": name, "row": row.name, **_summary(_results(row, runs)), **paper})
    _write(folder / f"{name}.csv", lines)
    print(f"table: {folder / name}.csv, each run: {folder / 'runs.csv'}")


def _results(row: TableRow, runs: Iterable[SweepRun]) -> list[Result]:
    return [read_result(run) for run in runs if run.row.name == row.name]


def _summary(results: Sequence[Result]) -> dict[str, Any]:
    """Seeds, mean, spread and provenance of a row."""
    summary: dict[str, Any] = {"seeds": " ".join(str(each.seed) for each in results), "n": len(results)}
    for name in COLUMNS:
        values = [getattr(each, name) for each in results]
        summary[f"{name}_mean"] = round(statistics.fmean(values), 3) if values else ""
        summary[f"{name}_sd"] = round(statistics.stdev(values), 3) if len(values) > 1 else ""
    for name in ("machine", "versions", "date", "commit"):
        summary[name] = "; ".join(dict.fromkeys(getattr(each, name) for each in results))
    return summary


def _sizes(row: TableRow) -> list[str]:
    """Parameters and multiply-adds, each beside the paper's."""
    if not row.variant:
        return ["-"] * 4
    variant = next(each for each in VARIANTS if each.name == row.variant)
    detector = network_of(config_of(variant, CLASSES, INTERVAL)).eval()
    if isinstance(detector, DPAP2PNet):
        detector.samples_smoothing = False  # the paper's counter sees every output of every convolution
    params = count_parameters(detector) / 1e6
    macs = multiply_adds(detector, SIZE).paper
    return [f"{params:.1f}", f"{variant.paper_params_m:g}", f"{macs:.0f}", f"{variant.paper_macs_g:g}"]


def _write(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    with own_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
