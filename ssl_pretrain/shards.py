"""What a folder of shards holds: its index, its check, and the images of one shard in their order.

Shards are tar files in WebDataset's layout: the files of one sample follow each other and share the name up
to the first dot. Only `KEY.jpg` (or `.jpeg`) is read here. `index.json` beside them, written by
`patch_extraction`, says which shards count, how many samples each has, its SHA-256 and the channel mean and
standard deviation over the patches.
"""

import hashlib
import json
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from shared.atomic import write_json
from shared.command_line import UserError
from shared.runs import progress
from shared.weights import IMAGENET_MEAN, IMAGENET_STD

HARVEST = "python -m patch_extraction"
BLOCK = 512  # a tar consists of blocks of this many bytes; two empty ones end it
IMAGE_SUFFIXES = (".jpg", ".jpeg")


@dataclass(frozen=True)
class Shard:
    """One tar file."""

    name: str
    """File name inside the folder."""
    samples: int
    """How many images it holds."""
    sha256: str
    """Of the whole file; empty for a foreign shard, whose images were counted instead."""


@dataclass(frozen=True)
class ShardSet:
    """The shards of a folder, with what their index says about them."""

    folder: Path
    shards: tuple[Shard, ...]
    mean: tuple[float, ...]
    """Channel means (RGB, 0..1) over the patches."""
    std: tuple[float, ...]
    settings: dict[str, Any]
    """How the patches were harvested."""
    indexed: bool
    """False for foreign shards without `index.json`: counted here, normalised with ImageNet's values."""

    @property
    def samples(self) -> int:
        """How many images there are in all."""
        return sum(shard.samples for shard in self.shards)

    @property
    def counts(self) -> list[int]:
        """Images of each shard."""
        return [shard.samples for shard in self.shards]

    def path(self, number: int) -> Path:
        """Where the shard of this number lies."""
        return self.folder / self.shards[number].name


@dataclass(frozen=True)
class Image:
    """One image as it lies in its shard."""

    key: str
    """Path inside the tar without the suffix."""
    jpeg: bytes


def open_shards(folder: Path) -> ShardSet:
    """The shards listed in `folder/index.json`; without an index every tar in the folder, counted.

    Raises:
        UserError: no folder, no shards, an index that cannot be used, a shard missing or cut short.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder of shards {folder}; make one with: {HARVEST} --wsi-dir SLIDES")
    index = folder / "index.json"
    shard_set = _read_index(index) if index.exists() else _count(folder)
    for number in range(len(shard_set.shards)):
        _check_end(shard_set.path(number))
    return shard_set


def check_sums(shard_set: ShardSet, numbers: range, quiet: bool = False) -> None:
    """Compare the SHA-256 of some of the shards with the index.

    Raises:
        UserError: a shard is not the one that was indexed.
    """
    with progress(len(numbers), "shard", description="checking", hidden=quiet) as bar:
        for number in numbers:
            path, wanted = shard_set.path(number), shard_set.shards[number].sha256
            with path.open("rb") as file:
                if wanted and hashlib.file_digest(file, "sha256").hexdigest() != wanted:
                    raise _damaged(path, "its SHA-256 is not the one in index.json")
            bar.update()


def remember(shard_set: ShardSet, path: Path) -> None:
    """Write down which shards a run reads, so that it can tell when they change under it."""
    write_json(path, {"folder": str(shard_set.folder), **_contents(shard_set)})


def same_as_remembered(shard_set: ShardSet, path: Path) -> bool:
    """Whether the shards are those of `remember`, wherever the folder lies now."""
    before = json.loads(path.read_text(encoding="utf-8"))
    return all(before[name] == value for name, value in _contents(shard_set).items())


def read_images(
    path: Path, first: int, last: int, samples: int, passed: Container[int] = ()
) -> Iterator[tuple[int, Image]]:
    """The images `first` to `last` (exclusive) of a shard with `samples` of them, with their numbers.

    The bytes of the numbers in `passed` are skipped without being read.

    Raises:
        UserError: the shard is cut short, is no tar, or holds another number of images than `samples`.
    """
    found = 0
    with _open(path) as file:
        for key, offset, size in _members(file, path):
            if first <= found < last and found not in passed:
                file.seek(offset)
                yield found, Image(key, file.read(size))
            found += 1
            if found == last < samples:
                return
    if found != samples:
        raise _damaged(path, f"it holds {found} images and index.json says {samples}")


def count_images(path: Path) -> int:
    """How many images a shard holds.

    Raises:
        UserError: the shard is cut short or is no tar.
    """
    with _open(path) as file:
        return sum(1 for _ in _members(file, path))


def _read_index(index: Path) -> ShardSet:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        shards = tuple(Shard(s["name"], int(s["samples"]), s["sha256"]) for s in content["shards"])
        mean, std = tuple(map(float, content["mean"])), tuple(map(float, content["std"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{index} is not an index of shards ({type(error).__name__}: {error}); "
            f"remove it and run {HARVEST} again"
        ) from error
    if not sum(shard.samples for shard in shards):
        raise UserError(f"{index} lists no patches; harvest some with: {HARVEST} --wsi-dir SLIDES")
    return ShardSet(index.parent, shards, mean, std, content.get("settings", {}), indexed=True)


def _count(folder: Path) -> ShardSet:
    """Foreign shards: every tar of the folder, its images counted."""
    paths = sorted(folder.glob("*.tar"))
    if not paths and any(folder.glob("slides/*.tar")):
        raise UserError(
            f"{folder} holds harvested slides, but no shards were packed from them; run {HARVEST} again"
        )
    if not paths:
        raise UserError(f"there are no shards in {folder}; make them with: {HARVEST} --wsi-dir SLIDES")
    shards = tuple(Shard(path.name, count_images(path), "") for path in paths)
    if not sum(shard.samples for shard in shards):
        raise UserError(f"the tar files in {folder} hold no .jpg images; make shards with: {HARVEST}")
    return ShardSet(folder, shards, IMAGENET_MEAN, IMAGENET_STD, {}, indexed=False)


def _contents(shard_set: ShardSet) -> dict[str, Any]:
    return {
        "shards": [vars(shard) for shard in shard_set.shards],
        "samples": shard_set.samples,
        "mean": list(shard_set.mean),
        "std": list(shard_set.std),
        "settings": shard_set.settings,
    }


def _check_end(path: Path) -> None:
    """A look at the last bytes: cheap, and a shard cut short is found before hours are spent."""
    with _open(path) as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 2 * BLOCK))
        if size % BLOCK or file.read() != bytes(2 * BLOCK):
            raise _damaged(path, "it is cut short")


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb", buffering=1 << 20)
    except OSError as error:
        raise UserError(
            f"the shard {path}, listed in index.json, cannot be read ({error.strerror}); run {HARVEST} again"
        ) from error


def _members(file: BinaryIO, path: Path) -> Iterator[tuple[str, int, int]]:
    """Key, offset and size in bytes of every image of a tar, in order.

    Python's tarfile does the same 12 times more slowly, which would cost a loader worker a tenth of its time.
    """
    end = file.seek(0, 2)
    position, long_name = 0, ""
    while True:
        file.seek(position)
        header = file.read(BLOCK)
        if len(header) < BLOCK:
            raise _damaged(path, "it is cut short")
        if not any(header):
            return
        name, size, kind = _parse(header, path)
        offset = position + BLOCK
        position = offset + -(-size // BLOCK) * BLOCK
        if position > end:
            raise _damaged(path, "it is cut short")
        if kind in b"Lx":  # the name of the member that follows, in GNU's or in POSIX's way
            file.seek(offset)
            long_name = _long_name(kind, file.read(size)) or long_name
            continue
        name, long_name = long_name or name, ""
        if kind in b"0\0" and name.lower().endswith(IMAGE_SUFFIXES):
            yield name.rpartition(".")[0], offset, size


def _parse(header: bytes, path: Path) -> tuple[str, int, bytes]:
    """Name, size and kind from a tar header (POSIX ustar layout)."""
    try:
        checksum = int(header[148:156].strip(b" \0"), 8)
        size = int(header[124:136].strip(b" \0") or b"0", 8)
    except ValueError as error:
        raise _damaged(path, "it is not a tar file") from error
    if checksum != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise _damaged(path, "it is not a tar file")
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


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"the shard {path} is damaged: {what}; remove it and run {HARVEST} again to repack it")
