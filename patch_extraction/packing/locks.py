"""Locks of an output folder: one harvest, or one pack, or the parts of one harvest in parallel.

The system releases them when a process ends, however it does.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from shared.errors import UserError
from shared.files import file_lock
from shared.jobs.partition import Part

LOCK = ".lock"
TEMPORARY = re.compile(r"\..+\.\d+\.tmp")  # temporary files of `shared.files`


@contextmanager
def only_harvest(out: Path) -> Iterator[None]:
    """Make and lock the output folder, and remove temporary files of killed harvests.

    Raises:
        UserError: another harvest, or a part of one, is running; the folder cannot be written.
    """
    _make(out)
    with hold(out / LOCK, f"another harvest is writing to {out}; wait for it"):
        for path in (*out.glob(".*.tmp"), *out.glob("*/.*.tmp")):
            if TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)
        yield


@contextmanager
def only_part(out: Path, part: Part) -> Iterator[None]:
    """Make the output folder and lock it against the same part, other divisions into parts, harvests and packing.

    Raises:
        UserError: one of these is running; the folder cannot be written.
    """
    _make(out)
    own = _lock_of(out, part.number, part.of)
    busy = f"another harvest is writing to {out}; wait for it"
    with ExitStack() as held:
        held.enter_context(hold(out / LOCK, busy, shared=True))
        held.enter_context(hold(own, f"another task harvests part {part} into {out}; wait for it"))
        # Every task holds its own lock before it checks the others', so that of two at least one sees the other.
        for path in out.glob(_lock_of(out, "*", "*").name):
            if not path.name.endswith(f"-of-{part.of}.lock"):
                other = f"tasks with another number of parts than {part.of} harvest into {out}; wait for them"
                with hold(path, other, shared=True):
                    pass
        yield


@contextmanager
def one_after_another(out: Path) -> Iterator[None]:
    """Lock for steps that parts must not run concurrently."""
    with hold(out / ".turn.lock"):
        yield


def _lock_of(out: Path, number: object, of: object) -> Path:
    return out / f".part-{number}-of-{of}.lock"


def _make(out: Path) -> None:
    """Make the output folder.

    Raises:
        UserError: it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; choose another --out") from error


@contextmanager
def hold(path: Path, taken: str = "", shared: bool = False) -> Iterator[None]:
    """Hold a lock of an output folder.

    Args:
        path: The file to lock; it is made.
        taken: Error message if another process holds it; empty: wait for it.
        shared: Hold it together with others that share it.

    Raises:
        UserError: the lock is held elsewhere, or the file cannot be written.
    """
    with ExitStack() as held:
        try:
            held.enter_context(file_lock(path, shared, wait=not taken))
        except BlockingIOError as error:
            raise UserError(f"{taken} or choose another --out") from error
        except OSError as error:
            raise UserError(f"cannot write to {path.parent}: {error.strerror}; choose another --out") from error
        yield
