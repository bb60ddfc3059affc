"""Who may write to an output folder: one harvest, or one pack, or the parts of one harvest side by side.

The locks are the system's: whatever ends a process lifts them.
"""

import errno
import fcntl
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from shared.errors import UserError
from shared.jobs.partition import Part

LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of file systems that cannot lock
TEMPORARY = re.compile(r"\..+\.\d+\.tmp")  # what `shared.files` leaves behind when it is killed


@contextmanager
def only_harvest(out: Path) -> Iterator[None]:
    """Make the output folder and keep other harvests out of it; what killed ones left half-written goes.

    Raises:
        UserError: another harvest, or a part of one, is at it; the folder cannot be written.
    """
    _make(out)
    with hold(out / LOCK, fcntl.LOCK_EX, f"another harvest is writing to {out}; wait for it"):
        for path in (*out.glob(".*.tmp"), *out.glob("*/.*.tmp")):
            if TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)
        yield


@contextmanager
def only_part(out: Path, part: Part) -> Iterator[None]:
    """Make the output folder and keep out of it whoever would do the same slides, or pack them too early.

    Raises:
        UserError: another harvest, a pack, the same part or one of another division is at it; the folder cannot
            be written.
    """
    _make(out)
    own = _lock_of(out, part.number, part.of)
    with ExitStack() as held:
        held.enter_context(hold(out / LOCK, fcntl.LOCK_SH, f"another harvest is writing to {out}; wait for it"))
        held.enter_context(hold(own, fcntl.LOCK_EX, f"another task harvests part {part} into {out}; wait for it"))
        # Every task holds its own lock before it looks at the others', so of two one at least sees the other.
        for path in out.glob(_lock_of(out, "*", "*").name):
            if not path.name.endswith(f"-of-{part.of}.lock"):
                other = f"tasks with another number of parts than {part.of} harvest into {out}; wait for them"
                with hold(path, fcntl.LOCK_SH, other):
                    pass
        yield


@contextmanager
def one_after_another(out: Path) -> Iterator[None]:
    """Around what parts must not do at the same time."""
    with hold(out / ".turn.lock", fcntl.LOCK_EX):
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
def hold(path: Path, kind: int, taken: str | None = None) -> Iterator[None]:
    """Hold a lock, LOCK_EX or LOCK_SH of `fcntl`, which the process's end releases, however it comes.

    Args:
        path: The file to lock; it is made.
        kind: Whether alone or together with others.
        taken: What to say if somebody else holds it; None: wait for them.

    Raises:
        UserError: it is taken; it cannot be written.
    """
    try:
        file = path.open("a+")  # for both kinds of lock, as NFS wants it
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror}; choose another --out") from error
    with file:
        try:
            fcntl.flock(file, kind if taken is None else kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{taken} or choose another --out") from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield
