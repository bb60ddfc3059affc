"""Whole predictions: what was planted in slides and images is in the files, whatever happens on the way."""

import csv
import gzip
import json
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from finetune import Detector
from finetune.datasets import DataOptions, load_data
from finetune.datasets.import_qupath import Import, import_annotations
from finetune.predict.outputs.output_names import drawn_by_prediction
from finetune.predict.share import Share, share_of_process
from shared.errors import UserError
from shared.model import dpa_p2pnet as core
from shared.model.decoders import Detections
from shared.model.detector_file import save_detector
from shared.model.proposals import proposal_grid
from shared.signals import StopSignal
from shared.wsi.image_source import find_sources
from tests.conftest import ENVIRONMENT, Command
from tests.finetune.predict import planted
from tests.finetune.predict.conftest import Predict
from tests.finetune.predict.planted import Planted, near, plant

# Several tiles along both sides, none of which the image's sides are multiples of.
SMALL = {"slide_mpp": 0.25, "tile": 192, "margin": 64}


@pytest.fixture(scope="module")
def image() -> Planted:
    return plant(1100, 900)


@pytest.fixture
def png(image: Planted, tmp_path: Path) -> Path:
    path = tmp_path / "a slide.png"
    image.image.save(path)
    return path


def features(path: Path) -> list[dict[str, Any]]:
    content = path.read_bytes()
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            content = archive.read(f"{path.stem}.geojson")
    return json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)["features"]


def found(path: Path) -> set[tuple[int, int, str]]:
    cells = features(path)
    points_N2 = np.array([cell["geometry"]["coordinates"] for cell in cells]).reshape(-1, 2)
    return near(points_N2, [cell["properties"]["classification"]["name"] for cell in cells])


def test_files_hold_what_was_planted(predict_here: Predict, image: Planted, png: Path, tmp_path: Path) -> None:
    ratio = ("Ki-67 = red / (red + blue)", "nothing = red / (cells - red - blue)")
    assert predict_here(png, ratio=ratio, report=True, **SMALL) == 0
    out = tmp_path / "cells"
    cells = features(out / "a slide.geojson")
    assert found(out / "a slide.geojson") == image.set()
    assert len(cells) == len(image.labels_N)
    with (out / "a slide.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for cell, row in zip(cells, rows, strict=True):
        assert [float(row["x"]), float(row["y"])] == cell["geometry"]["coordinates"]
        assert float(row["x_um"]) == pytest.approx(float(row["x"]) * 0.25, abs=0.003)
        assert row["class"] == cell["properties"]["classification"]["name"]
        assert float(row["probability"]) == cell["properties"]["measurements"]["Probability"]
    assert len({row["tile"] for row in rows}) == 9 * 7  # of 64 px; two px are left for an eighth row
    summary = json.loads((out / "a slide.summary.json").read_text())
    red = int((image.labels_N == 0).sum())
    assert summary["classes"]["red"]["cells"] == red
    mm2 = 1100 * 900 * 0.25**2 * 1e-6
    assert summary["area"] == {"kind": "everywhere", "mm2": pytest.approx(mm2, abs=1e-6)}
    assert summary["classes"]["red"]["per_mm2"] == pytest.approx(red / mm2, rel=1e-5)
    assert summary["ratios"]["Ki-67"]["value"] == pytest.approx(red / len(image.labels_N))
    assert summary["ratios"]["nothing"]["value"] is None
    with (out / "summary.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert (line["slide"], line["red cells"]) == ("a slide", str(red))
    assert Image.open(out / "a slide.density.png").size > (600, 600)
    assert Image.open(out / "a slide.regions.png").size > (600, 400)


def test_files_are_those_that_were_asked_for_last(predict_here: Predict, tmp_path: Path) -> None:
    """In the images' own folder: no stale files, none taken for an image, none that is gone taken for done."""
    folder = tmp_path / "images"
    folder.mkdir()
    plant(300, 200).image.save(folder / "a.png")
    (folder / "a.csv").write_text("somebody's own")

    def run(**options: Any) -> set[str]:
        batches.clear()
        assert predict_here(folder, detector=counting, slide_mpp=0.25, out=folder, **options) == 0
        return {path.name.removeprefix("a.") for path in folder.glob("a.*")}

    batches: list[None] = []
    counting = planted.detector(after=lambda: batches.append(None))
    assert run(csv=False) == {"png", "csv", "geojson", "summary.json"}
    (folder / "a.csv").unlink()
    everything = {"png", "csv", "geojson", "summary.json", "density.png", "regions.png", "html"}
    assert run(report=True) == everything
    for name in sorted(everything - {"png", "summary.json"}):
        (folder / f"a.{name}").unlink()
        assert run(report=True) == everything and not batches
    named = find_sources(sorted(folder.glob("*.png")), drawn_by_prediction)  # as a shell names them
    assert named == {folder / "a.png": Path("a")}
    assert run(compress="zip", csv=False) == {"png", "zip", "summary.json"}


def test_no_cells_and_annotated_ones(predict_here: Predict, tmp_path: Path) -> None:
    """What the detector missed is shown beside nothing; without annotations there is no such picture to miss."""
    Image.new("RGB", (300, 200), "white").save(tmp_path / "a.png")
    point = {"type": "Point", "coordinates": [50, 60]}
    drawn = [{"type": "Feature", "geometry": point, "properties": {"classification": {"name": "red"}}}]
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": drawn}))
    common = {"slide_mpp": 0.25, "report": True}
    assert predict_here(tmp_path / "a.png", **common) == 0
    assert not (tmp_path / "cells/a.regions.png").exists()
    written = (tmp_path / "cells/a.html").stat().st_mtime_ns
    assert predict_here(tmp_path / "a.png", **common) == 0  # done already
    assert (tmp_path / "cells/a.html").stat().st_mtime_ns == written
    assert predict_here(tmp_path / "a.png", **common, annotations=tmp_path / "a.geojson") == 0
    assert (tmp_path / "cells/a.regions.png").exists()


def test_geojson_is_what_qupath_documents(predict_here: Predict, png: Path, tmp_path: Path) -> None:
    """https://qupath.readthedocs.io, Exporting annotations: GeoJSON with QuPath's properties."""
    assert predict_here(png, **SMALL) == 0
    content = json.loads((tmp_path / "cells/a slide.geojson").read_text())
    assert content.keys() == {"type", "features"} and content["type"] == "FeatureCollection"
    colours = {"red": [0, 229, 255], "blue": [255, 230, 0]}
    for feature in content["features"]:
        assert feature.keys() == {"type", "geometry", "properties"} and feature["type"] == "Feature"
        assert feature["geometry"].keys() == {"type", "coordinates"} and feature["geometry"]["type"] == "Point"
        x, y = feature["geometry"]["coordinates"]
        assert 0 <= x < 1100 and 0 <= y < 900
        properties = feature["properties"]
        assert properties.keys() == {"objectType", "classification", "measurements"}
        assert properties["objectType"] == "detection"
        assert properties["classification"].keys() == {"name", "color"}
        assert properties["classification"]["color"] == colours[properties["classification"]["name"]]
        assert properties["measurements"].keys() == {"Probability"}
        assert 0.33 < properties["measurements"]["Probability"] <= 1


def test_the_tiling_does_not_show(predict_here: Predict, png: Path, tmp_path: Path) -> None:
    lines = []
    for name, options in {
        "whole": {"tile": 1024},
        "small": SMALL,
        "batched": {**SMALL, "batch_size": 7, "compress": "gzip"},
        "workers": {"tile": 320, "margin": 64, "workers": 1, "precision": "float32", "compress": "zip"},
    }.items():
        assert predict_here(png, out=tmp_path / name, **{**options, "slide_mpp": 0.25}) == 0
        (path,) = (path for path in (tmp_path / name).iterdir() if path.suffix in (".geojson", ".gz", ".zip"))
        cells = features(path)
        lines.append(sorted(cell["geometry"]["coordinates"] for cell in cells))
    assert all(np.allclose(lines[0], each, atol=0.011) for each in lines[1:])


def test_pixels_are_counted_from_the_bounds_of_the_scan(predict_here: Predict, tmp_path: Path) -> None:
    image = plant(1024, 768, seed=1)
    slide = tmp_path / "leica.scn"
    planted.write_leica(slide, image.image, 0.25, (2000, 1500), (400, 208))
    common = {"everywhere": True, "tile": 320, "margin": 64}
    assert predict_here(slide, **common) == 0
    assert found(tmp_path / "cells/leica.geojson") == image.set()
    assert predict_here(slide, **common, bounds=False) == 0  # the cells are known; only the files are new
    assert found(tmp_path / "cells/leica.geojson") == image.set((400, 208))
    # Regions are drawn in QuPath, and so count from there, too.
    square = [[201, 101], [601, 101], [601, 501], [201, 501], [201, 101]]
    region = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [square]}, "properties": {}}
    (tmp_path / "regions.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [region]}))
    regions = {"regions": tmp_path / "regions.geojson", "out": tmp_path / "in regions"}
    assert predict_here(slide, **regions, tile=192, margin=64) == 0
    x_N, y_N = image.points_N2.T
    inside_N = (x_N > 201) & (x_N < 601) & (y_N > 101) & (y_N < 501)
    names = [planted.CLASSES[label] for label in image.labels_N[inside_N]]
    assert found(tmp_path / "in regions/leica.geojson") == near(image.points_N2[inside_N], names)
    summary = json.loads((tmp_path / "in regions/leica.summary.json").read_text())
    assert summary["area"] == {"kind": "regions", "mm2": pytest.approx(0.01)}
    assert summary["tiles"]["asked"] < summary["tiles"]["of"]


@pytest.mark.parametrize("compress", ["no", "zip", "gzip"])
def test_what_was_predicted_is_imported_unchanged(predict_here: Predict, tmp_path: Path, compress: str) -> None:
    image = plant(1024, 768, seed=1, share=0.1)
    slide = tmp_path / "leica.scn"
    planted.write_leica(slide, image.image, 0.25, (2000, 1500), (400, 208))
    assert predict_here(slide, everywhere=True, compress=compress) == 0
    config = Import(annotations=tmp_path / "cells", slides=slide.parent, out=tmp_path / "data", tile=128)
    assert import_annotations(config) == 0
    data = load_data(DataOptions(data=tmp_path / "data"))
    assert data.mpp == 0.5 and set(data.classes) == {"red", "blue"}
    with (tmp_path / "data/tiles.csv").open(newline="") as file:
        corners = {row["image"]: (float(row["x"]), float(row["y"])) for row in csv.DictReader(file)}
    back = []
    for tile in (tile for tiles in data.splits.values() for tile in tiles):
        corner = np.array(corners[tile.image.relative_to(data.folder).as_posix()])
        points_N2 = tile.points_N2 / 0.5 + corner - (400, 208)
        back += [(*point, data.classes[label]) for point, label in zip(points_N2, tile.labels_N, strict=True)]
        assert {tile.slide} == {"leica"}
    (path,) = (path for path in (tmp_path / "cells").glob("leica.*") if path.suffix in (".geojson", ".gz", ".zip"))
    cells = features(path)
    names = [cell["properties"]["classification"]["name"] for cell in cells]
    before = [(*cell["geometry"]["coordinates"], name) for cell, name in zip(cells, names, strict=True)]
    assert len(back) == len(before) == len(image.labels_N)
    for one, two in zip(sorted(back), sorted(before), strict=True):
        assert np.hypot(one[0] - two[0], one[1] - two[1]) < 0.01
        assert one[2] == two[2]


def test_stopped_it_goes_on(predict_here: Predict, png: Path, tmp_path: Path, stop: StopSignal) -> None:
    batches: list[None] = []
    counting = planted.detector(after=lambda: batches.append(None))
    assert predict_here(png, detector=counting, out=tmp_path / "undisturbed", **SMALL) == 0
    calls = []

    def after() -> None:
        calls.append(None)
        if len(calls) in (5, 9):
            stop.received = "SIGUSR2"

    disturbed = planted.detector(after=after)
    for _ in range(2):
        assert predict_here(png, detector=disturbed, **SMALL) == 85
        assert not (tmp_path / "cells/a slide.summary.json").exists()
        stop.received = None
    assert predict_here(png, detector=disturbed, **SMALL) == 0
    undisturbed = (tmp_path / "undisturbed/a slide.geojson").read_bytes()
    assert (tmp_path / "cells/a slide.geojson").read_bytes() == undisturbed
    assert len(calls) == len(batches)
    assert predict_here(png, detector=disturbed, **SMALL) == 0  # nothing is left to do
    assert len(calls) == len(batches)


DIES = """
import os, pathlib, signal, sys
from finetune.predict.search import cell_store as store
from finetune.predict.config import PredictConfig
from finetune.predict.run import predict
from shared.model.detector_file import LoadedDetector
from shared.signals import StopSignal
from tests.finetune.predict import planted
calls = []
def after():
    calls.append(None)
    if len(calls) == 8:
        os.kill(os.getpid(), signal.SIGKILL)
store.SAVE_EVERY_S = 0.0
LoadedDetector.load = lambda path, *_: planted.detector(after=after, path=path)
png, out = map(pathlib.Path, sys.argv[1:])
detector = png.with_name("detector.pth")
predict(PredictConfig(detector=detector, sources=(png,), out=out, slide_mpp=0.25, tile=192, margin=64, workers=0,
                      report=False), StopSignal())
"""


def test_killed_it_goes_on(predict_here: Predict, png: Path, tmp_path: Path) -> None:
    batches: list[None] = []
    counting = planted.detector(after=lambda: batches.append(None))
    assert predict_here(png, detector=counting, out=tmp_path / "undisturbed", **SMALL) == 0
    words = [sys.executable, "-c", DIES, png, tmp_path / "cells"]
    done = subprocess.run(words, env=ENVIRONMENT, cwd=Path(__file__).parents[3], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    known = json.loads((tmp_path / "cells/.a slide.cells/progress.json").read_text())
    assert known["batches"] == 7
    with (tmp_path / "cells/.a slide.cells/cells.bin").open("ab") as file:
        file.write(b"half a batch")  # what a dying process may leave behind
    calls: list[None] = []
    assert predict_here(png, detector=planted.detector(after=lambda: calls.append(None)), **SMALL) == 0
    undisturbed = (tmp_path / "undisturbed/a slide.geojson").read_bytes()
    assert (tmp_path / "cells/a slide.geojson").read_bytes() == undisturbed
    assert len(calls) == len(batches) - 7


def test_a_slide_that_fails_is_named_and_the_rest_is_done(
    predict_here: Predict, png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "broken.png").write_bytes(png.read_bytes()[:5000])
    (folder / "broken.svs").write_text("no slide")
    assert predict_here(folder, slide_mpp=0.25) == 2
    said = capsys.readouterr()
    assert "broken.png cannot be opened as an image" in said.err
    assert "broken.svs is not a slide" in said.err
    for place in (folder / "a.png", folder / "sub" / "a.png", folder / "sub" / "a.jpg"):
        Image.open(png).save(place, quality=95)
    assert predict_here(folder, slide_mpp=0.25) == 3
    assert "2 of 5 slides failed" in capsys.readouterr().err
    names = {path.relative_to(tmp_path / "cells").as_posix() for path in (tmp_path / "cells").rglob("*.geojson")}
    assert names == {"a.geojson", "sub/a.png.geojson", "sub/a.jpg.geojson"}
    lines = (tmp_path / "cells/summary.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["slide", "a", "sub/a.jpg", "sub/a.png"]


def test_real_bad_slides(
    predict_here: Predict, real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tile that cannot be decoded is named and counted, its neighbours are not lost; the rest is refused."""
    slides = real_data / "slides"
    assert predict_here(slides / "corrupt_tile.svs", slide_mpp=0.5, everywhere=True, tile=512, margin=0) == 3
    summary = json.loads((tmp_path / "cells/corrupt_tile.summary.json").read_text())
    assert 1 <= len(summary["unreadable"]) <= 4 < summary["tiles"]["asked"]
    assert "cannot be read and lack their cells: tile" in capsys.readouterr().err
    bad = [
        slides / name
        for name in ("unreadable.svs", "small_dicom.dcm", "broken.svs", "truncated.svs", "boxes.tiff")
    ]
    assert predict_here(*bad, out=tmp_path / "bad") == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed: ")]
    assert len(said) == 5 and all(str(path) in line for path, line in zip(bad, said, strict=True))


def test_slides_are_dealt_out_to_ranks(
    predict_here: Predict, png: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(3):
        Image.open(png).save(folder / f"{number}.png")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, names in ((1, {"1"}), (0, {"0", "1", "2"})):
        monkeypatch.setenv("RANK", str(rank))
        assert predict_here(folder, slide_mpp=0.25) == 0
        assert {path.stem for path in (tmp_path / "cells").glob("*.geojson")} == names
    assert (tmp_path / "cells/summary.csv").read_text().count("\n") == 4


def test_parts_of_an_array_and_their_ranks_share_the_slides_out() -> None:
    """Every slide falls to one process, whatever starts them."""
    for names in (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")):
        shares = [
            share_of_process(part, {"MASTER_ADDR": "here", **dict(zip(names, (rank, "2", "0"), strict=True))})
            for part in ("1/3", "2/3", "3/3")
            for rank in ("0", "1")
        ]
        assert sorted(share.rank for share in shares) == list(range(6))
        assert {share.size for share in shares} == {6}
    assert share_of_process("2/3", {}) == Share(1, 3)
    assert share_of_process(None, {"SLURM_PROCID": "0"}) == Share(0, 1)  # a shell inside a job


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tile": 200}, "--tile 200 is no multiple of 64 px"),
        ({"tile": 256}, "a margin of 128 px on both sides leaves nothing of a tile of 256 px"),
        ({"ratio": ("red / blue",)}, 'not of the form "NAME = CLASS'),
        ({"ratio": ("a = red / green",)}, "'green' is no class of the detector; it knows red, blue"),
        ({"everywhere": True, "regions": Path("x")}, "--everywhere and --regions exclude each other"),
        ({"regions": Path("x.geojson")}, "there is no file or folder --regions x.geojson"),
        ({"region_class": "Tumor"}, "--region-class chooses among regions"),
        ({"slide_mpp": -1}, "--slide-mpp -1 is out of range"),
        ({"batch_size": 0}, "--batch-size 0 is out of range"),
        ({"part": "3/2"}, "--part 3/2 is not a part"),
        ({"parquet": True}, "pip install pyarrow"),
    ],
)
def test_wrong_options_end_in_one_sentence(
    predict_here: Predict, png: Path, tmp_path: Path, options: dict[str, Any], sentence: str, monkeypatch: Any
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError) as caught:
        predict_here(png, **{"slide_mpp": 0.25, **options})
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "cells").exists()


def test_other_settings_do_not_mix(predict_here: Predict, png: Path, tmp_path: Path) -> None:
    assert predict_here(png, slide_mpp=0.25) == 0
    with pytest.raises(UserError, match="was made with another tile; give another --out, or remove it"):
        predict_here(png, **SMALL)
    (tmp_path / "detector.pth").write_text("another")
    with pytest.raises(UserError, match="was made with another detector"):
        predict_here(png, slide_mpp=0.25)
    with pytest.raises(UserError, match="there is no slide, image or folder"):
        predict_here(tmp_path / "none.svs")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds neither slides nor images"):
        predict_here(tmp_path / "empty")


def test_annotated_cells_stand_beside_predicted_ones(predict_here: Predict, tmp_path: Path) -> None:
    png = tmp_path / "a slide.png"
    plant(600, 500).image.save(png)
    assert predict_here(png, slide_mpp=0.25, out=tmp_path / "annotated") == 0
    (tmp_path / "annotated/a slide.csv").unlink()
    assert predict_here(png, slide_mpp=0.25, report=True) == 0
    bare = np.asarray(Image.open(tmp_path / "cells/a slide.regions.png"))
    assert predict_here(png, slide_mpp=0.25, report=True, annotations=tmp_path / "annotated") == 0
    beside = np.asarray(Image.open(tmp_path / "cells/a slide.regions.png"))
    left, right = (beside[30:470, start + 4 : start + 440].astype(int) for start in (0, 452))
    assert np.abs(left - right).mean() < 0.5  # what was predicted was given as annotated
    left, right = (bare[30:470, start + 4 : start + 440].astype(int) for start in (0, 452))
    assert np.abs(left - right).mean() > 5


@pytest.mark.parametrize("option", ["regions", "annotations"])
def test_what_was_drawn_is_not_overwritten(predict_here: Predict, png: Path, tmp_path: Path, option: str) -> None:
    drawn = tmp_path / "a slide.geojson"
    drawn.write_text("drawn by hand")
    for given in (drawn, tmp_path):
        with pytest.raises(UserError, match=rf"--{option} .*a slide\.geojson would be overwritten"):
            predict_here(png, slide_mpp=0.25, out=tmp_path, **{option: given})
    assert drawn.read_text() == "drawn by hand"


def test_what_is_no_region_is_left_out(predict_here: Predict, image: Planted, png: Path, tmp_path: Path) -> None:
    """Beside a region: an empty outline and a point without a class. Beside our summary: somebody else's."""
    square = [[[0, 0], [400, 0], [400, 400], [0, 400], [0, 0]]]
    drawn = [("Polygon", square), ("Polygon", []), ("MultiPolygon", [[]]), ("Point", [1, 1])]
    features = [
        {"type": "Feature", "geometry": {"type": kind, "coordinates": at}, "properties": {}} for kind, at in drawn
    ]
    (tmp_path / "regions.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    (tmp_path / "cells/of others").mkdir(parents=True)
    for name, content in (("list", "[]"), ("other", '{"cells": 3}'), ("broken", "{")):
        (tmp_path / f"cells/of others/{name}.summary.json").write_text(content)
    assert predict_here(png, regions=tmp_path / "regions.geojson", slide_mpp=0.25) == 0
    inside_N = (image.points_N2 < 400).all(axis=1)
    names = [planted.CLASSES[label] for label in image.labels_N[inside_N]]
    assert found(tmp_path / "cells/a slide.geojson") == near(image.points_N2[inside_N], names)
    assert len((tmp_path / "cells/summary.csv").read_text().splitlines()) == 2


def test_detections_and_ignored_areas_are_no_regions(
    predict_here: Predict, image: Planted, png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """QuPath's export of all objects."""

    def drawn(left: int, right: int, name: str, kind: str) -> dict[str, Any]:
        corners = [[left, left], [right, left], [right, right], [left, right], [left, left]]
        properties = {"objectType": kind, "classification": {"name": name}}
        geometry = {"type": "Polygon", "coordinates": [corners]}
        return {"type": "Feature", "geometry": geometry, "properties": properties}

    features = [
        drawn(0, 400, "Tissue", "annotation"),
        drawn(100, 250, "Ignore*", "annotation"),
        *[drawn(x, x + 20, "Tumor", "detection") for x in range(0, 600, 30)],
    ]
    (tmp_path / "regions.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    assert predict_here(png, regions=tmp_path / "regions.geojson", slide_mpp=0.25) == 0
    inside_N = (image.points_N2 < 400).all(axis=1)
    inside_N &= ~((image.points_N2 > 100) & (image.points_N2 < 250)).all(axis=1)
    assert inside_N.sum() < (image.points_N2 < 400).all(axis=1).sum()
    names = [planted.CLASSES[label] for label in image.labels_N[inside_N]]
    assert found(tmp_path / "cells/a slide.geojson") == near(image.points_N2[inside_N], names)
    summary = json.loads((tmp_path / "cells/a slide.summary.json").read_text())
    assert summary["area"]["mm2"] == pytest.approx((400**2 - 150**2) * 0.25**2 * 1e-6, rel=1e-3)
    (note,) = (line for line in capsys.readouterr().out.splitlines() if "note:" in line)
    assert "1 areas of ignored classes" in note and "20 objects of type detection" in note


@pytest.mark.parametrize(
    ("option", "features", "sentence"),
    [
        ("regions", None, "is not JSON"),
        ("regions", [], "has no regions; draw and export polygons, or leave --regions out"),
        ("regions", [("Polygon", [[[9000, 0], [9100, 0], [9100, 99]]])], "a region is outside"),
        ("annotations", [("Point", [1, 2])], "has cells of class 'zebra', but the detector knows red, blue"),
    ],
)
def test_drawings_that_cannot_be_used(
    predict_here: Predict,
    png: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
    features: list[tuple[str, Any]] | None,
    sentence: str,
) -> None:
    """Before the slide is looked at."""
    path = tmp_path / "drawn.geojson"
    drawn = [
        {
            "type": "Feature",
            "geometry": {"type": kind, "coordinates": coordinates},
            "properties": {"classification": {"name": "zebra"}},
        }
        for kind, coordinates in features or ()
    ]
    path.write_text("{" if features is None else json.dumps({"type": "FeatureCollection", "features": drawn}))
    never = planted.detector(after=lambda: pytest.fail("it was looked at"))
    assert predict_here(png, detector=never, slide_mpp=0.25, **{option: path}) == 2
    assert sentence in capsys.readouterr().err
    with pytest.raises(UserError, match="is one file for several slides; give a folder"):
        predict_here(png, path.with_name("detector.pth"), detector=never, **{option: path})


def untrained(path: Path) -> Path:
    torch.manual_seed(0)
    config = core.DetectorConfig(arch="vit_tiny_patch16_224", classes=2, interval=8, channels=32, hidden=32)
    save_detector(path, core.DPAP2PNet(config), {"classes": ["red", "blue"], "mpp": 0.5, "tile": 192})
    return path


def test_the_command_as_typed(command: Command, tmp_path: Path) -> None:
    detector = untrained(tmp_path / "detector.pth")
    image = plant(200, 150, mpp=0.5)
    image.image.save(tmp_path / "a.png")
    done = command("finetune.predict", detector, "a.png", "--slide-mpp", 0.5, "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert "cells on 0.0075 mm2 (everywhere): red" in done.stdout
    names = {path.name for path in (tmp_path / "cells").glob("[!.]*")}
    outputs = ("geojson", "csv", "summary.json", "html", "density.png", "regions.png")
    assert names == {f"a.{ending}" for ending in outputs} | {"summary.csv"}
    tiles = json.loads((tmp_path / "cells/a.summary.json").read_text())["tiles"]
    assert tiles == {"asked": 12, "of": 12, "core_px": 64}  # a third of the tile it was trained on


def test_from_python(tmp_path: Path) -> None:
    path = untrained(tmp_path / "detector.pth")
    detector = Detector.load(path)
    assert (detector.classes, detector.mpp, detector.tile) == (("red", "blue"), 0.5, 192)
    image_HWC = np.asarray(plant(120, 100, mpp=0.5).image)
    cells = detector.predict(image_HWC)
    with torch.inference_mode():  # it is given images of the size that it was trained on
        tile_HWC = np.pad(image_HWC, ((0, 92), (0, 72), (0, 0)), constant_values=255)
        image_BCHW = torch.from_numpy(tile_HWC).permute(2, 0, 1)[None] / 255
        (expected,) = detector.network.detect(image_BCHW)
    inside_N = (expected.points_N2 < (120, 100)).all(axis=1)
    assert len(cells.labels_N) == inside_N.sum() > 0
    assert np.allclose(cells.points_N2, expected.points_N2[inside_N], atol=1e-3)
    assert (cells.labels_N == expected.labels_N[inside_N]).all()
    assert np.allclose(cells.scores_N, expected.scores_N[inside_N], atol=1e-5)
    for wrong in (np.zeros((10, 10)), np.zeros((0, 5, 3), np.uint8)):
        with pytest.raises(UserError, match="an image is an array of uint8 RGB"):
            detector.predict(wrong)
    for mpp in (0, -1, float("nan")):
        with pytest.raises(UserError, match="um/px makes no sense; give mpp between"):
            detector.predict(image_HWC, mpp=mpp)
    with pytest.raises(UserError, match="take a finer one"):
        detector.predict(image_HWC, mpp=2.0)


def test_from_python_in_other_resolutions() -> None:
    image = plant(1100, 900)
    cells = planted.detector(tile=320).predict(image.image, mpp=0.25)
    assert near(cells.points_N2, [planted.CLASSES[label] for label in cells.labels_N]) == image.set()


@pytest.mark.parametrize(
    ("tile", "shift", "last"), [(None, 1.4, 251.4), (None, 1.6, 243.6), (128, 7.4, 251.4), (128, 7.6, 243.6)]
)
def test_points_lie_in_the_image(
    tile: int | None, shift: float, last: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 px are 251.5 of the detector's: a point at 251.6 does not lie in them, one at 251.4 does."""

    def everywhere(_: object, image_BCHW: torch.Tensor) -> Detections:
        proposals_N2 = proposal_grid(*image_BCHW.shape[:-3:-1], planted.CELL).flatten(0, 1)
        places_BN2 = proposals_N2.expand(len(image_BCHW), -1, -1)
        logits_BNC = torch.tensor([5.0, 0, 0]).expand(*places_BN2.shape[:2], -1)
        return Detections(proposals_N2, places_BN2, places_BN2 + shift, logits_BNC)

    monkeypatch.setattr(planted.SquareNetwork, "forward", everywhere)
    cells = planted.detector(tile=tile).predict(np.zeros((503, 503, 3), np.uint8), mpp=0.25)
    assert cells.points_N2.max(axis=0) == pytest.approx([2 * last, 2 * last], abs=1e-3)


def test_importing_finetune_is_light() -> None:
    code = "import finetune, sys; assert 'torch' not in sys.modules; assert 'Detector' in finetune.__all__"
    subprocess.run([sys.executable, "-c", code], check=True, env=ENVIRONMENT)


def test_one_process_at_a_slide(predict_here: Predict, png: Path, tmp_path: Path) -> None:
    assert predict_here(png, slide_mpp=0.25) == 0
    lock = tmp_path / "cells/.a slide.cells/.lock"
    code = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.lockf(f, 2); print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, lock], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert predict_here(png, slide_mpp=0.25, compress="zip") == 2
        other.kill()
    assert predict_here(png, slide_mpp=0.25, compress="zip") == 0
