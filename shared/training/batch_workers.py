"""Load batches in worker processes without hanging on a small /dev/shm, a dead worker or unresponsive storage.

Workers pass tensors through shared memory. Containers often have 64 MB of it, less than a few batches, and a batch
that finds no room there is lost silently. Where the batches may not fit, they are sent through pipes instead.
"""

import multiprocessing.queues
import os
import pickle
import shutil
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate, default_convert

from shared.files import SHARED_MEMORY
from shared.signals import StopSignal, ignore_signals_in_worker
from shared.training.worker_errors import SILENCE, explain_worker_death

# Seconds without a batch after which the command ends.
PATIENCE_S = 600
# Seconds between two looks at the stop signal while there is no batch.
LOOK_S = 1


class BatchWorkers:
    """Iterator over the batches of a `DataLoader`; as a context it ends the workers and explains their death."""

    def __init__(
        self,
        dataset: Dataset[Any],
        workers: int,
        device: torch.device,
        batch_bytes: int,
        remedy: str,
        **options: Any,
    ) -> None:
        """Start the workers.

        Args:
            dataset: What they read.
            workers: Number of processes; 0: this process reads.
            device: A GPU gets its batches from page-locked memory.
            batch_bytes: Size of a batch, to compare with the free shared memory.
            remedy: Options to lower if memory runs out, for error messages.
            options: Passed on to `DataLoader`; of its `prefetch_factor` the default is 2.
        """
        self._remedy, ahead = remedy, options.pop("prefetch_factor", 2)
        self._piped = workers > 0 and not _fit_in_shared_memory(batch_bytes * (workers * ahead + 2), remedy)
        if self._piped:
            plain = default_collate if options.get("batch_size", 1) is not None else default_convert
            options["collate_fn"] = _Pickled(options.get("collate_fn", plain))
        before = set(multiprocessing.active_children())
        loader = DataLoader(
            dataset,
            num_workers=workers,
            multiprocessing_context="fork"
            if workers
            else None,  # what is read is shared, and a worker starts at once
            worker_init_fn=_start_worker,
            prefetch_factor=ahead if workers else None,
            timeout=min(LOOK_S, PATIENCE_S) if workers else 0,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # else the loader draws from the global one, and a resumed run once more
            **options,
        )
        self._batches = iter(loader)
        self.processes = [child for child in multiprocessing.active_children() if child not in before]

    def __iter__(self) -> "BatchWorkers":
        return self

    def __next__(self) -> Any:
        return self.take()

    def take(self, stop: StopSignal | None = None) -> Any:
        """Take the next batch; None if a signal tells to stop while the workers deliver none.

        Raises:
            RuntimeError: torch's error for a worker that was killed, or ours if they deliver nothing for minutes;
                the context explains both.
            StopIteration: there are no more.
        """
        since = time.monotonic()
        while True:
            try:
                batch = next(self._batches)
            except RuntimeError as error:
                if not str(error).startswith(SILENCE):
                    raise
                if stop is not None and stop.received:
                    return None
                if time.monotonic() - since >= PATIENCE_S:
                    raise RuntimeError(f"{SILENCE} {PATIENCE_S} seconds") from error
            else:
                return pickle.loads(batch) if self._piped else batch  # written by our own worker

    def __enter__(self) -> "BatchWorkers":
        return self

    def __exit__(self, *raised: object) -> None:
        """End the workers; left to the interpreter's exit they would not, as they ignore its TERM.

        Raises:
            UserError: the error that ends the block is torch's for a worker that was killed or gave nothing.
        """
        error = raised[1]
        try:
            with explain_worker_death(self._remedy):
                if isinstance(error, BaseException):
                    raise error
        finally:
            if shut_down := getattr(self._batches, "_shutdown_workers", None):
                shut_down()  # explicit, because the traceback of an error keeps the iterator alive
            for worker in self.processes:
                worker.kill()  # one that waits for what a killed one held
                worker.join(1)


class _Pickled:
    """Collate a batch into bytes, which go through a pipe."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: Any) -> bytes:
        return pickle.dumps(self.collate(samples), protocol=pickle.HIGHEST_PROTOCOL)


def _fit_in_shared_memory(needed: int, remedy: str) -> bool:
    """Compare the free shared memory of the node with what the batches of its ranks need; a note if it is less."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or 1)
    needed *= ranks
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        free = 0
    if free >= needed:
        return True
    print(
        f"note: {SHARED_MEMORY} has {free / 1e6:,.0f} MB free of the {needed / 1e6:,.0f} MB that batches need, so "
        f"they go through pipes, which is slower; enlarge it (docker run --shm-size) or lower {remedy}"
    )
    return False


def _start_worker(number: int) -> None:
    """Let a worker outlive signals meant for its parent, and end when it cannot deliver a batch."""
    ignore_signals_in_worker(number)
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]


def _end_worker(_error: Exception, _batch: object) -> None:
    """End this process: multiprocessing would drop the batch, and the training would wait for it forever."""
    os._exit(1)
