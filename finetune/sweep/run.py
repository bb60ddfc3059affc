"""Run a sweep: check, train what is missing, print and write the table."""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from finetune.datasets.dataset import AnnotatedData
from finetune.results import TEST_SCORES, score_weights
from finetune.sweep.config import (
    SweepConfig,
    SweepRun,
    check,
    finished_runs,
    is_skipped,
    layout_of,
    planned_runs,
    weights_files,
)
from finetune.sweep.paper_tables import TABLES
from finetune.sweep.score_tables import print_table, read_result, write_tables
from shared.cli import as_plain, make_folder, settings_text
from shared.errors import NOTHING_FAILED, SOME_FAILED, UserError
from shared.files import write_json
from shared.jobs.slurm import are_left, run_in_slurm
from shared.jobs.tasks import Task, failed_line, run_here
from shared.signals import STOPPED, StopSignal, leave_marker
from shared.training.run_folder import provenance


def sweep(config: SweepConfig, stop: StopSignal) -> int:
    """Train the missing runs; returns the exit code of the process.

    Raises:
        UserError: something was refused before the first run.
    """
    data = check(config)
    runs = planned_runs(config)
    _start_output(config, data.digest())
    left = [run for run in runs if not run.is_finished]
    print(f"runs: {len(runs)}, of which {len(runs) - len(left)} are done; logs: {config.folder}/ROW/seed-N.log")
    for run in left:
        (run.recipe.run_dir / TEST_SCORES).unlink(missing_ok=True)  # of a try-out that now goes on
    stopped = _train(config, [run for run in left if not run.row.weights_of], stop)
    for run in left:
        _score_again(config, run, data)
    _report(config, data)
    unfinished = [run for run in left if not run.is_finished]
    if stopped and unfinished:
        leave_marker()
        print(f"stopped by {stop.received or 'a run'}; the same command goes on with {len(unfinished)} run(s)")
        return STOPPED
    for run in unfinished:
        print(f"failed: {run.task.name}: {failed_line(run.task)}", file=sys.stderr)
    return SOME_FAILED if unfinished else NOTHING_FAILED


def _train(config: SweepConfig, runs: Sequence[SweepRun], stop: StopSignal) -> bool:
    """Train the runs; returns True if the sweep was stopped."""
    by_name = {run.task.name: run for run in runs}
    if config.launcher == "slurm":
        return are_left(run_in_slurm([run.task for run in runs], config.folder / "submitit", config.slurm, stop))

    def ended(task: Task, code: int) -> None:
        run = by_name[task.name]
        print(f"  {read_result(run) if run.is_finished else f'failed: {failed_line(task, code)}'}", flush=True)

    return run_here([run.task for run in runs], stop, ended)


def _score_again(config: SweepConfig, run: SweepRun, data: AnnotatedData) -> None:
    """Score the weights that another row has trained, if this row only decodes them and they are there."""
    folder = run.recipe.run_dir
    trained = config.folder / run.row.weights_of / folder.name
    if not run.row.weights_of or not (trained / TEST_SCORES).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", as_plain(run.recipe))
    write_json(folder / "provenance.json", provenance())
    print(f"{run.task.name}: weights of {trained}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    score_weights(trained, folder, data, device, run.row.settings["decoder"])


def _start_output(config: SweepConfig, digest: str) -> None:
    """Write the settings, or resume a sweep of the same data.

    Raises:
        UserError: the folder's runs were made from other tiles or cells, or it cannot be written.
    """
    path = config.folder / "settings.json"
    saved = _saved(path)
    if saved and saved["data"] != digest:
        raise UserError(
            f"the tiles or cells in {config.recipe.source.data} are not those that {config.folder} began with; "
            "give another folder with --run-dir"
        )
    sums = {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in weights_files(config)}
    for file, known in saved.get("weights", {}).items():
        if sums.setdefault(file, known) != known:
            raise UserError(
                f"{file} has changed since runs in {config.folder} began with it; give another folder with "
                "--run-dir"
            )
    make_folder(config.folder, "--run-dir")
    try:
        write_json(path, {"config": as_plain(config), "data": digest, "weights": sums, **provenance()})
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give another --run-dir") from error
    print(f"settings (in {path}):\n{settings_text(config)}")


def _saved(path: Path) -> dict[str, Any]:
    """Read the settings in the folder; empty if there are none."""
    if not path.exists():
        return {}
    try:
        saved = dict(json.loads(path.read_text(encoding="utf-8")))
        return {"data": saved["data"], "weights": dict(saved["weights"])}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged; give another folder with --run-dir, or remove it") from error


def _report(config: SweepConfig, data: AnnotatedData) -> None:
    """Print and write the table of all finished runs in the folder, and name the rows left out."""
    table, finished, layout = TABLES[config.table], finished_runs(config), layout_of(config)
    print_table(table, finished, layout, data)
    for row in table.rows:
        if not row.recipe:
            print(f"not published: the training of {row.label}, of which the paper's numbers are shown")
        elif is_skipped(row, config) and not any(run.row is row for run in finished):
            print(f"left out: {row.name} (it needs a file: --weights {row.name}=FILE)")
    if finished:
        write_tables(config.folder, config.table, table, finished, layout)
