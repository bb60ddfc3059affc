"""Thresholds, least distances and class probabilities, whatever the tiles are."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune.predict.in_memory import predict_tiles
from finetune.predict.search.deduplicate import final_cells
from finetune.predict.search.inference import CELL
from shared.errors import UserError
from shared.model.cells import classify
from tests.finetune.predict import planted
from tests.finetune.predict.conftest import Predict
from tests.finetune.predict.planted import CLASSES, plant


def shaded(width: int, height: int, folder: Path) -> Path:
    """Return a picture of squares in many shades, so that cells have many probabilities."""
    image = np.asarray(plant(width, height, mpp=0.5).image).astype(float)
    shade = np.random.default_rng(1).uniform(0.55, 1, (height // 8 + 1, width // 8 + 1, 1))
    weight = np.kron(shade, np.ones((8, 8, 1)))[:height, :width]
    Image.fromarray((255 - (255 - image) * weight).astype(np.uint8)).save(folder / "a.png")
    return folder / "a.png"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return sorted(csv.DictReader(file), key=lambda row: (float(row["y"]), float(row["x"])))


def test_the_rule_holds_across_seams(predict_here: Predict, tmp_path: Path) -> None:
    png = shaded(600, 500, tmp_path)
    expected: dict[str, list[dict[str, str]]] = {}
    for threshold in ("paper", "0.2", "0.6", "0.9"):
        tables = []
        for tile, margin in ((1024, 64), (192, 64)):
            out = tmp_path / f"{threshold} {tile}"
            options = {"tile": tile, "margin": margin, "probabilities": True, "threshold": threshold}
            assert predict_here(png, slide_mpp=0.5, out=out, **options) == 0
            tables.append([{**row, "tile": ""} for row in rows(out / "a.csv")])
        assert tables[0] == tables[1]
        expected[threshold] = tables[0]
    counts = {name: len(table) for name, table in expected.items()}
    assert counts["0.9"] < counts["0.6"] < counts["paper"] < counts["0.2"]
    for threshold in ("0.6", "0.9"):
        kept = [row for row in expected["0.2"] if float(row["probability"]) >= float(threshold)]
        assert expected[threshold] == kept


def test_probabilities_of_all_classes(predict_here: Predict, tmp_path: Path) -> None:
    png = shaded(200, 200, tmp_path)
    assert predict_here(png, slide_mpp=0.5, probabilities=True) == 0
    for row in rows(tmp_path / "cells/a.csv"):
        values = [float(row[f"probability of {name}"]) for name in CLASSES]
        assert row["class"] == CLASSES[int(np.argmax(values))]
        assert float(row["probability"]) == max(values) and sum(values) < 1
    with pytest.raises(UserError, match="probabilities"):
        predict_here(png, slide_mpp=0.5)
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow.parquet import read_table

    assert predict_here(png, slide_mpp=0.5, probabilities=True, parquet=True) == 0
    table = read_table(tmp_path / "cells/a.parquet")
    expected = [float(row["probability of blue"]) for row in rows(tmp_path / "cells/a.csv")]
    assert sorted(table["probability of blue"].to_pylist()) == pytest.approx(sorted(expected), abs=1e-4)


def test_best_is_what_the_detector_stores(predict_here: Predict, tmp_path: Path) -> None:
    png = shaded(300, 200, tmp_path)
    stored = dataclasses.replace(planted.detector(), metadata={"operating_point": {"threshold": 0.6}})
    common: dict[str, Any] = {"slide_mpp": 0.5, "detector": stored}
    assert predict_here(png, threshold="best", out=tmp_path / "best", **common) == 0
    assert predict_here(png, threshold="0.6", out=tmp_path / "number", **common) == 0
    assert rows(tmp_path / "best/a.csv") == rows(tmp_path / "number/a.csv")
    with pytest.raises(UserError, match="threshold"):
        predict_here(png, out=tmp_path / "best", **common)  # cells of another rule
    with pytest.raises(UserError, match="--threshold"):
        predict_here(png, slide_mpp=0.5, threshold="best")


def test_cells_found_before_there_were_thresholds_are_still_good(predict_here: Predict, tmp_path: Path) -> None:
    png = shaded(300, 200, tmp_path)
    assert predict_here(png, slide_mpp=0.5) == 0
    for path in (tmp_path / "cells/a.summary.json", tmp_path / "cells/.a.cells/progress.json"):
        content = json.loads(path.read_text())
        key = content["made_with"]["cells"] if "made_with" in content else content["key"]
        assert not {"threshold", "probabilities"} & key.keys()
    progress = tmp_path / "cells/.a.cells/progress.json"
    old = json.loads(progress.read_text())
    del old["probabilities"]
    progress.write_text(json.dumps(old))
    never = planted.detector(after=lambda: pytest.fail("it was predicted again"))
    assert predict_here(png, slide_mpp=0.5, compress="zip", detector=never) == 0


@pytest.mark.parametrize("tile", [1024, 192])
def test_of_close_cells_the_most_probable_stays(predict_here: Predict, tmp_path: Path, tile: int) -> None:
    png = shaded(600, 500, tmp_path)
    options = {"slide_mpp": 0.5, "tile": tile, "margin": 64}
    assert predict_here(png, **options) == 0
    every = rows(tmp_path / "cells/a.csv")
    never = planted.detector(after=lambda: pytest.fail("it was predicted again"))
    assert predict_here(png, min_distance_um=6.0, detector=never, **options) == 0
    kept = rows(tmp_path / "cells/a.csv")
    remaining = sorted(every, key=lambda row: (-float(row["probability"]), float(row["y"]), float(row["x"])))
    expected: list[dict[str, str]] = []
    for row in remaining:  # the rule, word by word
        place = np.array([float(row["x_um"]), float(row["y_um"])])
        others = np.array([(float(other["x_um"]), float(other["y_um"])) for other in expected]).reshape(-1, 2)
        if not (np.linalg.norm(others - place, axis=1) <= 6.0).any():
            expected.append(row)
    assert len(kept) < 0.9 * len(every)
    assert {(row["x"], row["y"]) for row in kept} == {(row["x"], row["y"]) for row in expected}


def test_a_chain_of_close_cells_loses_every_second_one() -> None:
    cells = np.zeros(5, CELL)
    cells["x"], cells["probability"] = np.arange(5) * 2.0, (0.9, 0.8, 0.7, 0.6, 0.5)
    assert final_cells(cells, mpp=0.5, min_distance_um=1.0).tolist() == [0, 2, 4]
    assert final_cells(cells, mpp=0.5).tolist() == [0, 1, 2, 3, 4]
    assert final_cells(cells[:0], mpp=0.5, min_distance_um=1.0).tolist() == []


def test_the_rule_on_probabilities() -> None:
    probabilities = np.array([[0.5, 0.1, 0.4], [0.3, 0.2, 0.5], [0.1, 0.45, 0.45], [0.05, 0.05, 0.9]])
    labels, scores, kept = classify(probabilities)
    assert kept.tolist()[:2] == [True, False] and not kept[3]
    labels, scores, kept = classify(probabilities, 0.3)
    assert (labels.tolist(), kept.tolist()) == ([0, 0, 1, 0], [True, True, True, False])
    assert scores.tolist() == pytest.approx([0.5, 0.3, 0.45, 0.05])


def test_one_inference_gives_every_threshold(predict_here: Predict, tmp_path: Path) -> None:
    """Scores of tiles are those of what `finetune.predict` writes for them."""
    from finetune.datasets.dataset import Tile

    png = shaded(600, 500, tmp_path)
    tile = Tile(png, "a", (600, 500), np.empty((0, 2)), np.empty(0, int))
    detector = planted.detector(tile=192)
    (found,) = predict_tiles(detector, [tile], 0.5)
    for threshold in (None, 0.2, 0.6):
        out = tmp_path / f"{threshold}"
        assert (
            predict_here(png, slide_mpp=0.5, threshold=str(threshold or "paper"), detector=detector, out=out) == 0
        )
        cells = found.cells(threshold)
        expected = sorted((float(row["y"]), float(row["x"])) for row in rows(out / "a.csv"))
        assert np.allclose(sorted(cells.points_N2[:, ::-1].tolist()), expected, atol=0.006)
