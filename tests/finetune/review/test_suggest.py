"""The review loop: suggestions that QuPath can edit, corrections that `import` reads, training that goes on."""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from PIL import Image

from finetune.__main__ import main as finetune
from finetune.datasets import DataOptions, load_data
from finetune.datasets.__main__ import main
from finetune.predict.config import PredictConfig
from finetune.predict.run import predict
from finetune.review.config import Suggest
from finetune.review.suggest import suggest
from shared.errors import UserError
from shared.model.dpa_p2pnet import DPAP2PNet
from shared.samples.sample_slides import write_slide
from shared.samples.specimen import section
from shared.signals import StopSignal
from tests.conftest import REPOSITORY, InProcess
from tests.finetune.predict.planted import write_leica

NUCLEI = REPOSITORY / "shared" / "weights" / "nuclei.safetensors"
MPP = 0.5
CONFIG = Suggest(detector=NUCLEI, slides=(), per_slide=2, candidates=8, workers=0)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for seed, name in enumerate("ab"):
        write_slide(folder / f"{name}.tif", section(seed, 400, 300), MPP)
    return folder


@pytest.fixture(scope="module")
def suggested(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suggested")
    assert suggest(dataclasses.replace(CONFIG, slides=(slides,), out=folder)) == 0
    return folder


def test_exhausted_memory_is_a_sentence(slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(DPAP2PNet, "forward", lambda *_, **__: torch.empty(2**50, dtype=torch.uint8))
    monkeypatch.setattr(DPAP2PNet, "detect", lambda *_, **__: torch.empty(2**50, dtype=torch.uint8))
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES"):
        suggest(dataclasses.replace(CONFIG, slides=(slides,), out=tmp_path / "out"))


def content(path: Path) -> tuple[list[shapely.Polygon], dict[str, np.ndarray]]:
    """Rectangles, and points by class, of annotations."""
    rectangles, points = [], {}
    for feature in json.loads(path.read_text())["features"]:
        shape, properties = feature["geometry"], feature["properties"]
        assert properties["objectType"] == "annotation"  # detections cannot be edited in QuPath
        name = properties["classification"]["name"]
        if shape["type"] == "Polygon":
            assert name == "Region*"
            rectangles.append(shapely.geometry.shape(shape))
        else:
            assert shape["type"] == "MultiPoint"
            points[name] = np.array(shape["coordinates"])
    return rectangles, points


def test_rectangles_hold_the_cells_that_predict_finds(slides: Path, suggested: Path, stop: StopSignal) -> None:
    out = suggested / "predicted"
    assert predict(PredictConfig(detector=NUCLEI, sources=(slides,), out=out, report=False, workers=0), stop) == 0
    for name in "ab":
        rectangles, points = content(suggested / f"{name}.geojson")
        assert len(rectangles) == 2 and shapely.union_all(rectangles).area == pytest.approx(2 * 256**2)
        features = json.loads((out / f"{name}.geojson").read_text())["features"]
        everywhere = np.array([feature["geometry"]["coordinates"] for feature in features])
        expected = everywhere[shapely.intersects_xy(shapely.union_all(rectangles), everywhere)]
        found = points["nucleus"]
        assert len(found) > 40 and list(points) == ["nucleus"]
        distances = np.linalg.norm(found[:, None] - expected, axis=2)
        # The same network sees other windows: cells at their seams may differ.
        assert np.mean(distances.min(axis=1) < 1) > 0.97 and abs(len(found) - len(expected)) < 0.03 * len(found)


def test_the_next_round_leaves_out_what_is_annotated(slides: Path, suggested: Path, tmp_path: Path) -> None:
    again = dataclasses.replace(CONFIG, slides=(slides,), out=tmp_path / "again", annotated=suggested)
    assert suggest(again) == 0
    for name in "ab":
        before, now = (content(folder / f"{name}.geojson")[0] for folder in (suggested, again.out))
        assert len(now) == 2 and shapely.union_all(before).intersection(shapely.union_all(now)).area == 0


def test_corrections_come_back_as_data_to_go_on_with(
    slides: Path, suggested: Path, tmp_path: Path, in_process: InProcess
) -> None:
    """A class is added, a cell removed and one moved; training goes on from the detector with both rounds."""
    corrected = tmp_path / "corrected"
    expected: list[tuple[str, int]] = []
    for round_, name, keep in ((1, "a", slice(0, 1)), (2, "a", slice(1, 2)), (1, "b", slice(0, 2))):
        collection = json.loads((suggested / f"{name}.geojson").read_text())
        *rectangles, cells = collection["features"]
        area = shapely.union_all([shapely.geometry.shape(each["geometry"]) for each in rectangles[keep]])
        points = [each for each in cells["geometry"]["coordinates"] if shapely.intersects_xy(area, *each)]
        features = [*rectangles[keep], _points(cells, points[1:-1]), _points(cells, points[-1:], "mitosis")]
        path = corrected / f"round-{round_}" / f"{name}.geojson"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**collection, "features": features}))
        expected.append((name, len(points) - 1))
    data = tmp_path / "data"
    words = ("import", corrected, "--slides", slides, "--out", data, "--classes", "nucleus", "mitosis")
    assert in_process(main, *words)[0] == 0
    tiles = [tile for each in load_data(DataOptions(data=data)).splits.values() for tile in each]
    assert len(tiles) == 4
    for name in "ab":
        cells = sum(len(tile.labels_N) for tile in tiles if tile.slide == name)
        assert cells == sum(count for slide, count in expected if slide == name)
    assert sum((tile.labels_N == 1).sum() for tile in tiles) == 3
    words = ("nuclei", "--init", NUCLEI, "--arch", "regnetx_002", "--data", data, "--out", tmp_path / "d.pth")
    code, printed, _ = in_process(
        finetune, *words, "--run-dir", tmp_path / "run", "--max-steps", 1, "--batch-size", 1, "--workers", 0
    )
    assert code == 0, printed
    assert "classes kept  nucleus\n" in printed and "classes new   mitosis\n" in printed


def _points(cells: dict[str, Any], points: list[list[float]], name: str = "nucleus") -> dict[str, Any]:
    properties = {"objectType": "annotation", "classification": {"name": name}}
    return {**cells, "geometry": {"type": "MultiPoint", "coordinates": points}, "properties": properties}


def test_positions_count_from_the_corner_of_the_scanned_area(tmp_path: Path) -> None:
    image = section(3, 256, 256).render(MPP)
    write_leica(tmp_path / "s.scn", Image.fromarray(image), MPP, (1400, 1200), (700, 600))
    boxes = []
    for bounds in (True, False):
        out = tmp_path / str(bounds)
        config = dataclasses.replace(CONFIG, slides=(tmp_path / "s.scn",), out=out, per_slide=1, candidates=1)
        assert suggest(dataclasses.replace(config, bounds=bounds)) == 0
        (rectangle,), points = content(out / "s.geojson")
        boxes.append(np.array(rectangle.bounds))
        assert shapely.intersects_xy(rectangle, points["nucleus"]).all()
    assert (boxes[1] - boxes[0]).tolist() == [700, 600, 700, 600]


def test_a_slide_that_cannot_be_read_costs_itself_alone(slides: Path, tmp_path: Path) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "a.tif").symlink_to(slides / "a.tif")
    (tmp_path / "slides" / "c.png").write_bytes(b"nothing")
    config = dataclasses.replace(CONFIG, slides=(tmp_path / "slides",), out=tmp_path / "out", slide_mpp=MPP)
    assert suggest(config) == 3
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["a.geojson"]


def test_nothing_is_there_to_correct_if_every_slide_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.png").write_bytes(b"nothing")
    assert suggest(dataclasses.replace(CONFIG, slides=(tmp_path / "c.png",), out=tmp_path / "out")) == 3
    assert "QuPath" not in capsys.readouterr().out


def test_annotations_are_read_before_anything_is_written(slides: Path, tmp_path: Path) -> None:
    (tmp_path / "annotated").mkdir()
    (tmp_path / "annotated" / "b.geojson").write_text("nothing")
    config = dataclasses.replace(CONFIG, slides=(slides,), out=tmp_path / "out", annotated=tmp_path / "annotated")
    with pytest.raises(UserError, match=r"b\.geojson is not JSON"):
        suggest(config)
    assert not (tmp_path / "out").exists()


def test_the_command_that_comes_next_reads_the_same_slides(
    slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], in_process: InProcess
) -> None:
    both = tuple(slides / f"{name}.tif" for name in "ab")
    config = dataclasses.replace(CONFIG, slides=both, out=tmp_path / "out", slide_mpp=MPP / 2, candidates=2)
    assert suggest(config) == 0
    *_, printed = capsys.readouterr().out.splitlines()
    words = shlex.split(printed.replace(" corrected ", f" {config.out} ").replace(" data2 ", f" {tmp_path}/data "))
    assert words[:4] == ["python", "-m", "finetune.datasets", "import"]
    assert in_process(main, *words[3:])[0] == 0
    tiles = [tile for each in load_data(DataOptions(data=tmp_path / "data")).splits.values() for tile in each]
    assert {tile.slide for tile in tiles} == {"a", "b"}


def test_earlier_suggestions_are_not_replaced(slides: Path, suggested: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        suggest(dataclasses.replace(CONFIG, slides=(slides,), out=suggested))
