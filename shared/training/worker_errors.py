"""Processes that load batches: what the training says when one of them dies."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from shared.errors import UserError

# A batch whose tensors were still to be fetched from the process.
GONE = (ConnectionResetError, ConnectionRefusedError, EOFError)


@contextmanager
def deaths_named(remedy: str) -> Iterator[None]:
    """Turn a loader process's death, which torch raises wherever the training just is, into a sentence.

    Args:
        remedy: What to lower if memory ran out, as options of the command.

    Raises:
        UserError: a loader process was killed.
    """
    try:
        yield
    except (RuntimeError, *GONE) as error:
        # "(pid 7) is killed by signal" or "(pid(s) 7) exited unexpectedly"; errors inside begin with "Caught ...".
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker (pid"):
            raise
        if isinstance(error, GONE):
            with suppress(RuntimeError):  # torch's own, on the signal of the death, which is still to come
                time.sleep(1)
        raise UserError(
            "a loader process was killed, probably because memory ran out; the same command goes on from the "
            f"last checkpoint; if it happens again, lower {remedy}"
        ) from error
