"""Worker processes, each harvesting one slide at a time.

A slide that hangs or crashes costs only itself: its process is replaced and the slide recorded as failed.
"""

import functools
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from multiprocessing.context import ForkServerProcess

from patch_extraction.config import HarvestConfig, SlideEntry
from patch_extraction.counters.base import CellCounter
from patch_extraction.harvesting.slide_harvest import MAKE_ROOM, failed_record, harvest_slide
from patch_extraction.slide_store.slide_record import Record
from shared.errors import DISK_FULL, UserError
from shared.signals import ignore_signals_in_worker
from shared.training.run_folder import progress

PROGRESS_SECONDS = 0.5  # minimum time between two messages about progress
KILL_SECONDS = 20  # a process that waits for a dead disk cannot be killed and must not stop the others
Task = Callable[..., Record]  # takes a slide, and `on_progress`, which takes the number of patches so far


def harvest_slides(
    entries: Sequence[SlideEntry], done: Mapping[str, Record], config: HarvestConfig, counter: CellCounter
) -> list[Record]:
    """Harvest every slide that is not in `done`; return the records of all, in the order of `entries`.

    Raises:
        UserError: the disk is full.
    """
    records = dict(done)
    todo = [entry for entry in entries if entry.slide_id not in done]
    if done:
        print(f"{len(done)} of {len(entries)} slides are done already; continuing with the others", flush=True)
    task = functools.partial(harvest_slide, config=config, counter=counter)
    with progress(len(entries), "slide", len(done), "harvesting") as bar:
        kept = sum(record.kept for record in done.values())
        for record, in_progress in run_isolated(task, todo, config):
            if record is not None:
                records[record.slide_id] = record
                kept += record.kept
                bar.update()
            bar.set_postfix(patches=kept + in_progress, refresh=False)
            bar.update(0)  # shows the number of patches while a large slide is being harvested
    return [records[entry.slide_id] for entry in entries]


def run_isolated(
    task: Task, entries: Sequence[SlideEntry], config: HarvestConfig
) -> Iterator[tuple[Record | None, int]]:
    """Run the task on every slide in a pool of processes.

    Yields:
        The record of a completed slide, or None on mere progress; and the patches of the slides in progress so
        far.

    Raises:
        UserError: raised by a task; the other tasks are killed.
    """
    waiting = deque(entries)
    # A fork server that has only imported the modules: this process has threads, which do not survive forking.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["patch_extraction.pipeline"])
    workers = [_Worker(context, task, config) for _ in range(min(config.processes(), len(waiting)))]
    try:
        for worker in workers:
            worker.begin(waiting.popleft())
        while busy := [worker for worker in workers if worker.entry]:
            timeout = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
            ready = wait_for([worker.pipe for worker in busy], timeout)
            for worker in busy:
                record = worker.poll(worker.pipe in ready)
                if record is not None and waiting:
                    worker.begin(waiting.popleft())
                yield record, sum(other.kept for other in workers)
    finally:
        for worker in workers:
            worker.kill()


@dataclass(frozen=True)
class _Abort:
    """Message that ends the whole harvest, such as a full disk."""

    sentence: str


class _Worker:
    """A process that runs one task after another and is replaced if it dies or exceeds the time limit."""

    def __init__(
        self, context: multiprocessing.context.ForkServerContext, task: Task, config: HarvestConfig
    ) -> None:
        self._context, self._task, self._config = context, task, config
        self.entry: SlideEntry | None = None
        self.kept = 0
        self.deadline = 0.0
        self._start()

    def _start(self) -> None:
        self.pipe, theirs = self._context.Pipe()
        self._process: ForkServerProcess = self._context.Process(
            target=_work, args=(theirs, self._task), daemon=True
        )
        self._process.start()
        theirs.close()

    def begin(self, entry: SlideEntry) -> None:
        """Send a slide to the process."""
        if self.pipe.closed or not self._process.is_alive():  # closed: it was given up and may not be killable
            self._start()
        self.entry = entry
        self._set_progress(0)
        self.pipe.send(entry)

    def _set_progress(self, kept: int) -> None:
        self.kept = kept
        if not kept:
            self._began = time.monotonic()
            self.deadline = self._began + 60 * self._config.slide_minutes

    def poll(self, has_message: bool) -> Record | None:
        """Return the record of the slide once it is completed, has failed or exceeded the time limit."""
        assert self.entry is not None
        if has_message:
            try:
                message = self.pipe.recv()
            except (EOFError, ConnectionResetError):
                return self._give_up(self._cause_of_death())
            if isinstance(message, _Abort):
                raise UserError(message.sentence)
            if isinstance(message, int):
                self._set_progress(message)
                return None
            self.entry, self.kept = None, 0
            return message
        if time.monotonic() < self.deadline:
            return None
        return self._give_up(
            f"was given up after {self._config.slide_minutes:g} minutes; copy it again, "
            "or give it more time with --slide-minutes"
        )

    def kill(self) -> None:
        """Kill the process and remove its temporary files."""
        self._process.kill()
        self._process.join(KILL_SECONDS)
        if self._process.is_alive():
            # Python would wait for it at exit, forever; there is no public way to prevent that.
            multiprocessing.process._children.discard(self._process)  # type: ignore[attr-defined]
        self.pipe.close()
        if self.entry is not None:  # of this slide only: a process of another node may have the same number
            for path in self._config.out.glob(f"*/.{self.entry.slide_id}.*.{self._process.pid}.tmp"):
                path.unlink(missing_ok=True)

    def _give_up(self, reason: str) -> Record:
        assert self.entry is not None
        self.kill()
        entry, self.entry, self.kept = self.entry, None, 0
        return failed_record(entry, self._config, f"{entry.path} {reason}", time.monotonic() - self._began)

    def _cause_of_death(self) -> str:
        self._process.join(KILL_SECONDS)
        code = self._process.exitcode or 0
        if code == -signal.SIGKILL:
            return "ended with its process being killed, perhaps for lack of memory; use fewer --workers"
        how = signal.strsignal(-code) if code < 0 else f"exit code {code}"
        return f"brought its process down ({how}); copy it again or remove it"


def _work(pipe: Connection, task: Task) -> None:
    """Run the task on the slides received through the pipe until it is closed."""
    _end_with_parent()
    while True:
        try:
            entry = pipe.recv()
        except EOFError:
            return
        pipe.send(0)  # starts the time limit, which excludes the start of the process
        try:
            pipe.send(task(entry, on_progress=_Throttled(pipe)))
        except UserError as error:
            pipe.send(_Abort(str(error)))
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            pipe.send(_Abort(f"cannot write {error.filename}: {error.strerror}; {MAKE_ROOM}"))


class _Throttled:
    """Sends a number at most once per PROGRESS_SECONDS."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._last = pipe, time.monotonic()

    def __call__(self, kept: int) -> None:
        if time.monotonic() - self._last > PROGRESS_SECONDS:
            self._last = time.monotonic()
            self._pipe.send(kept)


def _end_with_parent() -> None:
    """Let a worker end with the main process, even if that is killed, and quietly on Ctrl-C.

    Schedulers signal all processes of a job. A worker must not die of it before the main process knows; the slide
    would be recorded as one that crashes.
    """
    ignore_signals_in_worker()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
