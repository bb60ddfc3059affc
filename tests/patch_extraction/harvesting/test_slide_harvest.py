"""One slide -> one tar: which patches, what their files say, and slides that fail."""

import dataclasses
import errno
import io
import itertools
import json
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter, label

from patch_extraction.config import HarvestConfig
from patch_extraction.counters.base import HaematoxylinCounter, OneByOne
from patch_extraction.harvesting.slide_harvest import harvest_slide
from patch_extraction.harvesting.slide_list import find_entries
from patch_extraction.harvesting.slide_plan import SlidePlan
from patch_extraction.slide_store.file_names import tar_path
from patch_extraction.slide_store.slide_record import FAILED, HARVESTED, NO_PATCH, Record
from patch_extraction.slide_store.slide_tar import SlideTar
from shared.errors import UserError
from shared.samples.pyramidal_tiff import write_pyramid
from shared.samples.sample_slides import jpeg_level, write_slide
from shared.samples.specimen import Specimen, section
from shared.wsi.slide import Slide, SlideError

COUNTER = HaematoxylinCounter()


def harvest(wsi_dir: Path, out: Path, name: str, **settings: object) -> Record:
    config = HarvestConfig(wsi_dir=wsi_dir, out=out, **settings)
    source = next(source for source in find_entries(config, COUNTER) if source.name == name)
    return harvest_slide(source, config, COUNTER)


def patches(out: Path, record: Record) -> dict[tuple[int, int], tuple[Image.Image, dict]]:
    """Pictures and what is said of them, by corner."""
    found = {}
    with tarfile.open(tar_path(out, record.slide_id)) as tar:
        for name in tar.getnames()[0::2]:
            image = Image.open(io.BytesIO(tar.extractfile(name).read()))
            fields = json.loads(tar.extractfile(name.replace(".jpg", ".json")).read())
            assert name == f"{record.slide_id}_{fields['x']}_{fields['y']}.jpg"
            found[fields["x"], fields["y"]] = image, fields
    return found


def test_patches_and_their_fields(wsi_dir, tmp_path):
    record = harvest(wsi_dir, tmp_path, "Ki-67/S.1 ü.a.svs")
    found = patches(tmp_path, record)
    assert record.status == HARVESTED
    assert record.kept == len(found) >= 8
    assert (record.candidates, record.unreadable) == (16, 0)
    assert record.tissue_mm2 == pytest.approx(0.512**2, rel=0.03)
    for image, fields in found.values():
        assert image.size == (512, 512)
        cells = fields.pop("cells")
        assert cells >= 30
        assert cells == pytest.approx(len(COUNTER.find(np.asarray(image), 0.25)), rel=0.1)  # JPEG shifts a few
        points_N2 = np.array(fields.pop("points"))
        assert points_N2.shape == (cells, 2) and points_N2.min() >= 0 and points_N2.max() <= 512
        assert fields.pop("focus") >= 0.16 and fields.pop("tissue") > 0.9
        assert fields.pop("x") % 512 == fields.pop("y") % 512 == 0
        assert fields == {
            "slide": "Ki-67/S.1 ü.a.svs",
            "biomarker": "Ki-67",
            "columns": {},
            "width": 512,
            "height": 512,
            "mpp": 0.25,
            "slide_mpp": 0.25,
            "mpp_source": "openslide.mpp-x",
            "level": 0,
            "factor": 1.0,
        }
    assert (tmp_path / "thumbnails" / f"{record.slide_id}.jpg").is_file()


def test_every_place_with_enough_cells_is_kept_and_no_other(wsi_dir, specimens, tmp_path):
    """Against the cells that are known to be there; the counter may err by a quarter."""
    record = harvest(wsi_dir, tmp_path, "Ki-67/S.1 ü.a.svs", min_cells=45)
    kept = patches(tmp_path, record)
    points_N2, _ = specimens[0].cells(0.25)
    for x in range(0, 2048, 512):
        for y in range(0, 2048, 512):
            true = ((points_N2 >= (x, y)) & (points_N2 < (x + 512, y + 512))).all(axis=1).sum()
            if true >= 45 * 1.25:
                assert (x, y) in kept
            if true < 45 * 0.75:
                assert (x, y) not in kept


def test_the_same_tissue_at_two_resolutions_gives_the_same_patches(wsi_dir, specimens, tmp_path):
    """`plain.tif` (0.25 um/px) and the PD-L1 slide (0.32) show one specimen; so must their patches."""
    fine = harvest(wsi_dir, tmp_path, "plain.tif", min_cells=0, min_focus=0)
    coarse = harvest(wsi_dir, tmp_path, "PD-L1/S.1 ü.a.svs", min_cells=0, min_focus=0, allow_upsampling=True)
    first, second = patches(tmp_path, fine), patches(tmp_path, coarse)
    assert len(first) == len(second) == 16
    for (x, y), (image, fields) in second.items():
        assert (fields["width"], fields["mpp"], fields["factor"]) == (400, 0.25, 0.78125)
        twin, other = first[x * 512 // 400, y * 512 // 400]
        pixels, twins = np.asarray(image, float), np.asarray(twin, float)
        shifted = np.abs(pixels[:, 4:] - twins[:, :-4]).mean()
        assert np.abs(pixels - twins).mean() < min(6, 0.7 * shifted)
        assert fields["cells"] == pytest.approx(other["cells"], rel=0.25)


def nuclei_um(image: Image.Image, mpp: float) -> np.ndarray:
    """Diameters in um of the dark, compact spots of a picture, found without the counter."""
    light = gaussian_filter(np.asarray(image.convert("L"), float), 0.6 / mpp)
    labels, _ = label(light < np.percentile(light, 50) - 45)
    area_um2 = np.bincount(labels.ravel())[1:] * mpp**2
    return 2 * np.sqrt(area_um2[(area_um2 > 12) & (area_um2 < 120)] / np.pi)


def test_cells_are_as_large_in_um_whatever_the_slide_was_stored_at(wsi_dir, specimens, tmp_path):
    """0.25 and 0.32 um/px, both read at 0.4: what the JSON says of the px must make the cells equally large."""
    settings = {"patch_mpp": 0.4, "patch_size": 320, "min_cells": 0, "min_focus": 0}
    diameters, factors = [], []
    for name in ("plain.tif", "PD-L1/S.1 ü.a.svs"):
        found = patches(tmp_path, harvest(wsi_dir, tmp_path, name, **settings))
        assert len(found) == 16
        assert {image.size for image, _ in found.values()} == {(320, 320)}
        factors += {fields["factor"] for _, fields in found.values()}
        diameters.append(np.concatenate([nuclei_um(image, fields["mpp"]) for image, fields in found.values()]))
    assert factors == [1.6, 1.25]
    assert min(map(len, diameters)) > 150
    medians = [np.median(some) for some in diameters]
    assert medians[0] == pytest.approx(medians[1], rel=0.04)
    nuclei = specimens[1].nuclei
    assert medians[0] == pytest.approx(np.median(2 * np.sqrt(nuclei.semi_axes.prod(axis=1))), rel=0.15)


class Mosaic:
    """A specimen laid side by side `times` x `times`; a large slide that is quickly drawn."""

    def __init__(self, specimen: Specimen, times: int) -> None:
        self._specimen, self._times = specimen, times

    def render(self, mpp: float) -> np.ndarray:
        return np.tile(self._specimen.render(mpp), (self._times, self._times, 1))


def test_500_of_more_than_a_thousand(tmp_path):
    """36 x 36 places with cells; 500 are spread over all of the slide, and the cap ends the counting."""
    (tmp_path / "wsi").mkdir()
    write_slide(tmp_path / "wsi" / "a.tif", Mosaic(section(4, 192.0, 192.0), 12), 1.0)
    settings = {"patch_mpp": 1.0, "patch_size": 64, "min_cells": 5}
    every = harvest(tmp_path / "wsi", tmp_path / "all", "a.tif", max_patches=5000, **settings)
    assert every.kept > 1000
    record = harvest(tmp_path / "wsi", tmp_path / "some", "a.tif", **settings)
    assert record.kept == 500
    assert record.counted < 500 * 1.3
    found = patches(tmp_path / "some", record)
    assert set(found) <= set(patches(tmp_path / "all", every))
    blocks = np.bincount([x // 384 + 6 * (y // 384) for x, y in found], minlength=36)  # 36 places each
    assert blocks.min() >= 7
    assert blocks.max() <= 21


def test_the_screen_loses_no_patch_of_pale_he(real_data, tmp_path):
    """Half of chroma at 1 um/px blurs a nucleus's colour: what tells ink from nuclei there would refuse many."""
    (tmp_path / "wsi").mkdir()
    with Slide(real_data / "slides/pancreas_he_20x_region.svs") as slide:
        fine, mpp = slide.read(0, 0, 4096, 4096, slide.mpp), slide.mpp
    coarse = fine.resize((2048, 2048), Image.Resampling.BOX)
    levels = [jpeg_level(image, quality=75) for image in (fine, coarse)]
    write_pyramid(tmp_path / "wsi" / "a.tif", levels, pixels_per_centimetre=1e4 / mpp)
    settings = {"patch_mpp": 0.53, "patch_size": 240}
    with_it, without = (
        harvest(tmp_path / "wsi", tmp_path / str(screen), "a.tif", screen=screen, **settings)
        for screen in (True, False)
    )
    assert with_it.screened < with_it.candidates
    assert with_it.kept == without.kept > 100


class Everywhere(OneByOne):
    """Sees a hundred cells in whatever it is shown."""

    name = "everywhere"

    def find(self, image_HW3: np.ndarray, mpp: float) -> np.ndarray:
        return np.zeros((100, 2))


@pytest.fixture(scope="module")
def mosaic_dir(tmp_path_factory) -> Path:
    """Return a slide of 16 x 16 places of 64 um with 3 to 20 cells; its one level serves for screening."""
    folder = tmp_path_factory.mktemp("mosaic")
    write_slide(folder / "a.tif", Mosaic(section(4, 256.0, 256.0), 4), 1.0)
    return folder


def test_where_next_to_all_places_hold_enough_none_is_screened(mosaic_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("patch_extraction.harvesting.slide_plan.screen", lambda *_: pytest.fail("it was screened"))
    settings = {"patch_mpp": 1.0, "patch_size": 64, "min_cells": 3}
    found = []
    for screen in (True, False):
        record = harvest(mosaic_dir, tmp_path / str(screen), "a.tif", screen=screen, **settings)
        found.append(tar_path(tmp_path / str(screen), record.slide_id).read_bytes())
        assert record.screened == record.candidates == record.counted == 256
    assert found[0] == found[1]


def test_where_few_places_hold_enough_the_others_are_not_counted(mosaic_dir, tmp_path):
    settings = {"patch_mpp": 1.0, "patch_size": 64, "min_cells": 15}
    record = harvest(mosaic_dir, tmp_path / "a", "a.tif", **settings)
    every = harvest(mosaic_dir, tmp_path / "b", "a.tif", screen=False, **settings)
    assert record.kept == every.kept > 0
    assert record.kept <= record.counted == record.screened < 0.8 * record.candidates
    assert every.counted == every.candidates == record.candidates


def test_a_dear_counter_is_spared_what_the_screen_refuses(mosaic_dir, tmp_path):
    """It would accept all places; the classical counter, which screens them, does not."""
    config = HarvestConfig(wsi_dir=mosaic_dir, out=tmp_path, patch_mpp=1.0, patch_size=64, min_cells=25)
    record = harvest_slide(find_entries(config, COUNTER)[0], config, Everywhere())
    assert record.kept == record.counted < 0.8 * record.candidates


@pytest.mark.parametrize(("lost", "status"), [(16, NO_PATCH), (256, FAILED)])
def test_a_slide_fails_if_no_place_can_be_read(mosaic_dir, tmp_path, monkeypatch, lost, status):
    """But not if only those are lost that are read before the screen refuses all others."""
    read, calls = SlidePlan.read, itertools.count()

    def damaged(plan: SlidePlan, x: int, y: int) -> np.ndarray:
        if next(calls) < lost:
            raise SlideError("the slide has unreadable parts; copy it again")
        return read(plan, x, y)

    monkeypatch.setattr(SlidePlan, "read", damaged)
    settings = {"patch_mpp": 1.0, "patch_size": 64, "min_cells": 300, "screen": lost == 16}
    record = harvest(mosaic_dir, tmp_path, "a.tif", **settings)
    assert record.status == status
    assert (record.candidates, record.kept) == (256, 0)
    assert record.screened == record.counted == record.unreadable == lost


def test_places_near_the_threshold_are_kept_aside(wsi_dir, tmp_path):
    record = harvest(wsi_dir, tmp_path, "plain.tif", min_cells=60, min_focus=0, screen=False)
    with tarfile.open(tmp_path / "rejected" / f"{record.slide_id}.tar") as tar:
        texts = [json.loads(tar.extractfile(name).read()) for name in tar.getnames() if name.endswith(".json")]
    cells = [fields["cells"] for fields in texts]
    every = patches(tmp_path / "all", harvest(wsi_dir, tmp_path / "all", "plain.tif", min_cells=0, min_focus=0))
    below = sorted((fields["cells"] for _, fields in every.values() if fields["cells"] < 60), reverse=True)
    assert cells == [count for count in below if count >= 30][:4]
    assert cells
    harvest(wsi_dir, tmp_path, "plain.tif", min_cells=1, min_focus=0)
    assert not (tmp_path / "rejected" / f"{record.slide_id}.tar").exists()


def test_places_out_of_focus_are_left_out_and_kept_aside(tmp_path):
    """The left half of the slide is blurred."""
    (tmp_path / "wsi").mkdir()
    tissue = Image.fromarray(section(21, 512.0, 256.0).render(0.25))
    tissue.paste(tissue.crop((0, 0, 1024, 1024)).filter(ImageFilter.GaussianBlur(5)), (0, 0))
    write_pyramid(tmp_path / "wsi" / "a.tif", [jpeg_level(tissue, 90)], "", 40_000)
    record = harvest(tmp_path / "wsi", tmp_path, "a.tif", min_cells=10, screen=False)
    found = patches(tmp_path, record)
    assert found and all(x >= 1024 and fields["focus"] >= 0.16 for (x, _), (_, fields) in found.items())
    assert record.blurred > 0.2 and record.focus is not None
    with tarfile.open(tmp_path / "rejected" / f"{record.slide_id}.tar") as tar:
        texts = [json.loads(tar.extractfile(name).read()) for name in tar.getnames() if name.endswith(".json")]
    assert any(fields["cells"] >= 10 and 0.08 <= fields["focus"] < 0.16 for fields in texts)
    every = harvest(tmp_path / "wsi", tmp_path / "all", "a.tif", min_cells=10, screen=False, min_focus=0.0)
    assert every.kept == record.kept + round(record.blurred * every.kept)
    none = harvest(tmp_path / "wsi", tmp_path / "none", "a.tif", min_cells=10, min_focus=9.0)
    assert none.status == NO_PATCH and "--min-focus" in none.reason


def test_the_histogram_tells_what_was_counted(wsi_dir, tmp_path):
    record = harvest(wsi_dir, tmp_path, "plain.tif", min_cells=0, min_focus=0)
    cells = [fields["cells"] for _, fields in patches(tmp_path, record).values()]
    assert list(record.histogram) == np.bincount(np.array(cells) // 10).tolist()
    strict = harvest(wsi_dir, tmp_path / "b", "plain.tif", min_cells=60, min_focus=0, screen=False)
    assert list(strict.histogram) == list(record.histogram)
    assert strict.kept < record.kept


def test_at_most_so_many_chosen_by_the_seed(wsi_dir, tmp_path):
    every = patches(tmp_path / "a", harvest(wsi_dir, tmp_path / "a", "plain.tif"))
    chosen = []
    for index, seed in enumerate((0, 0, 1, 2)):
        out = tmp_path / str(index)
        record = harvest(wsi_dir, out, "plain.tif", max_patches=4, seed=seed)
        assert record.kept == 4
        assert record.counted < 16
        chosen.append(set(patches(out, record)))
        assert chosen[-1] <= set(every)
    assert chosen[0] == chosen[1]
    assert len({frozenset(corners) for corners in chosen}) > 1


class ByFive(HaematoxylinCounter):
    """Wants five patches at once, and gets no more."""

    batch = 5

    def find_each(self, images, mpp):
        assert len(images) <= self.batch
        return super().find_each(images, mpp)


@pytest.mark.parametrize("most", [4, 500])
def test_counting_in_batches_changes_nothing(wsi_dir, tmp_path, most):
    source_of = {"wsi_dir": wsi_dir, "max_patches": most}
    found = []
    for counter in (COUNTER, ByFive()):
        config = HarvestConfig(out=tmp_path / type(counter).__name__, **source_of)
        source = next(source for source in find_entries(config, COUNTER) if source.name == "plain.tif")
        record = harvest_slide(source, config, counter)
        found.append((dataclasses.replace(record, seconds=0), tar_path(config.out, record.slide_id).read_bytes()))
    assert found[0] == found[1]
    assert found[0][0].kept > 3


def test_fewer_patches_are_the_beginning_of_more(wsi_dir, tmp_path):
    """As if place after place had been looked at, though neighbours are read together."""
    chosen = []
    for most in (1, 3, 6, 100):
        record = harvest(wsi_dir, tmp_path / str(most), "plain.tif", max_patches=most, min_cells=45)
        chosen.append(set(patches(tmp_path / str(most), record)))
        assert record.kept == len(chosen[-1])
    assert [len(corners) for corners in chosen[:3]] == [1, 3, 6]
    assert record.counted > record.kept > 6  # some places hold too few
    for fewer, more in itertools.pairwise(chosen):
        assert fewer < more


@pytest.mark.parametrize(("min_cells", "keeps"), [(45, True), (500, False)])
def test_no_patch_yet_is_not_news(wsi_dir, tmp_path, min_cells, keeps):
    """Word of 0 patches means that the slide's time begins; it must not begin again and again."""
    config = HarvestConfig(wsi_dir=wsi_dir, out=tmp_path, min_cells=min_cells, screen=False)
    source = next(source for source in find_entries(config, COUNTER) if source.name == "plain.tif")
    told: list[int] = []
    record = harvest_slide(source, config, COUNTER, told.append)
    assert 0 not in told
    assert told[-1:] == [record.kept] * keeps


def test_a_slide_without_enough_cells_says_so(wsi_dir, tmp_path):
    record = harvest(wsi_dir, tmp_path, "plain.tif", min_cells=500)
    assert (record.status, record.kept) == (NO_PATCH, 0)
    assert record.reason == "no place holds 500 cells (--min-cells)"


def test_glass_without_tissue_fails_but_has_a_picture(tmp_path):
    (tmp_path / "wsi").mkdir()
    blank = section(1, 300.0, 300.0, shape="blob")
    blank.tissue.values[:] = 0
    write_slide(tmp_path / "wsi" / "blank.tif", blank, 0.25)
    record = harvest(tmp_path / "wsi", tmp_path, "blank.tif")
    assert record.status == FAILED
    assert "shows no tissue" in record.reason
    assert (tmp_path / "thumbnails" / f"{record.slide_id}.jpg").is_file()
    assert not list((tmp_path / "slides").glob("*.tar"))


@pytest.mark.parametrize(
    ("mpp", "words"),
    [
        ("0.5", r"coarser than --patch-mpp 0\.25; harvest it with --patch-mpp 0\.5 .*--allow-upsampling"),
        ("3", "too coarse to count cells"),
        ("20", "too coarse to count cells"),  # a patch is smaller than a pixel
    ],
)
def test_too_coarse(wsi_dir, tmp_path, mpp, words):
    size = 32 if mpp == "20" else 512
    record = harvest(wsi_dir, tmp_path, "plain.tif", slide_mpp=(mpp,), patch_size=size)
    assert record.status == FAILED
    assert re.search(words, record.reason)
    assert (tmp_path / "thumbnails" / f"{record.slide_id}.jpg").is_file()  # with its tissue outlined, if any


def test_corrupt_tile_costs_its_patches_only(real_data, tmp_path):
    results = [
        harvest(real_data / "slides", tmp_path, name, slide_mpp=("*ts1.svs=0.25", "corrupt*=0.25"))
        for name in ("tcga-cr-7395-01a-01-ts1.svs", "corrupt_tile.svs")
    ]
    assert [result.status for result in results] == [HARVESTED, HARVESTED]
    assert results[0].unreadable == 0
    assert 1 <= results[1].unreadable <= 4  # a tile may lie in four patches
    whole, damaged = (patches(tmp_path, result) for result in results)
    assert set(damaged) <= set(whole)
    assert len(whole) - len(damaged) <= results[1].unreadable


@pytest.mark.parametrize("reader", ["auto", "openslide"])
def test_a_destroyed_jpeg_tile_costs_its_patch_only(wsi_dir, tmp_path, reader):
    """Every patch is made of four tiles; the places before and after the destroyed one stay as they were."""
    (tmp_path / "wsi").mkdir()
    whole = shutil.copy(wsi_dir / "plain.tif", tmp_path / "wsi" / "whole.tif")
    content = bytearray(whole.read_bytes())
    with tifffile.TiffFile(whole) as file:
        page = file.pages[0]
        tile = 2 * (page.imagewidth // page.tilewidth) + 4  # of the patch at (1024, 512)
        start = page.dataoffsets[tile]
        content[start : start + page.databytecounts[tile]] = bytes(page.databytecounts[tile])
    (tmp_path / "wsi" / "damaged.tif").write_bytes(content)
    records = [
        harvest(tmp_path / "wsi", tmp_path, f"{name}.tif", min_cells=0, screen=False, reader=reader)
        for name in ("whole", "damaged")
    ]
    assert [record.unreadable for record in records] == [0, 1]
    sound, damaged = (patches(tmp_path, record) for record in records)
    assert set(sound) - set(damaged) == {(1024, 512)}
    for corner, (image, _) in damaged.items():
        assert np.array_equal(np.asarray(image), np.asarray(sound[corner][0]))


def test_a_full_disk_stops_the_harvest(wsi_dir, tmp_path, monkeypatch):
    def add(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SlideTar, "add", add)
    with pytest.raises(UserError, match="No space left on device; make room"):
        harvest(wsi_dir, tmp_path, "plain.tif")
    assert not list((tmp_path / "slides").glob("*"))


def test_an_unforeseen_error_costs_its_slide_and_is_kept(wsi_dir, tmp_path, monkeypatch):
    def find(*_: object) -> None:
        raise ZeroDivisionError("odd slide")

    with monkeypatch.context() as broken:
        broken.setattr(HaematoxylinCounter, "find", find)
        record = harvest(wsi_dir, tmp_path, "plain.tif")
    assert record.status == FAILED
    assert "unexpected ZeroDivisionError" in record.reason
    assert "odd slide" in next(tmp_path.glob("failure-*.log")).read_text()
    assert harvest(wsi_dir, tmp_path, "plain.tif", max_patches=1).status == HARVESTED
    assert not list(tmp_path.glob("failure-*.log"))  # what is mended is not named any more


def test_what_a_counter_says_is_the_reason(wsi_dir, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise UserError("count.py:f returned 5 x 3 instead of N x 2")

    config = HarvestConfig(wsi_dir=wsi_dir, out=tmp_path, screen=False)
    source = next(source for source in find_entries(config, COUNTER) if source.name == "plain.tif")
    monkeypatch.setattr(COUNTER, "find", refuse)
    record = harvest_slide(source, config, COUNTER)
    assert (record.status, record.reason) == (FAILED, "count.py:f returned 5 x 3 instead of N x 2")
    assert not list(tmp_path.glob("failure-*"))
