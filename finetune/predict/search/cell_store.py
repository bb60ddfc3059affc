"""Cells of a slide on disk while they are found: appended batch by batch, resumed where a process ended."""

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.predict.search.deduplicate import WITNESS, without_seams
from finetune.predict.search.inference import CELL
from shared.cli import make_folder
from shared.errors import UserError
from shared.files import write_json

CELLS, PROGRESS = "cells.bin", "progress.json"
# Seconds of work that a killed process may lose.
SAVE_EVERY_S = 10.0
# Cells that are looked at together when they are written out.
CHUNK = 50_000


@dataclass
class Progress:
    """What of the file is certain."""

    key: dict[str, Any]
    """What the cells depend on."""
    batches: int = 0
    cells: int = 0
    """Records."""
    owned: int = 0
    """Of these, cells that their own tile reports."""
    failures: tuple[str, ...] = ()
    seconds: float = 0.0


class CellStore:
    """The folder of one slide: `cells.bin` (records of `windows.CELL`) and how far it is trusted."""

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        """Go on with what is there, if it was made with the same key; else begin.

        Raises:
            UserError: the folder cannot be made or written.
        """
        make_folder(folder, "of cells")
        self.folder = folder
        self.progress = read_progress(folder) or Progress(dict(key))
        if self.progress.key != dict(key):
            self.progress = Progress(dict(key))
        try:
            with (folder / CELLS).open("ab") as file:
                file.truncate(self.progress.cells * CELL.itemsize)
            self._file = (folder / CELLS).open("ab")
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}; give another --out") from error
        self._since = time.monotonic()

    def append(self, cells: np.ndarray, failures: list[str]) -> None:
        """Add what came of the next batch."""
        try:
            self._file.write(cells.tobytes())
            self.progress.batches += 1
            self.progress.cells += len(cells)
            self.progress.owned += int((cells["zone"] != WITNESS).sum())
            self.progress.failures += tuple(failures)
            if time.monotonic() - self._since > SAVE_EVERY_S:
                self.save()
        except OSError as error:
            raise UserError(
                f"cannot write to {self.folder} ({error.strerror}); make room, and the same command goes on"
            ) from error

    def save(self) -> None:
        """Make certain what was added."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self.progress.seconds += time.monotonic() - self._since
        self._since = time.monotonic()
        write_json(self.folder / PROGRESS, vars(self.progress))

    def close(self) -> None:
        """Save, and let go of the file."""
        self.save()
        self._file.close()

    def remove(self) -> None:
        """Forget everything."""
        self._file.close()
        shutil.rmtree(self.folder)


def read_progress(folder: Path) -> Progress | None:
    """How far the cells in a folder are; None if there are none, or nothing certain is known of them."""
    try:
        content = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        progress = Progress(**{**content, "failures": tuple(content["failures"])})
        whole = (folder / CELLS).stat().st_size >= progress.cells * CELL.itemsize
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return progress if whole else None


class StoredCells:
    """The cells of a finished slide, without seams, tile by tile; kept on disk and looked at in pieces."""

    def __init__(self, folder: Path, mpp: float) -> None:
        """Mend the seams.

        Args:
            folder: Of a `CellStore`.
            mpp: um/px of the cells' coordinates.
        """
        path = folder / CELLS
        self._cells = np.memmap(path, CELL, "r") if path.stat().st_size else np.empty(0, CELL)
        kept = without_seams(self._cells, mpp)
        # In the order of the tiles, whatever the order of the batches was.
        self._order = kept[np.argsort(self._cells["tile"][kept], kind="stable")]

    def __len__(self) -> int:
        return len(self._order)

    def chunks(self) -> Iterator[np.ndarray]:
        """The cells, of dtype `windows.CELL`, so many at a time that memory does not grow."""
        for start in range(0, len(self._order), CHUNK):
            yield self._cells[self._order[start : start + CHUNK]]
