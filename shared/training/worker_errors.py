"""Explain the death of a loader process, or its silence, in one sentence."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from shared.errors import UserError

# Raised where tensors were still to be fetched from a dead process.
GONE = (ConnectionResetError, ConnectionRefusedError, EOFError)


@contextmanager
def explain_worker_death(remedy: str) -> Iterator[None]:
    """Turn torch's errors about a loader process, raised wherever the training just is, into a UserError.

    Args:
        remedy: Options of the command to lower if memory ran out.

    Raises:
        UserError: a loader process was killed, or none delivered a batch for minutes.
    """
    try:
        yield
    except (RuntimeError, *GONE) as error:
        # "(pid 7) is killed by signal" or "(pid(s) 7) exited unexpectedly"; errors inside begin with "Caught ...".
        if isinstance(error, RuntimeError) and str(error).startswith("DataLoader timed out after"):
            minutes = float(str(error).split()[4]) / 60
            raise UserError(
                f"the loader processes delivered no batch for {minutes:.3g} minutes, as when storage does not "
                f"respond; the same command goes on from the last checkpoint; if it happens again, lower {remedy}"
            ) from error
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker (pid"):
            raise
        if isinstance(error, GONE):
            with suppress(RuntimeError):  # torch's own, on the signal of the death, which is still to come
                time.sleep(1)
        raise UserError(
            "a loader process was killed, probably because memory or /dev/shm ran out; the same command goes on "
            f"from the last checkpoint; if it happens again, lower {remedy}"
        ) from error
