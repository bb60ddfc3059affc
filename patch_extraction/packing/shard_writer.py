"""One shard from the tars of many slides: stretches of bytes copied as they are, 20 bytes of memory a sample."""

import hashlib
import tarfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from patch_extraction.slide_store.slide_tar import members
from shared.files import atomic_path

MOST_OPEN = 200  # files held open at a time; systems allow 1024 or fewer


@dataclass(frozen=True)
class Samples:
    """Where the samples of slides' tars lie: picture and JSON with their headers, one stretch of bytes each."""

    tars: Sequence[Path]
    tar_N: np.ndarray  # index of the tar
    start_N: np.ndarray
    size_N: np.ndarray

    @classmethod
    def of(cls, tars: Sequence[Path]) -> "Samples":
        """Look them up in the tars, in the order of these."""
        stretches = [_stretches(path) for path in tars]
        counts = [len(of_tar) for of_tar in stretches]
        start_N, stop_N = np.concatenate([np.zeros((0, 2), np.int64), *stretches]).T
        tar_N = np.repeat(np.arange(len(tars), dtype=np.int32), counts)
        return cls(tars, tar_N, start_N.copy(), stop_N - start_N)  # a view would keep the stops, too

    def __len__(self) -> int:
        return len(self.tar_N)


def write_shard(path: Path, samples: Samples, chosen: np.ndarray) -> dict[str, Any]:
    """Write the chosen samples, in that order, atomically; returns the shard's entry in the index."""
    digest = hashlib.sha256()
    with atomic_path(path) as temporary:
        with temporary.open("wb") as file, _Files() as tars:
            for i in chosen.tolist():
                source = tars.open(samples.tars[samples.tar_N[i]])
                source.seek(int(samples.start_N[i]))
                content = source.read(int(samples.size_N[i]))
                file.write(content)
                digest.update(content)
            end = _end(file.tell())
            file.write(end)
            digest.update(end)
        size = temporary.stat().st_size
    return {"name": path.name, "samples": len(chosen), "bytes": size, "sha256": digest.hexdigest()}


def _stretches(path: Path) -> np.ndarray:
    """Start and stop of every sample of a slide's tar: [N, 2]."""
    with path.open("rb") as file:
        found = members(file)
    pairs = zip(found[0::2], found[1::2], strict=True)
    blocks = tarfile.BLOCKSIZE  # of a header, and what contents are filled up to
    stretches = [
        (picture[0] - blocks, -(-(text[0] + text[1]) // blocks) * blocks) for (_, picture), (_, text) in pairs
    ]
    return np.array(stretches, np.int64).reshape(-1, 2)


def _end(size: int) -> bytes:
    """What closes a tar of so many bytes: two empty blocks, filled up to a record."""
    filled = -(-(size + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
    return bytes(filled - size)


class _Files:
    """Open files, the least recently used closed where they become too many."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, BinaryIO] = OrderedDict()

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()

    def open(self, path: Path) -> BinaryIO:
        if path not in self._open:
            if len(self._open) == MOST_OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[path] = path.open("rb")
        self._open.move_to_end(path)
        return self._open[path]
