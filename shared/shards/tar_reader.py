"""The images of one shard, in their order.

A shard is a tar file in WebDataset's layout: the files of one sample follow each other and share the name up to
the first dot. Only `KEY.jpg` (or `.jpeg`) is read, no picture beside it like `KEY.mask.jpg`; and `KEY.json`, with
facts about the patch, where they are asked for.
"""

import hashlib
import itertools
import json
from collections.abc import Container, Iterator
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any, NamedTuple

from shared.errors import UserError
from shared.shards.format import INDEX

HARVEST = "python -m patch_extraction"

BLOCK = 512  # a tar consists of blocks of this many bytes; two empty ones end it
SUFFIXES = ("jpg", "jpeg")


@dataclass(frozen=True)
class JpegSample:
    """One image as it lies in its shard."""

    key: str
    """Path inside the tar without the suffix."""
    jpeg: bytes


def read_images(
    path: Path, first: int, last: int, samples: int, passed: Container[int] = ()
) -> Iterator[tuple[int, JpegSample]]:
    """The images `first` to `last` (exclusive) of a shard with `samples` of them, with their numbers.

    The bytes of the numbers in `passed` are skipped without being read.

    Raises:
        UserError: the shard cannot be read, is cut short, is no tar, or holds another number of images than
            `samples`.
    """
    found = 0
    with _open(path) as file:
        for key, offset, size in _members(file, path):
            if first <= found < last and found not in passed:
                yield found, JpegSample(key, _bytes_at(file, offset, size, path))
            found += 1
            if found == last < samples:
                return
    if found != samples:
        raise damaged(path, f"it holds {found} images and index.json says {samples}")


def read_facts(path: Path, count: int) -> Iterator[tuple[JpegSample, dict[str, Any]]]:
    """The first `count` images of a shard, each with the content of its `KEY.json`; {} where it has none.

    Raises:
        UserError: the shard cannot be read, is cut short or is no tar.
    """
    with _open(path) as file:
        found = 0
        for key, same in itertools.groupby(_files(file, path), key=lambda member: member.key):
            of_sample = {member.suffix: member for member in same}
            picture = next((of_sample[suffix] for suffix in SUFFIXES if suffix in of_sample), None)
            if picture is None:
                continue
            text = of_sample.get("json")
            facts = _facts(_bytes_at(file, text.offset, text.size, path)) if text else {}
            yield JpegSample(key, _bytes_at(file, picture.offset, picture.size, path)), facts
            found += 1
            if found == count:
                return


def count_images(path: Path) -> int:
    """How many images a shard holds.

    Raises:
        UserError: the shard is cut short or is no tar.
    """
    with _open(path) as file:
        return sum(1 for _ in _members(file, path))


def check_end(path: Path) -> None:
    """A look at the last bytes: cheap, and a shard cut short is found before hours are spent."""
    with _open(path) as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 2 * BLOCK))
        if size % BLOCK or file.read() != bytes(2 * BLOCK):
            raise damaged(path, "it is cut short")


def sha256(path: Path) -> str:
    """Of the whole shard, with a UserError if it cannot be read."""
    with _open(path) as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise _unreadable(path, error) from error


def damaged(path: Path, what: str) -> UserError:
    """The sentence for a shard with something wrong inside."""
    fix = f"remove it and run {HARVEST} again to repack it" if _is_indexed(path) else "replace or remove it"
    return UserError(f"the shard {path} is damaged: {what}; {fix}")


def _open(path: Path) -> BufferedReader:
    try:
        return BufferedReader(FileIO(path), buffer_size=1 << 20)
    except OSError as error:
        raise _unreadable(path, error) from error


def _bytes_at(file: BufferedReader, offset: int, size: int, path: Path) -> bytes:
    try:
        file.seek(offset)
        return file.read(size)
    except OSError as error:
        raise _unreadable(path, error) from error


class _Member(NamedTuple):
    """A file inside a tar."""

    key: str
    """Its path up to the first dot of its name."""
    suffix: str
    """The rest of its name, in small letters."""
    offset: int
    """Of its bytes."""
    size: int
    """How many they are."""


def _facts(text: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(text)
    except ValueError:  # not UTF-8, not JSON: a foreign shard's own affair
        return {}
    return facts if isinstance(facts, dict) else {}


def _members(file: BufferedReader, path: Path) -> Iterator[tuple[str, int, int]]:
    """Key, offset and size in bytes of every image of a tar, in order."""
    return ((key, offset, size) for key, suffix, offset, size in _files(file, path) if suffix in SUFFIXES)


def _files(file: BufferedReader, path: Path) -> Iterator[_Member]:
    """Every file of a tar, in order.

    Python's tarfile does the same 12 times more slowly, which would cost a loader worker a tenth of its time.
    """
    end = file.seek(0, 2)
    position, long_name = 0, ""
    while True:
        header = _bytes_at(file, position, BLOCK, path)
        if len(header) < BLOCK:
            raise damaged(path, "it is cut short")
        if not any(header):
            return
        name, size, kind = _parse(header, path)
        offset = position + BLOCK
        position = offset + -(-size // BLOCK) * BLOCK
        if position > end:
            raise damaged(path, "it is cut short")
        if kind in b"Lx":  # the name of the member that follows, in GNU's or in POSIX's way
            long_name = _long_name(kind, _bytes_at(file, offset, size, path)) or long_name
            continue
        name, long_name = long_name or name, ""
        folder, slash, base = name.rpartition("/")
        key, _, suffix = base.partition(".")
        if kind in b"0\0" and key:
            yield _Member(folder + slash + key, suffix.lower(), offset, size)


def _parse(header: bytes, path: Path) -> tuple[str, int, bytes]:
    """Name, size and kind from a tar header (POSIX ustar layout)."""
    try:
        checksum = int(header[148:156].strip(b" \0"), 8)
        size = int(header[124:136].strip(b" \0") or b"0", 8)
    except ValueError as error:
        raise damaged(path, "it is not a tar file") from error
    if checksum != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise damaged(path, "it is not a tar file")
    name, prefix = _text(header[:100]), _text(header[345:500])
    is_posix = header[257:263] == b"ustar\0"  # GNU's own layout keeps times where POSIX has the prefix
    return f"{prefix}/{name}" if prefix and is_posix else name, size, header[156:157]


def _long_name(kind: bytes, content: bytes) -> str:
    if kind == b"L":
        return _text(content)
    records = (record.partition(b" ")[2] for record in content.split(b"\n"))
    return next((_text(record[5:]) for record in records if record.startswith(b"path=")), "")


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "replace")


def _unreadable(path: Path, error: OSError) -> UserError:
    listed, fix = (", listed in index.json,", f"run {HARVEST} again") if _is_indexed(path) else ("", "replace it")
    return UserError(f"the shard {path}{listed} cannot be read ({error.strerror}); {fix}")


def _is_indexed(path: Path) -> bool:
    """Whether a shard is one of a harvest's, which can make it again."""
    return (path.parent / INDEX).exists()
