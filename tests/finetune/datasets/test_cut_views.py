"""Wider views cut from slides whose pixels tell where they lie."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from finetune.datasets import DataOptions, load_data
from tests.conftest import Command
from tests.finetune.datasets.layouts.test_ocelot import write_patch

SIDE = 2048


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides without a resolution; red is x / 8, green is y / 8."""
    folder = tmp_path_factory.mktemp("slides") / "project"
    folder.mkdir()
    y, x = np.mgrid[:SIDE, :SIDE]
    pixels = np.stack([x // 8, y // 8, np.full_like(x, 100)], -1).astype(np.uint8)
    for name in ("TCGA-A.0123-abc.tif", "TCGA-B.tif"):
        tifffile.imwrite(folder / name, pixels, tile=(256, 256), photometric="rgb")
    return folder.parent


@pytest.fixture
def ocelot(tmp_path: Path) -> Path:
    write_patch(tmp_path, "train", "001", "5,5,1\n", "TCGA-A", x_start=700, y_start=500, x_end=1488, y_end=1288)
    write_patch(tmp_path, "val", "002", "5,5,2\n", "TCGA-B.tif", x_start=0, y_start=1200, x_end=788, y_end=1988)
    return tmp_path


def change_resolution(folder: Path, mpp: float) -> None:
    path = folder / "metadata.json"
    content = json.loads(path.read_text())
    content["sample_pairs"]["001"]["mpp_x"] = mpp
    path.write_text(json.dumps(content))


def check_view(path: Path, centre: tuple[float, float], factor: int) -> None:
    view = np.asarray(Image.open(path), float)
    assert view.shape == (1024, 1024, 3)
    places = (np.arange(1024) + 0.5 - 512) * factor * 788 / 1024
    y, x = np.meshgrid(centre[1] + places, centre[0] + places, indexing="ij")
    reach = 3 * factor  # of the filter
    inside = (np.minimum(x, y) > reach) & (np.maximum(x, y) < SIDE - reach)
    outside = (np.minimum(x, y) < -reach) | (np.maximum(x, y) > SIDE + reach)
    expected = np.stack([x / 8 - 0.5, y / 8 - 0.5], -1)  # the mean of what is rounded down
    assert inside.any()
    assert np.abs(view[..., :2] - expected)[inside].max() < 1.1
    assert np.abs((view[..., :2] - expected)[inside].mean()) < 0.02  # an eighth of a px
    assert (view[outside] == 255).all()


def test_views_lie_around_the_middle_of_their_patches(command: Command, ocelot: Path, slides: Path) -> None:
    done = command("finetune.datasets", "cut-views", ocelot, "--slides", slides, "--views", 4)
    assert done.returncode == 0, done.stderr
    assert "train with --views 4" in done.stdout
    for factor in (2, 4, 8):
        check_view(ocelot / f"images/train/cell/001.fov{factor}.png", (1094, 894), factor)
        check_view(ocelot / f"images/val/cell/002.fov{factor}.png", (394, 1594), factor)
    done = command("finetune.datasets", "summary", ocelot)
    assert "train/val: 1/1 images" in done.stdout, done.stderr


def test_one_missing_slide_does_not_stop_the_rest(command: Command, ocelot: Path, slides: Path) -> None:
    write_patch(ocelot, "train", "003", "", "TCGA-C")
    done = command("finetune.datasets", "cut-views", ocelot, "--slides", slides)
    assert done.returncode == 3
    assert "has no slide TCGA-C; download it from TCGA" in done.stderr
    first = ocelot / "images/train/cell/001.fov2.png"
    written = first.stat().st_mtime_ns
    write_patch(ocelot, "train", "003", "", "TCGA-A")
    assert command("finetune.datasets", "cut-views", ocelot, "--slides", slides).returncode == 0
    assert first.stat().st_mtime_ns == written
    assert (ocelot / "images/train/cell/003.fov2.png").exists()


def test_views_that_are_there_are_left_alone(command: Command, ocelot: Path, slides: Path) -> None:
    own = [ocelot / "images/train/cell/001.fov2.jpg", ocelot / "images/val/cell/002.fov2.PNG"]
    for path in own:
        Image.new("RGB", (1024, 1024), "blue").save(path)
    kept = [path.read_bytes() for path in own]
    assert command("finetune.datasets", "cut-views", ocelot, "--slides", slides, "--views", 3).returncode == 0
    assert [path.read_bytes() for path in own] == kept
    assert {path.name for path in ocelot.rglob("*.fov*")} == {
        "001.fov2.jpg",
        "001.fov4.png",
        "002.fov2.PNG",
        "002.fov4.png",
    }
    for split in ("train", "val"):
        assert len(load_data(DataOptions(data=ocelot)).splits[split][0].wider) == 2


def test_a_slide_that_the_patch_does_not_fit_into(command: Command, ocelot: Path, slides: Path) -> None:
    """A reduced copy of the slide, or another one, would give views of other places without a word."""
    write_patch(ocelot, "train", "001", "", "TCGA-A", x_start=1500, y_start=0, x_end=2288, y_end=788)
    done = command("finetune.datasets", "cut-views", ocelot, "--slides", slides)
    assert done.returncode == 3
    assert re.search(r"TCGA-A\S+ has 2048x2048 px, but \S+001\.jpg was cut up to \(2288, 788\)", done.stderr)
    assert [path.name for path in ocelot.rglob("*.fov*")] == ["002.fov2.png"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda folder: (folder / "metadata.json").unlink(), "there is no .*metadata.json"),
        (lambda folder: write_patch(folder, "val", "004", x_end=0), "the patch ends at"),
        (lambda folder: write_patch(folder, "val", "004", x_end=None), "sample '004'"),
        (lambda folder: write_patch(folder, "val", "004", x_end=math.inf), "the patch ends at .inf"),
        (lambda folder: change_resolution(folder, 0), "sample '001': mpp_x 0 is no resolution"),
        (lambda folder: change_resolution(folder, math.nan), "sample '001': mpp_x nan is no resolution"),
        (lambda folder: (folder / "annotations").rename(folder / "notes"), "is not OCELOT"),
    ],
)
def test_wrong_input_ends_in_one_sentence(
    command: Command, ocelot: Path, slides: Path, change, sentence: str
) -> None:
    change(ocelot)
    done = command("finetune.datasets", "cut-views", ocelot, "--slides", slides)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert re.search(sentence, done.stderr)
