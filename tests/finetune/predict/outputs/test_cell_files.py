"""Tables of cells in other formats than those that whole predictions are tested with."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from finetune.predict.outputs.cell_files import Rows, write_csv, write_geojson, write_parquet

CLASSES = ('"#", quoted', "b</script>")
ROWS = Rows(
    np.array([[1.5, 2.25], [30_000.126, 4]]),
    0.5,
    np.array([0, 1]),
    np.array([0.5, 0.75], np.float32),
    np.array([3, 4]),
)


def test_parquet_has_the_columns_of_the_csv(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow.parquet import read_table

    write_parquet(tmp_path / "a.parquet", lambda: [ROWS, ROWS], CLASSES)
    write_csv(tmp_path / "a.csv", lambda: [ROWS, ROWS], CLASSES)
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        expected = list(csv.DictReader(file))
    rows = read_table(tmp_path / "a.parquet").to_pylist()
    assert [list(row) for row in rows] == [list(row) for row in expected]
    for row, line in zip(rows, expected, strict=True):
        assert row["class"] == line["class"]
        for name in ("x", "y", "x_um", "y_um", "probability", "tile"):
            assert row[name] == pytest.approx(float(line[name]), abs=0.006)


def test_a_class_may_have_any_name(tmp_path: Path) -> None:
    write_geojson(tmp_path / "a.geojson", lambda: [ROWS], CLASSES)
    cells = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert [cell["properties"]["classification"]["name"] for cell in cells] == list(CLASSES)
    assert cells[1]["geometry"]["coordinates"] == [30000.13, 4.0]


def test_no_cells_at_all(tmp_path: Path) -> None:
    write_geojson(tmp_path / "a.geojson", lambda: [], CLASSES)
    assert "".join((tmp_path / "a.geojson").read_text().split()) == '{"type":"FeatureCollection","features":[]}'
