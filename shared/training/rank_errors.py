"""Raise an error of one rank on all ranks, so that all end with one message and none hangs."""

import atexit
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from shared.errors import UserError
from shared.training import distributed
from shared.training.distributed import World
from shared.training.gpu_usage import ON_CPU, exhausted

# Gloo's errors for a peer that has ended (NCCL's watchdog ends the process itself).
GONE = re.compile(r"gloo/transport.*(closed by peer|reset by peer|Broken pipe)")


class AllRanksError(UserError):
    """Error raised at the same place on every rank; the first rank reports it."""


def on_all_ranks(train: Callable[[World], int]) -> int:
    """Join the process group, train, leave it; returns the exit code of this rank.

    Raises:
        AllRanksError: on the first rank, which reports it; the others end with code 2.
        UserError: on a rank that alone found a reason to end; and on the ranks that were left waiting for it.
    """
    try:
        world = distributed.start()
        code = train(world)
    except AllRanksError:
        # Only if all ranks leave the group: a single one would wait for the others.
        distributed.stop()
        if world.is_main:
            raise
        return 2
    except UserError:
        if dist.is_initialized():
            atexit.register(_leave_at_once)
        raise
    except RuntimeError as error:
        if not (sentence := _explained(error)):
            raise
        atexit.register(_leave_at_once)
        raise UserError(sentence) from error
    distributed.stop()
    return code


def _explained(error: RuntimeError) -> str:
    """Return the error message for failures of the backend that users can act on; empty for others."""
    if "Duplicate GPU detected" in str(error):  # NCCL
        return "two ranks were given the same GPU; start one task for each GPU"
    if GONE.search(str(error)):
        return "another rank has ended and reports the reason; this one cannot continue without it"
    if reason := exhausted(error):
        return f"{reason}; run the same command with {ON_CPU}"
    return ""


def _leave_at_once() -> None:
    """End with code 2 without Python's clean-up, which gloo's threads of a live group could abort."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)


@contextmanager
def together(world: World) -> Iterator[None]:
    """Run a block without collective operations on every rank; raise a UserError of one rank on all.

    Raises:
        AllRanksError: on every rank, with the sentence of the first rank that failed.
    """
    sentence = ""
    try:
        yield
    except UserError as error:
        sentence = str(error)
    for message in texts_of_ranks(sentence, world):
        if message:
            raise AllRanksError(message)


def not_finite(what: str, step: int, folder: Path, remedy: str) -> AllRanksError:
    """Error for a run whose loss or weights are not finite, on every rank.

    Args:
        what: "the loss", for example.
        step: The step at which it was found.
        folder: The run folder.
        remedy: Options of the command that may help.
    """
    return AllRanksError(
        f"{what} is infinite or not a number at step {step:,}; the checkpoints before it are kept in {folder}: "
        f"run the same command with {remedy}"
    )


def refuse_differences(mine: str, world: World, sentence: str) -> None:
    """Require the same text on all ranks.

    Raises:
        AllRanksError: on every rank, with `sentence`, if `mine` is not the same on all.
    """
    if len(set(texts_of_ranks(mine, world))) > 1:
        raise AllRanksError(sentence)


def texts_of_ranks(text: str, world: World) -> list[str]:
    """Gather a text from every rank; all get the same list, ordered by rank."""
    if not dist.is_initialized():
        return [text]
    content = torch.tensor(list(text.encode()), dtype=torch.uint8, device=world.device)
    lengths = torch.zeros(world.size, dtype=torch.int64, device=world.device)
    lengths[world.rank] = len(content)
    dist.all_reduce(lengths)
    rows = torch.zeros(world.size, int(lengths.max()) + 1, dtype=torch.uint8, device=world.device)
    rows[world.rank, : len(content)] = content
    dist.all_reduce(rows)  # the others' rows are zeros
    return [bytes(row[:length]).decode() for row, length in zip(rows.tolist(), lengths.tolist(), strict=True)]
