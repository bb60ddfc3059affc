"""All slides, several at a time: finished ones are skipped, the others each done by one process."""

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_processes

from patch_extraction.cell_counters import CellCounter
from patch_extraction.config import HarvestConfig, Source
from patch_extraction.harvest import harvest_slide
from patch_extraction.slide_tar import Record, finished
from shared.command_line import UserError
from shared.runs import progress


def finished_slides(sources: Sequence[Source], config: HarvestConfig) -> dict[str, Record]:
    """Records of the slides whose tars are whole, by slide id.

    Raises:
        UserError: one was made with other settings and may not be overwritten.
    """
    done = {}
    for source in sources:
        record = finished(config.out, source)
        if record is None:
            continue
        other = [name for name, value in source.settings.items() if record.settings.get(name) != value]
        if not other:
            done[source.slide_id] = record
        elif not config.overwrite:
            changes = ", ".join(
                f"{name} {record.settings.get(name)!r} instead of {source.settings[name]!r}" for name in other
            )
            raise UserError(
                f"{config.out} holds patches of {source.name} made with {changes}; "
                "choose another folder with --out, or redo such slides with --overwrite"
            )
    return done


def harvest_slides(
    sources: Sequence[Source], done: Mapping[str, Record], config: HarvestConfig, counter: CellCounter
) -> list[Record]:
    """Harvest every slide that is not `done` yet; the records of all, in the order of `sources`.

    Raises:
        UserError: the disk is full; a process died.
    """
    records = dict(done)
    todo = [source for source in sources if source.slide_id not in done]
    if done:
        print(f"{len(done)} of {len(sources)} slides are done already; going on with the others", flush=True)
    task = functools.partial(harvest_slide, config=config, counter=counter)
    kept = sum(record.kept for record in done.values())
    with progress(len(sources), "slide", len(done), "harvesting") as bar:
        for record in _each(task, todo, min(config.processes(), len(todo))):
            records[record.slide_id] = record
            kept += record.kept
            bar.set_postfix(patches=kept, refresh=False)
            bar.update()
    return [records[source.slide_id] for source in sources]


def _each(task: functools.partial, sources: Sequence[Source], processes: int) -> Iterator[Record]:
    """Run the task on every source; records come as they are done."""
    if processes <= 1:
        yield from map(task, sources)
        return
    context = multiprocessing.get_context("spawn")  # forking a process with threads may hang
    pool = ProcessPoolExecutor(processes, context, initializer=_end_with_parent)
    try:
        waiting = {pool.submit(task, source) for source in sources}
        while waiting:
            ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ready:
                yield future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, perhaps for lack of memory; start the same command again, "
            "it goes on from here, with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Let a worker end with the main process, even if that one is killed, and quietly on Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait_for_processes([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
