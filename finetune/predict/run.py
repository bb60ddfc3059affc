"""Prediction of all slides of a command, or of the share of this process among several."""

import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.predict.config import PredictConfig
from finetune.predict.outputs.cell_counts import write_overview
from finetune.predict.outputs.output_names import FAILURE, drawn_by_prediction, file_of
from finetune.predict.prediction_plan import PredictPlan, make_plan
from finetune.predict.search.tiling import note_on_margin, tiling_of
from finetune.predict.share import share_of_process
from finetune.predict.slide_job import SlideJob, predict_slide
from finetune.predict.supervise import BEGUN, DONE, FAILED, INCOMPLETE, KILLED, SlideLog
from shared.cli import make_folder, settings_text
from shared.errors import DISK_FULL, NOTHING_FAILED, REFUSED, SOME_FAILED, UserError
from shared.files import own_path, printable
from shared.signals import STOPPED, StopSignal, leave_marker
from shared.training.gpu_usage import ON_CPU, explain_out_of_memory
from shared.training.worker_errors import explain_worker_death
from shared.wsi.image_source import find_sources

LOWER_MEMORY = "a lower --batch-size or --tile"
NAMED = 3  # slides that failed, in the last line


def predict(config: PredictConfig, stop: StopSignal, log: SlideLog | None = None) -> int:
    """Predict the slides that are not done; returns the exit code of the process.

    0: all done. 2: nothing could be done. 3: some slides failed, or have parts that cannot be read. 85: stopped by
    a signal; the same command resumes.

    Args:
        config: The options.
        stop: Set by signals.
        log: Outcomes of slides in processes before this one.

    Raises:
        UserError: something was refused before the first slide.
    """
    log = log or SlideLog()
    share = share_of_process(config.part)
    with explain_out_of_memory(ON_CPU):
        plan = make_plan(config, share.device)
    sources = find_sources(config.sources, drawn_by_prediction)
    jobs = [SlideJob(plan, path, name, len(sources) > 1) for path, name in sources.items()][
        share.rank :: share.size
    ]
    before = log.outcomes()
    if not before:
        _begin(plan, jobs, share.rank == 0)
    for number, job in enumerate(jobs, 1):
        if number in before and not before[number].startswith(KILLED):
            continue
        print(f"[{number}/{len(jobs)}] {printable(str(job.path))}", flush=True)
        log.note(number, BEGUN)
        killed = before.get(number)
        outcome = _killed(job, killed, log.last_trace()) if killed else _predict(job, stop)
        if outcome is None or (stop.received and number < len(jobs)):
            return _stopped(stop)
        log.note(number, outcome)
    outcomes = log.outcomes()
    if any(outcome != FAILED for outcome in outcomes.values()):
        print(f"all slides: {write_overview(config.out)}")
    return _code(jobs, outcomes)


def _begin(plan: PredictPlan, jobs: Sequence[SlideJob], speaks: bool) -> None:
    """Refuse what can be refused, make the output folder, print the settings."""
    for job in jobs:
        job.check()
    make_folder(plan.config.out, "--out")
    if speaks:
        print(f"settings:\n{settings_text(plan.config)}")
        detector = plan.detector
        print(f"detector: {', '.join(detector.classes)} at {detector.mpp:g} um/px on {detector.device}")
        network, config = detector.network.config, plan.config
        tiling = tiling_of((1, 1), network, detector.tile, config.tile, config.margin)
        if note := note_on_margin(network, tiling):
            print(f"note: {note}")


def _predict(job: SlideJob, stop: StopSignal) -> str | None:
    """Predict one slide, whatever goes wrong; returns its outcome, or None if it was stopped."""
    if job.is_done():
        print("  done already")
        return DONE
    try:
        with explain_worker_death("--workers or --batch-size"), explain_out_of_memory(LOWER_MEMORY):
            summary = predict_slide(job, stop)
    except UserError as error:
        return _failed(job, str(error))
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        return _failed(job, _logged(job, f"{type(error).__name__}: {error}", traceback.format_exc()))
    if summary is None:
        return None
    file_of(job.stem, FAILURE).unlink(missing_ok=True)
    _print_result(job.stem, summary)
    return INCOMPLETE if summary["unreadable"] else DONE


def _killed(job: SlideJob, how: str, trace: str) -> str:
    """Make the outcome of a slide that killed its process."""
    cause = " (perhaps memory ran out: lower --workers or --batch-size)" if not trace else ""
    return _failed(job, _logged(job, f"its process was {how}{cause}", trace))


def _logged(job: SlideJob, reason: str, trace: str) -> str:
    """Write NAME.failure.log; returns the reason with the name of the log."""
    path = file_of(job.stem, FAILURE)
    with own_path(path) as temporary:
        temporary.write_text(f"{printable(f'{job.path}: {reason}')}\n\n{trace}", "utf-8", "backslashreplace")
    return f"{reason}; see {path}"


def _failed(job: SlideJob, reason: str) -> str:
    named = reason if str(job.path) in reason else f"{job.path}: {reason}"
    print(f"failed: {printable(named)}", file=sys.stderr, flush=True)
    return FAILED


def _code(jobs: Sequence[SlideJob], outcomes: Mapping[int, str]) -> int:
    """Compute the exit code; the last line, which a report of jobs shows, names slides that failed."""
    failed = [printable(str(jobs[number - 1].path)) for number, outcome in outcomes.items() if outcome == FAILED]
    names = ", ".join([*failed[:NAMED], *(["..."] if len(failed) > NAMED else [])])
    if failed and len(failed) == len(jobs):
        print(f"no slide could be done ({names})", file=sys.stderr)
        return REFUSED
    if failed:
        print(f"{len(failed)} of {len(jobs)} slides failed ({names}); the others are done", file=sys.stderr)
    return SOME_FAILED if failed or INCOMPLETE in outcomes.values() else NOTHING_FAILED


def _stopped(stop: StopSignal) -> int:
    leave_marker()
    print(f"stopped by {stop.received}; the same command goes on")
    return STOPPED


def _print_result(stem: Path, summary: dict[str, Any]) -> None:
    """Print counts and ratios of a slide, in a few lines."""
    area = summary["area"]
    counts = ", ".join(f"{name} {count['cells']:,}" for name, count in summary["classes"].items())
    print(f"  {summary['cells']:,} cells on {area['mm2']:.4g} mm2 ({area['kind']}): {counts}")
    for name, ratio in summary["ratios"].items():
        value = "not defined (division by zero)" if ratio["value"] is None else f"{ratio['value']:.4g}"
        print(f"  {name} = {ratio['definition']} = {value}")
    if unreadable := summary["unreadable"]:
        asked = summary["tiles"]["asked"]
        print(
            f"warning: {len(unreadable)} of {asked} tiles cannot be read and lack their cells: {unreadable[0]}",
            file=sys.stderr,
        )
    print(f"  {printable(str(stem))}.*", flush=True)
