"""`Detector.predict` on files: their own resolution counts, as on the command line."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.datasets.dataset import Tile
from finetune.predict.in_memory import AnnotatedTile, FoundCells, predict_image, predict_tiles
from finetune.predict.search.inference import record_type
from shared.errors import UserError
from tests.finetune.predict import planted
from tests.finetune.predict.conftest import Predict
from tests.finetune.predict.planted import CLASSES, near, plant


def named(cells) -> set[tuple[int, int, str]]:
    return near(cells.points_N2, [CLASSES[label] for label in cells.labels_N])


def test_a_slide_is_read_at_its_own_resolution(predict_here: Predict, tmp_path: Path) -> None:
    image = plant(1024, 768, seed=1)
    slide = tmp_path / "leica.scn"
    planted.write_leica(slide, image.image, 0.25, (2000, 1500), (400, 208))
    cells = predict_image(planted.detector(), slide, None)
    assert predict_here(slide, bounds=False) == 0
    with (tmp_path / "cells/leica.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert json.loads((tmp_path / "cells/leica.summary.json").read_text())["area"]["kind"] == "tissue"
    points_N2 = np.array([(float(row["x"]), float(row["y"])) for row in rows])
    assert named(cells) == near(points_N2, [row["class"] for row in rows])
    assert len(cells.labels_N) == len(rows) > 100


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_a_picture_is_read_at_the_resolution_that_it_states(
    predict_here: Predict, tmp_path: Path, suffix: str
) -> None:
    image = plant(600, 400)
    path = tmp_path / f"a.{suffix}"
    image.image.save(path, dpi=(25_400 / 0.25, 25_400 / 0.25), quality=98)
    detector = planted.detector()
    if suffix == "jpg":  # its dots per inch have 16 bits, enough for 0.39 um/px and coarser
        image.image.save(path, dpi=(72, 72), quality=98)
        assert named(predict_image(detector, path, 0.25)) == image.set()
        assert named(predict_image(detector, path, None)) != image.set()
        return
    assert named(predict_image(detector, path, None)) == image.set()
    assert named(predict_image(detector, Image.open(path), None)) == image.set()
    assert predict_here(path) == 0
    assert json.loads((tmp_path / "cells/a.summary.json").read_text())["slide_mpp"] == pytest.approx(
        0.25, rel=1e-3
    )
    assert named(predict_image(detector, path, 0.5)) != image.set()  # what is given wins


def test_a_picture_that_states_a_far_coarser_resolution_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    plant(100, 100).image.save(path, dpi=(25_400 / 2, 25_400 / 2))
    with pytest.raises(UserError, match=r"a\.png has 2 um/px"):
        predict_image(planted.detector(), path, None)


def test_tiles_of_another_resolution_are_resampled(tmp_path: Path) -> None:
    image = plant(600, 400)
    image.image.save(tmp_path / "a.png")
    tile = Tile(tmp_path / "a.png", "a", (600, 400), np.empty((0, 2)), np.empty(0, int))
    (found,) = predict_tiles(planted.detector(), [tile], 0.25)
    assert named(found.cells()) == image.set()


def test_a_single_cell_is_found_as_well() -> None:
    records = np.zeros(1, record_type(len(CLASSES) + 1))
    records["x"], records["probabilities"][0, 1] = 5, 1  # the rest is for background
    cells = FoundCells(records, mpp=0.5, scale=1.0).cells()
    assert cells.labels_N.tolist() == [1]


def test_wider_fields_of_view_come_from_their_files(tmp_path: Path) -> None:
    """Of a tile read in one piece all as they are; of a part of it the parts of them around the same centre."""
    views = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), np.uint8)
    names = ("a.fov4.png", "a.fov2.png", "a.png")
    for name, view in zip(names, views, strict=True):
        Image.fromarray(view).save(tmp_path / name)
    wider = tuple(tmp_path / name for name in names[:2])
    tile = Tile(tmp_path / "a.png", "a", (64, 64), np.empty((0, 2)), np.empty(0, int), wider=wider)
    source = AnnotatedTile(tile, 3, mpp=0.5, read_mpp=0.5)
    for times, view in zip((4, 2, 1), views, strict=True):
        start = -(times - 1) / 2 * 64
        assert (np.asarray(source.read(start, start, 64, 64, 0.5 * times)) == view).all()
    part = np.asarray(source.read(16 - 16, 16 - 16, 32, 32, 1.0))  # around the middle of 32 px from (16, 16) on
    assert (part == views[1][16:48, 16:48]).all()
