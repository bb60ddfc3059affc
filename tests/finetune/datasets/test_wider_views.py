"""Wider views beside the images of the plain layout: what is found, read, trained with and refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.datasets import DataOptions, load_data
from finetune.datasets.dataset import Tile
from finetune.datasets.wider_views import require_views
from shared.errors import UserError
from shared.samples.sample_slides import write_tiles
from tests.conftest import Command
from tests.finetune.test_train import TINY


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """Four tiles, each with two wider views of one grey."""
    folder = tmp_path / "tiles"
    write_tiles(folder, tiles=(2, 1, 1), side=96)
    for image in folder.rglob("images/*.png"):
        for factor in (2, 4):
            Image.new("RGB", (96, 96), (factor, factor, factor)).save(image.with_suffix(f".fov{factor}.png"))
    return folder


def all_tiles(folder: Path) -> list[Tile]:
    return [tile for each in load_data(DataOptions(data=folder)).splits.values() for tile in each]


def test_views_are_read_widest_first(tiles: Path) -> None:
    tile = load_data(DataOptions(data=tiles)).splits["train"][0]
    assert tile.read_views(1).shape == (1, 96, 96, 3)
    np.testing.assert_array_equal(tile.read_views(1)[0], tile.read())
    views = tile.read_views(3)
    assert [view.mean() for view in views[:2]] == [4, 2]
    np.testing.assert_array_equal(views[2], tile.read())
    np.testing.assert_array_equal(tile.read_views(2), views[1:])


def test_training_and_scoring_with_views(command: Command, tiles: Path, tmp_path: Path) -> None:
    words = ("--workers", 0, "--views", 3, "--upsampling", "bilinear", "--max-steps", 1)
    done = command("finetune", *TINY, "--data", tiles, *words)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "runs/finetune/pictures/augmented.png").width == 3 * (448 + 4)
    done = command("finetune.evaluate", "detector.pth", "--data", tiles)
    assert "macro mean" in done.stdout, done.stderr
    assert json.loads((tmp_path / "runs/finetune/config.json").read_text())["network"]["views"] == 3
    (tiles / "test/images").rename(tiles / "away")
    (tiles / "test/images").mkdir()
    for image in (tiles / "away").glob("*_[0-9].png"):
        shutil.copy(image, tiles / "test/images")
    done = command("finetune.evaluate", "detector.pth", "--data", tiles)
    assert done.returncode == 2
    assert "lacks its wider view test-slide-00_0.fov2.png, which 3 fields of view need" in done.stderr


def test_views_that_do_not_fit_are_refused(tiles: Path) -> None:
    require_views(all_tiles(tiles), 3)
    with pytest.raises(UserError, match=r"lacks its wider view train-slide-00_0\.fov8\.png, which 4 fields"):
        require_views(all_tiles(tiles), 4)
    view = tiles / "train/images/train-slide-00_0.fov4.png"
    Image.new("RGB", (95, 96)).save(view)
    require_views(all_tiles(tiles), 2)
    with pytest.raises(UserError, match=r"fov4\.png has 95x96 px, but .*_0\.png 96x96; write every view"):
        require_views(all_tiles(tiles), 3)
    view.write_bytes(view.read_bytes()[:60])
    with pytest.raises(UserError, match=r"fov4\.png cannot be opened as an image"):
        require_views(all_tiles(tiles), 3)
    view.unlink()
    with pytest.raises(UserError, match=r"lacks its wider view train-slide-00_0\.fov4\.png, which 3 fields"):
        require_views(all_tiles(tiles), 3)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("other.fov2.png", "is a wider view of no image: other is not beside it"),
        ("train-slide-00_0.fov3.png", "the number after .fov must be 2, 4, 8"),
        ("train-slide-00_0.fov2.jpg", "share one name"),
    ],
)
def test_views_that_belong_to_nothing_are_refused(tiles: Path, name: str, sentence: str) -> None:
    Image.new("RGB", (96, 96)).save(tiles / "train/images" / name)
    with pytest.raises(UserError, match=sentence):
        load_data(DataOptions(data=tiles))
