"""Write the patches of one slide as JPEGs into `slides/SLIDE_ID.tar`.

A tar is complete if the record beside it gives its size; any other is written again.
"""

import hashlib
import io
import itertools
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import simplejpeg

from shared.files import atomic_path, sha256_of

QUALITY = 90  # of the JPEG patches, with 4:2:0 chroma
COPY_BYTES = 1 << 20  # a patch is written at once
ROWS = 128  # at a time: sums of their bytes fit into 16 bits and stay in the processor's cache
Span = tuple[int, int]  # offset and size in a tar


class SlideTar:
    """Context manager that writes a slide's patches; the tar appears when the block ends without an error."""

    def __init__(self, path: Path) -> None:
        self._place = atomic_path(path)

    def __enter__(self) -> "SlideTar":
        self._path = self._place.__enter__()
        self._tar = _new_tar(self._path)
        self._sums_3 = np.zeros(3, np.int64)
        self._squares_3 = np.zeros(3, np.int64)
        self.record_fields: dict[str, Any] = {}  # available once the tar is closed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tar.close()
        if error is None:
            with self._path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            sums = (tuple(self._sums_3.tolist()), tuple(self._squares_3.tolist()))
            self.record_fields = {"bytes": self._path.stat().st_size, "sha256": sha256, "pixel_sums": sums}
        self._place.__exit__(kind, error, trace)

    def add(self, key: str, patch_HW3: np.ndarray, fields: Mapping[str, Any]) -> None:
        """Append `KEY.jpg` and `KEY.json`; the patch is uint8 RGB."""
        add_member(self._tar, f"{key}.jpg", as_jpeg(patch_HW3))
        add_member(self._tar, f"{key}.json", _as_json(fields))
        sums_3, squares_3 = pixel_sums(patch_HW3)
        self._sums_3 += sums_3
        self._squares_3 += squares_3


def relabel(path: Path, columns: Mapping[str, str]) -> dict[str, Any]:
    """Write a slide's tar again with other `columns` in each JSON; return `bytes` and `sha256` of the record."""
    with path.open("rb") as file, atomic_path(path) as temporary, _new_tar(temporary) as tar:
        for name, span in members(file):
            content = read_at(file, span)
            if name.endswith(".json"):
                content = _as_json({**json.loads(content), "columns": dict(columns)})
            add_member(tar, name, content)
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def as_jpeg(patch_HW3: np.ndarray) -> bytes:
    """Encode a patch; simplejpeg avoids the copy that Pillow makes first."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(patch_HW3), QUALITY, "RGB", "420")


def _new_tar(path: Path) -> tarfile.TarFile:
    return tarfile.TarFile(path, "w", format=tarfile.USTAR_FORMAT, copybufsize=COPY_BYTES)


def _as_json(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, ensure_ascii=False).encode()


def pixel_sums(patch_HW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum the px of each channel, and their squares; small integer types make it fast."""
    rows_HN = patch_HW3.reshape(len(patch_HW3), -1)
    sums_N, squares_N = np.zeros((2, rows_HN.shape[1]), np.int64)
    for start in range(0, len(rows_HN), ROWS):
        part_HN = rows_HN[start : start + ROWS].astype(np.uint16)
        sums_N += part_HN.sum(axis=0, dtype=np.uint16)
        part_HN *= part_HN
        squares_N += part_HN.sum(axis=0, dtype=np.uint32)
    return sums_N.reshape(-1, 3).sum(axis=0), squares_N.reshape(-1, 3).sum(axis=0)


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Append a file without time and user in its header, so that equal contents give equal tars."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def members(file: BinaryIO, limit: int | None = None) -> list[tuple[str, Span]]:
    """Return name and span of every member (or the first `limit`) of an open tar."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        first = itertools.islice(tar, limit)
        return [(member.name, (member.offset_data, member.size)) for member in first]


def read_at(file: BinaryIO, span: Span) -> bytes:
    """Return the bytes of a member."""
    file.seek(span[0])
    return file.read(span[1])
