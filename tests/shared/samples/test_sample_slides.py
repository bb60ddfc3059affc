"""Sample slides are real files for OpenSlide, and their cells are where the file says."""

import csv
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from shared.samples.sample_slides import write_slide, write_tiles
from shared.samples.specimen import POSITIVE, Specimen, section


@pytest.fixture(scope="module")
def specimen() -> Specimen:
    return section(7, 300.0, 260.0)


def test_openslide_reads_size_resolution_and_colours(specimen, tmp_path):
    write_slide(tmp_path / "a.tif", specimen, 0.25)
    slide = openslide.OpenSlide(tmp_path / "a.tif")
    assert slide.dimensions == (1200, 1040)
    assert slide.level_count == 3
    assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25, rel=1e-4)
    pixels = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"), float)
    # JPEG with halved chroma: small errors, no shift of any channel, or red and blue would be swapped.
    assert np.abs(pixels - specimen.render(0.25)).mean() < 4
    assert np.abs((pixels - specimen.render(0.25)).mean(axis=(0, 1))).max() < 1


def test_aperio_flavour(specimen, tmp_path):
    write_slide(tmp_path / "a.svs", specimen, 0.263, aperio=True)
    slide = openslide.OpenSlide(tmp_path / "a.svs")
    assert slide.properties["openslide.vendor"] == "aperio"
    assert float(slide.properties["openslide.mpp-x"]) == 0.263
    pixels = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"), float)
    assert np.abs(pixels - specimen.render(0.263)).mean() < 4


@pytest.mark.parametrize("aperio", [False, True])
def test_resolution_can_be_left_out(specimen, tmp_path, aperio):
    write_slide(tmp_path / "a.tif", specimen, 0.5, aperio=aperio, resolution=False)
    properties = openslide.OpenSlide(tmp_path / "a.tif").properties
    assert "openslide.mpp-x" not in properties
    assert "openslide.objective-power" not in properties
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        assert "XResolution" not in tiff.pages[0].tags


def test_levels_show_the_same_tissue(specimen, tmp_path):
    write_slide(tmp_path / "a.tif", specimen, 0.25)
    slide = openslide.OpenSlide(tmp_path / "a.tif")
    fine = slide.read_region((0, 0), 0, slide.dimensions).convert("RGB").reduce(4)
    coarse = slide.read_region((0, 0), 1, slide.level_dimensions[1]).convert("RGB")
    assert fine.size == coarse.size
    assert np.abs(np.asarray(fine, float) - np.asarray(coarse, float)).mean() < 4


def test_the_same_tissue_at_two_resolutions(specimen):
    fine = Image.fromarray(specimen.render(0.25)).reduce(2)
    coarse = specimen.render(0.5)
    assert np.abs(np.asarray(fine, float) - coarse).mean() < 4
    np.testing.assert_allclose(specimen.cells(0.25)[0] * 0.25, specimen.cells(0.5)[0] * 0.5)


def test_cells_are_dark_and_positive_ones_brown(specimen):
    mpp = 0.25
    density = -np.log10((specimen.render(mpp).astype(float) + 1) / 256)
    points_N2, classes_N = specimen.cells(mpp)
    columns, rows = points_N2.astype(int).T
    at_cells = density[rows, columns]
    assert (at_cells.sum(axis=1) > np.median(density.sum(axis=2))).mean() > 0.97
    brown = at_cells[:, 2] > at_cells[:, 0]
    assert (brown == (classes_N == POSITIVE)).mean() > 0.95


def test_nuclei_measure_six_to_ten_um_and_touch_at_most(specimen):
    diameters = 2 * np.sqrt(specimen.nuclei.semi_axes.prod(axis=1))
    assert diameters.min() >= 6
    assert diameters.max() <= 10
    points = specimen.nuclei.centres
    distances = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1)) + 1e9 * np.eye(len(points))
    assert distances.min() >= 5
    assert (distances.min(axis=1) < 7.5).mean() > 0.1  # clumps


def test_seed_decides_everything():
    def picture(seed: int) -> bytes:
        return section(seed, 100.0, 100.0).render(0.5).tobytes()

    assert picture(3) == picture(3)
    assert picture(3) != picture(4)


@pytest.mark.parametrize("shape", ["blob", "biopsy"])
def test_shapes_leave_glass(shape):
    specimen = section(1, 800.0, 800.0, shape=shape)
    assert 0.2 < (specimen.tissue.values > 0.5).mean() < 0.8
    points_N2, _ = specimen.cells(1.0)
    assert (specimen.tissue.at(points_N2) > 0.5).all()


def test_tiles_follow_the_contract(tmp_path):
    write_tiles(tmp_path, tiles=(5, 2, 3), seed=2, tiles_per_slide=2)
    dataset = json.loads((tmp_path / "dataset.json").read_text())
    assert dataset["format"] == "points"
    assert dataset["mpp"] == 0.5
    assert dataset["origin"] == "corner"
    assert dataset["classes"] == [{"name": "negative", "value": 1}, {"name": "positive", "value": 2}]
    images = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/images/*.png"))
    assert {split: len(paths) for split, paths in dataset["splits"].items()} == {"train": 5, "val": 2, "test": 3}
    assert all(path.startswith(f"{split}/") for split, paths in dataset["splits"].items() for path in paths)
    assert sorted(dataset["slides"]) == images
    splits_of: dict[str, set[str]] = {}
    for image, key in dataset["slides"].items():
        splits_of.setdefault(key, set()).add(image.split("/")[0])
    assert all(len(splits) == 1 for splits in splits_of.values())
    for image in images:
        assert Image.open(tmp_path / image).size == (256, 256)
        with Path(tmp_path / image.replace("images", "points")).with_suffix(".csv").open() as file:
            rows = list(csv.DictReader(file))
        assert 15 <= len(rows) <= 60
        assert {row["class"] for row in rows} <= {"1", "2"}
        assert all(0 <= float(row[axis]) < 256 for row in rows for axis in "xy")


def test_command_writes_the_same_sample_every_time(command, tmp_path):
    def sample(name: str) -> dict[str, str]:
        done = command("shared.samples.sample_slides", name, "--side", 1024, "--tiles", 1, 1, 1)
        assert done.returncode == 0, done.stderr
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        return {str(p.relative_to(tmp_path / name)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    first = sample("one")
    assert first == sample("two")
    assert "slides/Ki-67/sample-b.svs" in first
    assert "slides_cells/PD-L1/sample-c.csv" in first
    assert "tiles/dataset.json" in first


@pytest.mark.parametrize("words", ["--side 0", "--seed -1", "--tiles -1"])
def test_impossible_numbers_are_one_sentence(command, tmp_path, words):
    done = command(
        "shared.samples.sample_slides", "out", *words.split(), *(["1", "1"] if "tiles" in words else [])
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {words} is out of range; give a number from ")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_torch_is_not_imported():
    code = "import sys, shared.samples.sample_slides; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("side", [64, 512])
def test_tiles_that_would_never_hold_so_many_cells_are_refused(side, tmp_path):
    with pytest.raises(ValueError, match="is not from 48 to 150 um wide"):
        write_tiles(tmp_path, side=side)
