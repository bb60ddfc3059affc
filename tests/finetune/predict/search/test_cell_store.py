"""Cells on disk: memory that a slide's cells cost, and what a damaged folder is taken for."""

from pathlib import Path

import numpy as np
import pytest

from finetune.predict.search.cell_store import CellStore, StoredCells, read_progress
from finetune.predict.search.inference import CELL
from tests.benchmarks.prediction_memory import measured

# 4 GB for 2,000,000 cells.
MOST_BYTES = 4e9 / 2e6


def test_memory_of_100_000_cells() -> None:
    """Within the bound for 2,000,000: bytes per cell, and the whole process in proportion."""
    result = measured(100_000)
    assert result["cells"] == pytest.approx(100_000, rel=0.01)
    grown = (result["peak_mb"] - result["base_mb"]) * 2**20
    assert grown / result["cells"] < MOST_BYTES
    assert result["peak_mb"] * 2**20 < 4e9


@pytest.mark.slow
def test_memory_and_time_of_2_000_000_cells() -> None:
    few, many = measured(200_000), measured(2_000_000)
    assert many["cells"] == pytest.approx(2_000_000, rel=0.01)
    assert many["peak_mb"] * 2**20 < 4e9
    assert many["seconds"] / few["seconds"] < 20  # linear, on a machine that others use, too


def cells(count: int, tile: int) -> np.ndarray:
    made = np.zeros(count, CELL)
    made["x"], made["tile"] = np.arange(count) * 10, tile
    return made


def test_what_is_not_certain_is_forgotten(tmp_path: Path) -> None:
    store = CellStore(tmp_path, {"a": 1})
    store.append(cells(5, 1), [])
    store.append(cells(3, 0), ["tile 7: broken"])
    store.close()
    with (tmp_path / "cells.bin").open("ab") as file:
        file.write(bytes(100))
    again = CellStore(tmp_path, {"a": 1})
    assert (again.progress.batches, again.progress.cells, again.progress.failures) == (2, 8, ("tile 7: broken",))
    again.close()
    stored = StoredCells(tmp_path, 0.5)
    (chunk,) = stored.chunks()
    assert chunk["tile"].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]  # in the order of tiles
    other = CellStore(tmp_path, {"a": 2})
    assert other.progress.cells == 0
    other.close()
    assert len(StoredCells(tmp_path, 0.5)) == 0


def test_damaged_folders_begin_anew(tmp_path: Path) -> None:
    assert read_progress(tmp_path) is None
    CellStore(tmp_path, {}).close()
    assert read_progress(tmp_path) is not None
    (tmp_path / "progress.json").write_text("{")
    assert read_progress(tmp_path) is None
    store = CellStore(tmp_path, {})
    store.append(cells(5, 1), [])
    store.close()
    (tmp_path / "cells.bin").write_bytes(b"")  # shorter than what was certain
    assert read_progress(tmp_path) is None
