"""All slides of one call, or those that fall to this process of several."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.predict.config import PredictConfig
from finetune.predict.outputs.file_names import drawn_by_prediction
from finetune.predict.outputs.summary import write_overview
from finetune.predict.plan import make_plan
from finetune.predict.share import share_of_process
from finetune.predict.slide_job import SlideJob, predict_slide
from shared.cli import make_folder, settings_text
from shared.errors import NOTHING_FAILED, REFUSED, SOME_FAILED, UserError
from shared.files import printable
from shared.signals import STOPPED, StopSignal, leave_marker
from shared.training.gpu_usage import explain_out_of_memory
from shared.training.worker_errors import explain_worker_death
from shared.wsi.image_source import find_sources

NAMED = 3  # slides that failed, in the last line


def predict(config: PredictConfig, stop: StopSignal) -> int:
    """Do what is left to do; returns the exit code of the process.

    0: all done. 2: nothing could be done. 3: some slides failed, or have parts that cannot be read. 85: told to
    stop; the same command goes on.

    Raises:
        UserError: something was refused before the first slide.
    """
    share = share_of_process(config.part)
    plan = make_plan(config, share.device)
    sources = find_sources(config.sources, drawn_by_prediction)
    jobs = [SlideJob(plan, path, name, len(sources) > 1) for path, name in sources.items()][
        share.rank :: share.size
    ]
    for job in jobs:
        job.check()
    make_folder(config.out, "--out")
    if share.rank == 0:
        print(f"settings:\n{settings_text(config)}")
        names = ", ".join(plan.detector.classes)
        print(f"detector: {names} at {plan.detector.mpp:g} um/px on {plan.detector.device}")
    failed: list[str] = []
    incomplete = 0
    for number, job in enumerate(jobs, 1):
        print(f"[{number}/{len(jobs)}] {printable(str(job.path))}", flush=True)
        if job.is_done():
            print("  done already")
            continue
        try:
            lower = "a lower --batch-size or --tile"
            with explain_worker_death("--workers or --batch-size"), explain_out_of_memory(lower):
                summary = predict_slide(job, stop)
        except UserError as error:
            failed.append(printable(str(job.path)))
            print(f"failed: {error}", file=sys.stderr, flush=True)
            continue
        if summary is None or (stop.received and number < len(jobs)):
            return _stopped(stop)
        incomplete += bool(summary["unreadable"])
        _tell(job.stem, summary)
    if len(failed) < len(jobs):
        print(f"all slides: {write_overview(config.out)}")
    return _code(failed, incomplete, len(jobs))


def _code(failed: Sequence[str], incomplete: int, slides: int) -> int:
    """The exit code; what failed is named in the last line, the one that a report of jobs shows."""
    names = ", ".join([*failed[:NAMED], *(["..."] if len(failed) > NAMED else [])])
    if failed and len(failed) == slides:
        print(f"no slide could be done ({names})", file=sys.stderr)
        return REFUSED
    if failed:
        print(f"{len(failed)} of {slides} slides failed ({names}); the others are done", file=sys.stderr)
    return SOME_FAILED if failed or incomplete else NOTHING_FAILED


def _stopped(stop: StopSignal) -> int:
    leave_marker()
    print(f"stopped by {stop.received}; the same command goes on")
    return STOPPED


def _tell(stem: Path, summary: dict[str, Any]) -> None:
    """What was found, in a few lines."""
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
