"""Writer of one shard from many slide tars: samples are copied as bytes, with 20 bytes of memory each."""

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

MAX_OPEN = 200  # files open at a time; systems allow 1024 or fewer


@dataclass(frozen=True)
class Samples:
    """Byte ranges of samples in slide tars: image and JSON with their headers."""

    tars: Sequence[Path]
    tar_N: np.ndarray  # index of the tar
    start_N: np.ndarray
    size_N: np.ndarray

    @classmethod
    def of(cls, tars: Sequence[Path]) -> "Samples":
        """Find the samples of tars, in their order."""
        ranges = [_sample_ranges(path) for path in tars]
        counts = [len(of_tar) for of_tar in ranges]
        start_N, stop_N = np.concatenate([np.zeros((0, 2), np.int64), *ranges]).T
        tar_N = np.repeat(np.arange(len(tars), dtype=np.int32), counts)
        return cls(tars, tar_N, start_N.copy(), stop_N - start_N)  # a view would keep the stops in memory

    def __len__(self) -> int:
        return len(self.tar_N)


def write_shard(path: Path, samples: Samples, chosen: np.ndarray) -> dict[str, Any]:
    """Write the chosen samples in this order, atomically; return the shard's entry in the index."""
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


def _sample_ranges(path: Path) -> np.ndarray:
    """Return start and stop of every sample of a slide tar: [N, 2]."""
    with path.open("rb") as file:
        found = members(file)
    pairs = zip(found[0::2], found[1::2], strict=True)
    block = tarfile.BLOCKSIZE  # size of a header; contents are padded to multiples of it
    ranges = [(image[0] - block, -(-(text[0] + text[1]) // block) * block) for (_, image), (_, text) in pairs]
    return np.array(ranges, np.int64).reshape(-1, 2)


def _end(size: int) -> bytes:
    """Return the end of a tar of `size` bytes: two empty blocks, padded to a record."""
    padded = -(-(size + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
    return bytes(padded - size)


class _Files:
    """Open files; beyond MAX_OPEN the least recently used is closed."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, BinaryIO] = OrderedDict()

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()

    def open(self, path: Path) -> BinaryIO:
        if path not in self._open:
            if len(self._open) == MAX_OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[path] = path.open("rb")
        self._open.move_to_end(path)
        return self._open[path]
