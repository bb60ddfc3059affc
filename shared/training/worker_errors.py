"""Explain the death of a loader process, or its silence, in one sentence."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from shared.errors import UserError

SILENCE = "DataLoader timed out after"  # torch's; seconds follow
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
        try:
            yield
        except GONE as error:
            time.sleep(1)  # torch raises on the signal of the death, which may still be to come
            raise _killed(remedy) from error
    except RuntimeError as error:
        # "(pid 7) is killed by signal" or "(pid(s) 7) exited unexpectedly"; errors inside begin with "Caught ...".
        message = str(error)
        if message.startswith(SILENCE):
            minutes = float(message.split()[4]) / 60
            raise UserError(
                f"the loader processes delivered no batch for {minutes:.3g} minutes, as when storage does not "
                f"respond; the same command goes on from the last checkpoint; if it happens again, lower {remedy}"
            ) from error
        if message.startswith("DataLoader worker (pid"):
            raise _killed(remedy) from error
        raise


def _killed(remedy: str) -> UserError:
    return UserError(
        "a loader process was killed, probably because memory or /dev/shm ran out; the same command goes on "
        f"from the last checkpoint; if it happens again, lower {remedy}"
    )
