"""Read the images of one shard in order.

A shard is a tar file in WebDataset's layout: the files of one sample follow each other and share a key. The image
of a sample is `KEY.jpg` (or `.jpeg`, `.png`), or else its first member that is one, like `KEY.input.png`; pictures
beside it, like `KEY.mask.png`, are skipped. `KEY.json` holds metadata of the patch.

WebDataset cuts the key at the first dot of the file name. Here a part with a digit still belongs to the key, or
all patches of a slide `TCGA-A1.slide.0001.jpg`, `TCGA-A1.slide.0002.jpg`, ... would be one sample.
"""

import itertools
import json
import re
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any, NamedTuple

from shared import files
from shared.errors import UserError
from shared.shards.format import HARVEST, INDEX

BLOCK = 512  # a tar consists of blocks of this many bytes; two empty ones end it
READ_AHEAD = 1 << 20  # bytes; images are read one after another
SUFFIXES = ("jpg", "jpeg", "png")
DIGIT = re.compile(r"\d")


@dataclass(frozen=True)
class EncodedImage:
    """One image as stored in its shard."""

    key: str
    """Path inside the tar without the suffix."""
    content: bytes
    """JPEG or PNG."""


class Contents(NamedTuple):
    """Numbers of samples with an image and of members that are not read."""

    samples: int
    skipped: Counter[str]
    """By suffix: further images of a sample, and the largest member of samples without an image."""


def read_images(
    path: Path, first: int, last: int, samples: int, skip: Container[int] = ()
) -> Iterator[tuple[int, EncodedImage]]:
    """Yield the images `first` to `last` (exclusive) of a shard with `samples` of them, with their numbers.

    The bytes of the numbers in `skip` are not read.

    Raises:
        UserError: the shard cannot be read, is cut short, is no tar, or holds another number of images than
            `samples`.
    """
    found = 0
    with _open(path) as file:
        for member in _images(file, path):
            if first <= found < last and found not in skip:
                yield found, EncodedImage(member.key, _bytes_at(file, member.offset, member.size, path))
            found += 1
            if found == last < samples:
                return
    if found != samples:
        counted = f"index.json says {samples}" if _is_indexed(path) else f"{samples} were counted"
        raise damaged(path, f"it holds {found} images and {counted}")


def read_with_metadata(path: Path, count: int) -> Iterator[tuple[EncodedImage, dict[str, Any]]]:
    """Yield the first `count` images of a shard, each with the content of its `KEY.json`; {} where it has none.

    Raises:
        UserError: the shard cannot be read, is cut short or is no tar.
    """
    with _open(path) as file:
        found = 0
        for sample in _samples(file, path):
            image = _image_of(sample)
            if image is None:
                continue
            text = next((member for member in sample if member.suffix == "json"), None)
            metadata = _metadata(_bytes_at(file, text.offset, text.size, path)) if text else {}
            yield EncodedImage(image.key, _bytes_at(file, image.offset, image.size, path)), metadata
            found += 1
            if found == count:
                return


def count_images(path: Path) -> Contents:
    """Count the samples of a shard and the members that are not read; reads the headers alone.

    Raises:
        UserError: the shard is cut short or is no tar.
    """
    samples, skipped = 0, Counter[str]()
    with _open(path, read_ahead=BLOCK) as file:
        for sample in _samples(file, path):
            image = _image_of(sample)
            samples += image is not None
            further = [member for member in sample if member is not image and member.is_image]
            unread = further if image else [max(sample, key=lambda member: member.size)]
            skipped.update(f".{member.suffix}" for member in unread)
    return Contents(samples, skipped)


def check_end(path: Path) -> None:
    """Check the last bytes: cheap, and a shard cut short is found before hours are spent.

    Raises:
        UserError: the shard does not end as a tar file does.
    """
    with _open(path) as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 2 * BLOCK))
        if size % BLOCK or file.read() != bytes(2 * BLOCK):
            raise damaged(path, "it is cut short")


def sha256(path: Path) -> str:
    """Compute the hash of a whole shard.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return files.sha256(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def damaged(path: Path, what: str) -> UserError:
    """Make the error for a shard whose content is damaged."""
    fix = f"remove it and run {HARVEST} again to repack it" if _is_indexed(path) else "replace or remove it"
    return UserError(f"the shard {path} is damaged: {what}; {fix}")


def _open(path: Path, read_ahead: int = READ_AHEAD) -> BufferedReader:
    try:
        return BufferedReader(FileIO(path), buffer_size=read_ahead)
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
    suffix: str
    """Rest of its name, in lower case."""
    offset: int
    """Position of its bytes."""
    size: int
    """Number of its bytes."""

    @property
    def is_image(self) -> bool:
        """True for `jpg`, `input.jpg`, ..."""
        return self.suffix.rpartition(".")[2] in SUFFIXES


def _metadata(text: bytes) -> dict[str, Any]:
    try:
        metadata = json.loads(text)
    except ValueError:  # not UTF-8 or not JSON: shards of others may hold anything
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _images(file: BufferedReader, path: Path) -> Iterator[_Member]:
    """Yield the image of every sample of a tar, in order.

    A plain `KEY.jpg` is yielded before the header behind it is read, which would move the file's buffer on.
    """
    for _, sample in itertools.groupby(_files(file, path), key=lambda member: member.key):
        first = None
        for member in sample:
            if member.suffix in SUFFIXES:
                first = member
                break
            if first is None and member.is_image:
                first = member
        if first is not None:
            yield first


def _samples(file: BufferedReader, path: Path) -> Iterator[list[_Member]]:
    for _, sample in itertools.groupby(_files(file, path), key=lambda member: member.key):
        yield list(sample)


def _image_of(sample: Sequence[_Member]) -> _Member | None:
    images = [member for member in sample if member.is_image]
    return next((member for member in images if member.suffix in SUFFIXES), images[0] if images else None)


def _files(file: BufferedReader, path: Path) -> Iterator[_Member]:
    """Yield every file of a tar, in order.

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
        key, suffix = _split(base)
        if kind in b"0\0" and key:
            yield _Member(folder + slash + key, suffix.lower(), offset, size)


def _split(name: str) -> tuple[str, str]:
    """Split a file name into the key of its sample and the suffix."""
    key, _, suffix = name.partition(".")
    if "." not in suffix or not key:
        return key, suffix
    *parts, ending = suffix.split(".")
    of_key = max((n for n, part in enumerate(parts, 1) if DIGIT.search(part)), default=0)
    return ".".join([key, *parts[:of_key]]), ".".join([*parts[of_key:], ending])


def _parse(header: bytes, path: Path) -> tuple[str, int, bytes]:
    """Parse name, size and kind from a tar header (POSIX ustar layout)."""
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
    """Return True for a shard of a harvest, which can make it again."""
    return (path.parent / INDEX).exists()
