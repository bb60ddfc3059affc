"""Files that are either whole or absent: written beside their place, synced, then renamed."""

import errno
import fcntl
import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What worker processes pass tensors through.
SHARED_MEMORY = Path("/dev/shm")
# Of file systems that cannot lock: Lustre mounted without flock, NFS without lockd.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def file_lock(path: Path, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold a lock on a file, which is made; the system releases it when the process ends.

    A POSIX lock: workers, which outlive a killed parent for seconds, do not inherit it. Where the file system has
    no locks, a note is printed instead.

    Args:
        path: The file.
        shared: Hold it together with others that share it.
        wait: Wait for processes that hold it.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the file cannot be written.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with path.open("a+") as file:  # readable and writable: each kind of lock needs one of them
        try:
            fcntl.lockf(file, kind if wait else kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise BlockingIOError(error.errno, error.strerror, str(path)) from error
            if error.errno not in NO_LOCKS:
                raise
            print(f"note: the file system of {path.parent} has no locks; let no other command write there")
        yield


def lock_error(path: Path) -> str:
    """Try to lock an existing file; returns the reason if its file system has no locks, else nothing."""
    try:
        with path.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return str(error.strerror)
    return ""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path` that takes its place when the block ends without an error.

    The temporary name starts with a dot and ends in `.tmp`, so that what a killed process leaves behind
    is never mistaken for the file itself.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        if error.filename is None:  # a failed write does not name its file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def own_path(path: Path) -> Iterator[Path]:
    """`atomic_path` among files of users: one of that name from elsewhere, or edited since, is kept as NAME.bak.

    The SHA-256 of what is written is recorded in the folder's hidden file `.written.sha256` before it is renamed.
    """
    record = path.with_name(".written.sha256")
    with atomic_path(path) as temporary:
        yield temporary
        if path.exists() and path.stat().st_size and sha256(path) not in recorded(record):
            keep_aside(path)
        record_digest(temporary, record)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def recorded(record: Path) -> set[str]:
    """Digests in a record; empty if there is none."""
    try:
        return set(record.read_text(encoding="utf-8").split())
    except (OSError, ValueError):
        return set()


def record_digest(path: Path, record: Path) -> None:
    """Append a file's digest; lines are only added, so processes that share a record lose none of another's."""
    with record.open("a", encoding="utf-8") as file:
        file.write(f"{sha256(path)}\n")
    sync(record)


def keep_aside(path: Path) -> None:
    """Rename a file that is about to be replaced to NAME.bak, or .bak2, .bak3, ...: none of these is replaced."""
    names = itertools.chain([".bak"], (f".bak{number}" for number in itertools.count(2)))
    place = next(place for end in names if not (place := path.with_name(path.name + end)).exists())
    path.replace(place)
    print(f"note: {path} was of another origin; it is kept as {place.name}")


def sync(path: Path) -> None:
    """Force a file's bytes, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; numbers that are not finite become null."""
    with atomic_path(path) as temporary:
        text = json.dumps(without_nan(value), indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def without_nan(value: Any) -> Any:
    """Replace numbers that JSON does not know (not a number, infinite) by None, nested ones too."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def printable(text: str) -> str:
    r"""Return text with file names in it as one line of UTF-8: `\xfc` for other bytes, `\n` for a line break."""
    decoded = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda control: repr(control[0])[1:-1], decoded)


def folder_name(folder: Path) -> str:
    """Return a folder's absolute path as files name it."""
    return printable(str(folder.resolve()))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file; empty if it cannot be read."""
    try:
        return sha256(path)
    except OSError:
        return ""
