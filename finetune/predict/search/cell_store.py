"""Cells of a slide on disk while they are found: appended batch by batch, resumed where a process ended."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.predict.search.deduplicate import OVERLAP, final_cells
from finetune.predict.search.inference import CELL, record_type
from shared.cli import make_folder
from shared.errors import UserError
from shared.files import write_json

CELLS, PROGRESS = "cells.bin", "progress.json"
# Seconds of work that a killed process may lose.
SAVE_EVERY_S = 10.0
# Cells in memory at a time when they are written out.
CHUNK = 50_000


@dataclass
class Progress:
    """Part of the file that is safely on disk."""

    key: dict[str, Any]
    """Settings and files that determine the cells."""
    batches: int = 0
    cells: int = 0
    """Number of records."""
    owned: int = 0
    """Number of them that their own tile reports."""
    failures: tuple[str, ...] = ()
    seconds: float = 0.0
    probabilities: int = 0
    """Classes whose probabilities a record holds, background among them."""

    @property
    def record(self) -> np.dtype:
        """Type of the records."""
        return record_type(self.probabilities)


class CellStore:
    """Folder of one slide: `cells.bin` (records of `inference.CELL`) and its progress."""

    def __init__(self, folder: Path, key: Mapping[str, Any], probabilities: int = 0) -> None:
        """Resume from cells of the same key, else begin.

        Args:
            folder: Made if need be.
            key: Settings and files that determine the cells.
            probabilities: Classes whose probabilities a record holds, background among them.

        Raises:
            UserError: the folder cannot be made or written.
        """
        make_folder(folder, "of cells")
        self.folder = folder
        new = Progress(dict(key), probabilities=probabilities)
        self.progress = read_progress(folder) or new
        if self.progress.key != new.key:
            self.progress = new
        try:
            with (folder / CELLS).open("ab") as file:
                file.truncate(self.progress.cells * self.progress.record.itemsize)
            self._file = (folder / CELLS).open("ab")
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}; give another --out") from error
        self._since = time.monotonic()

    def append(self, cells: np.ndarray, failures: list[str]) -> None:
        """Append the cells of the next batch."""
        try:
            self._file.write(cells.tobytes())
            self.progress.batches += 1
            self.progress.cells += len(cells)
            self.progress.owned += int((cells["zone"] != OVERLAP).sum())
            self.progress.failures += tuple(failures)
            if time.monotonic() - self._since > SAVE_EVERY_S:
                self.save()
        except OSError as error:
            raise UserError(
                f"cannot write to {self.folder} ({error.strerror}); make room, and run the same command again"
            ) from error

    def save(self) -> None:
        """Sync the cells appended so far, then their progress."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self.progress.seconds += time.monotonic() - self._since
        self._since = time.monotonic()
        write_json(self.folder / PROGRESS, vars(self.progress))

    def close(self) -> None:
        """Save, and close the file."""
        self.save()
        self._file.close()


def read_progress(folder: Path) -> Progress | None:
    """Read the progress of a folder; None if there are no cells, or the progress is missing or damaged."""
    try:
        content = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        progress = Progress(**{**content, "failures": tuple(content["failures"])})
        whole = (folder / CELLS).stat().st_size >= progress.cells * progress.record.itemsize
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return progress if whole else None


class StoredCells:
    """Cells of a finished slide without duplicates at seams, tile by tile, read from disk in chunks."""

    def __init__(self, folder: Path, mpp: float, min_distance_um: float = 0.0) -> None:
        """Resolve the seams.

        Args:
            folder: Of a `CellStore`.
            mpp: um/px of the cells' coordinates.
            min_distance_um: Least distance of two cells, um; 0: any.
        """
        path, progress = folder / CELLS, read_progress(folder)
        record = progress.record if progress else CELL
        self._cells = np.memmap(path, record, "r") if path.stat().st_size else np.empty(0, record)
        kept = final_cells(self._cells, mpp, min_distance_um)
        # In the order of tiles, which that of batches is not.
        self._order = kept[np.argsort(self._cells["tile"][kept], kind="stable")]

    def __len__(self) -> int:
        return len(self._order)

    def chunks(self) -> Iterator[np.ndarray]:
        """Yield the records in chunks of bounded size."""
        for start in range(0, len(self._order), CHUNK):
            yield self._cells[self._order[start : start + CHUNK]]
