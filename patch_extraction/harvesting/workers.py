"""All slides, several at a time: finished ones are skipped, the others each done by one process.

A slide that hangs or brings its process down costs that slide: the process is replaced, the slide is named.
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
from patch_extraction.slide_store.slide_record import Record, finished
from shared.errors import DISK_FULL, UserError
from shared.signals import ignore_signals_in_worker
from shared.training.run_folder import progress

TELL_EVERY = 0.5  # seconds between two words of a worker about its patches
KILLING = 20  # seconds; what waits for a disk that does not answer cannot be killed, and must not hold up the rest
Task = Callable[..., Record]  # takes a source, and `tell`, which takes the number of patches so far


def finished_slides(sources: Sequence[SlideEntry], config: HarvestConfig) -> dict[str, Record]:
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
    sources: Sequence[SlideEntry], done: Mapping[str, Record], config: HarvestConfig, counter: CellCounter
) -> list[Record]:
    """Harvest every slide that is not `done` yet; the records of all, in the order of `sources`.

    Raises:
        UserError: the disk is full.
    """
    records = dict(done)
    todo = [source for source in sources if source.slide_id not in done]
    if done:
        print(f"{len(done)} of {len(sources)} slides are done already; going on with the others", flush=True)
    task = functools.partial(harvest_slide, config=config, counter=counter)
    with progress(len(sources), "slide", len(done), "harvesting") as bar:
        kept = sum(record.kept for record in done.values())
        for record, under_way in each(task, todo, config):
            if record is not None:
                records[record.slide_id] = record
                kept += record.kept
                bar.update()
            bar.set_postfix(patches=kept + under_way, refresh=False)
            bar.update(0)  # so that the patches are seen to grow while a large slide is at work
    return [records[source.slide_id] for source in sources]


def each(task: Task, sources: Sequence[SlideEntry], config: HarvestConfig) -> Iterator[tuple[Record | None, int]]:
    """Run the task on every source, each in one of several processes.

    Yields a record when a slide is done, or None when there is news only; and the patches that the slides at
    work have given so far.

    Raises:
        UserError: what a task raised; the others are given up.
    """
    waiting = deque(sources)
    # Not forked from this process, which has threads; a server that has no more than imported everything.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["patch_extraction.pipeline"])
    workers = [_Worker(context, task, config) for _ in range(min(config.processes(), len(waiting)))]
    try:
        for worker in workers:
            worker.begin(waiting.popleft())
        while busy := [worker for worker in workers if worker.source]:
            patience = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
            ready = wait_for([worker.pipe for worker in busy], patience)
            for worker in busy:
                record = worker.news(worker.pipe in ready)
                if record is not None and waiting:
                    worker.begin(waiting.popleft())
                yield record, sum(other.kept for other in workers)
    finally:
        for worker in workers:
            worker.kill()


@dataclass(frozen=True)
class _Abort:
    """What a worker says when the whole harvest has to end."""

    sentence: str


class _Worker:
    """A process that does one slide after the other, and is replaced where one is its end."""

    def __init__(
        self, context: multiprocessing.context.ForkServerContext, task: Task, config: HarvestConfig
    ) -> None:
        self._context, self._task, self._config = context, task, config
        self.source: SlideEntry | None = None
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

    def begin(self, source: SlideEntry) -> None:
        """Hand over a slide."""
        if self.pipe.closed or not self._process.is_alive():  # given up: it may live on where it cannot be killed
            self._start()
        self.source = source
        self._count_from_now(0)
        self.pipe.send(source)

    def _count_from_now(self, kept: int) -> None:
        self.kept = kept
        if not kept:
            self._began = time.monotonic()
            self.deadline = self._began + 60 * self._config.slide_minutes

    def news(self, said_something: bool) -> Record | None:
        """The record of the slide, if it has come to its end in one way or another."""
        assert self.source is not None
        if said_something:
            try:
                word = self.pipe.recv()
            except (EOFError, ConnectionResetError):
                return self._give_up(self._death())
            if isinstance(word, _Abort):
                raise UserError(word.sentence)
            if isinstance(word, int):
                self._count_from_now(word)
                return None
            self.source, self.kept = None, 0
            return word
        if time.monotonic() < self.deadline:
            return None
        return self._give_up(
            f"was given up after {self._config.slide_minutes:g} minutes; copy it again, "
            "or give it more time with --slide-minutes"
        )

    def kill(self) -> None:
        """End the process and remove what it has half written."""
        self._process.kill()
        self._process.join(KILLING)
        if self._process.is_alive():
            # Python would wait for it before it exits, without end; there is no public way to have it not do so.
            multiprocessing.process._children.discard(self._process)  # type: ignore[attr-defined]
        self.pipe.close()
        if self.source is not None:  # only its own: on another node a process of this number may be at work
            for path in self._config.out.glob(f"*/.{self.source.slide_id}.*.{self._process.pid}.tmp"):
                path.unlink(missing_ok=True)

    def _give_up(self, reason: str) -> Record:
        assert self.source is not None
        self.kill()
        source, self.source, self.kept = self.source, None, 0
        return failed_record(source, self._config, f"{source.path} {reason}", time.monotonic() - self._began)

    def _death(self) -> str:
        self._process.join(KILLING)
        code = self._process.exitcode or 0
        if code == -signal.SIGKILL:
            return "ended with its process being killed, perhaps for lack of memory; use fewer --workers"
        how = signal.strsignal(-code) if code < 0 else f"exit code {code}"
        return f"brought its process down ({how}); copy it again or remove it"


def _work(pipe: Connection, task: Task) -> None:
    """Do the slides that come through the pipe until it is closed."""
    _end_with_parent()
    while True:
        try:
            source = pipe.recv()
        except EOFError:
            return
        pipe.send(0)  # only now the slide's time begins; starting the process took some
        try:
            pipe.send(task(source, tell=_Throttled(pipe)))
        except UserError as error:
            pipe.send(_Abort(str(error)))
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            pipe.send(_Abort(f"cannot write {error.filename}: {error.strerror}; {MAKE_ROOM}"))


class _Throttled:
    """Sends a number now and then, not every time."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._last = pipe, time.monotonic()

    def __call__(self, kept: int) -> None:
        if time.monotonic() - self._last > TELL_EVERY:
            self._last = time.monotonic()
            self._pipe.send(kept)


def _end_with_parent() -> None:
    """Let a worker end with the main process, even if that one is killed, and quietly on Ctrl-C.

    A scheduler's signal, which all processes get, must not kill a worker before the main process knows of it: the
    slide would be taken for one that brings processes down.
    """
    ignore_signals_in_worker()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
