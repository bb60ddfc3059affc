"""Which slides are done: unchanged ones; and which files are one slide."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile

from patch_extraction.config import HarvestConfig, SlideEntry
from patch_extraction.counters.base import HaematoxylinCounter
from patch_extraction.harvesting.slide_harvest import harvest_slide
from patch_extraction.harvesting.slide_list import find_entries
from patch_extraction.packing.output_folder import kept_slides
from patch_extraction.slide_store import fingerprint
from patch_extraction.slide_store.completed import stored_record
from patch_extraction.slide_store.file_names import tar_path
from patch_extraction.slide_store.slide_record import DUPLICATE, HARVESTED, read_record
from shared.samples.sample_slides import write_slide
from shared.samples.specimen import section

COUNTER = HaematoxylinCounter()


@pytest.fixture(scope="module")
def slide(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "a.svs"
    write_slide(path, section(5, 256.0, 256.0), 0.25, aperio=True)
    return path


@pytest.fixture
def config(slide, tmp_path, monkeypatch) -> HarvestConfig:
    """Return a folder with one slide, of which the fingerprint covers the first and the last bytes only."""
    monkeypatch.setattr(fingerprint, "PIECES", 2)
    monkeypatch.setattr(fingerprint, "PIECE", 1 << 10)
    (tmp_path / "wsi").mkdir()
    shutil.copy(slide, tmp_path / "wsi")
    return HarvestConfig(wsi_dir=tmp_path / "wsi", out=tmp_path / "out", min_cells=5, max_patches=2)


def sources(config: HarvestConfig) -> list[SlideEntry]:
    return find_entries(config, COUNTER)


def replace_bytes(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content and len(old) == len(new)
    path.write_bytes(content.replace(old, new, 1))
    os.utime(path, ns=(1, 1))


def change_a_tile(path: Path, page: int) -> None:
    """Flip bytes in the middle of the file that belong to pixels of a level."""
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[page].dataoffsets[0] + tiff.pages[page].databytecounts[0] // 2
    content = bytearray(path.read_bytes())
    content[offset : offset + 8] = bytes(255 - byte for byte in content[offset : offset + 8])
    path.write_bytes(content)


def test_a_slide_with_another_date_is_done(config):
    assert harvest_slide(sources(config)[0], config, COUNTER).status == HARVESTED
    os.utime(config.wsi_dir / "a.svs", ns=(1, 1))
    assert stored_record(config.out, sources(config)[0]) is not None


def test_a_corrected_resolution_undoes_a_slide(config):
    before = harvest_slide(sources(config)[0], config, COUNTER)
    replace_bytes(config.wsi_dir / "a.svs", b"MPP = 0.2500", b"MPP = 0.2600")
    assert stored_record(config.out, sources(config)[0]) is None
    after = harvest_slide(sources(config)[0], config, COUNTER)
    assert (before.slide_mpp, after.slide_mpp) == (0.25, 0.26)
    assert before.fingerprint == after.fingerprint


def test_a_corrected_tag_undoes_a_slide_although_its_quickhash_stays(config):
    path = config.wsi_dir / "a.svs"
    write_slide(path, section(5, 256.0, 256.0), 0.25)  # states its resolution by TIFF tags
    before = harvest_slide(sources(config)[0], config, COUNTER)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        for name in ("XResolution", "YResolution"):
            tiff.pages[0].tags[name].overwrite((20_000_000, 1000))
    os.utime(path, ns=(1, 1))
    assert stored_record(config.out, sources(config)[0]) is None
    after = harvest_slide(sources(config)[0], config, COUNTER)
    assert (before.slide_mpp, after.slide_mpp) == (0.25, 0.5)
    assert before.quickhash == after.quickhash != ""


def test_an_override_of_the_resolution_stays_valid_when_the_file_is_corrected(config):
    config = dataclasses.replace(config, slide_mpp=("0.25",), overwrite=True)
    harvest_slide(sources(config)[0], config, COUNTER)
    replace_bytes(config.wsi_dir / "a.svs", b"AppMag = 40", b"AppMag = 20")
    assert (
        stored_record(config.out, sources(config)[0]) is None
    )  # the description, and so the quickhash, is another


def test_other_pixels_undo_a_slide(config):
    harvest_slide(sources(config)[0], config, COUNTER)
    change_a_tile(config.wsi_dir / "a.svs", page=-1)
    os.utime(config.wsi_dir / "a.svs", ns=(1, 1))
    assert stored_record(config.out, sources(config)[0]) is None


def test_the_resolution_of_a_mirax_slide_is_stated_beside_it(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a.mrxs").touch()
    (tmp_path / "a" / "Slidedat.ini").touch()
    os.utime(tmp_path / "a.mrxs", ns=(1, 1))
    os.utime(tmp_path / "a" / "Slidedat.ini", ns=(2, 2))
    assert fingerprint.last_change(tmp_path / "a.mrxs") == 2


@pytest.mark.parametrize("equal", [True, False])
def test_copies_are_compared_completely(config, equal):
    shutil.copy(config.wsi_dir / "a.svs", config.wsi_dir / "b.svs")
    if not equal:
        change_a_tile(config.wsi_dir / "b.svs", page=0)
    first, second = sources(config)
    assert second.original == first  # by their samples
    record = harvest_slide(second, config, COUNTER)
    assert record.status == (DUPLICATE if equal else HARVESTED)


@pytest.mark.parametrize("equal", [True, False])
def test_a_slide_in_the_place_of_another_was_not_moved(config, equal, capsys):
    record = harvest_slide(sources(config)[0], config, COUNTER)
    (config.wsi_dir / "a.svs").rename(config.wsi_dir / "b.svs")
    if not equal:
        change_a_tile(config.wsi_dir / "b.svs", page=-1)
    kept = kept_slides(sources(config), config, COUNTER.name)
    assert len(kept) == (0 if equal else 1)
    assert tar_path(config.out, record.slide_id).exists() is not equal


def test_a_record_names_no_file_but_its_own(config, tmp_path):
    """Files are removed by what records say."""
    record = harvest_slide(sources(config)[0], config, COUNTER)
    path = tar_path(config.out, record.slide_id).with_suffix(".json")
    for name in ("victim.tar", "victim.json"):
        (tmp_path / name).touch()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"slide_id": "../../victim"}))
    (config.wsi_dir / "a.svs").rename(config.wsi_dir / "b.svs")
    assert read_record(path) is None
    assert kept_slides(sources(config), config, COUNTER.name) == []
    assert (tmp_path / "victim.tar").exists() and (tmp_path / "victim.json").exists()


class Lit:
    """A section as another microscope shows it."""

    def __init__(self, change) -> None:
        self._specimen, self._change = section(5, 256.0, 256.0), change

    def render(self, mpp: float) -> np.ndarray:
        return np.ascontiguousarray(self._change(self._specimen.render(mpp)))


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("is grey", lambda rgb: np.repeat(rgb.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)),
        ("fluorescence", lambda rgb: (255 - rgb) // np.array([8, 8, 2], np.uint8)),
    ],
)
def test_why_nothing_is_found_on_other_than_stained_slides(tmp_path, words, change):
    (tmp_path / "wsi").mkdir()
    write_slide(tmp_path / "wsi" / "a.tif", Lit(change), 0.25)
    config = HarvestConfig(wsi_dir=tmp_path / "wsi", out=tmp_path / "out", min_cells=500)
    record = harvest_slide(sources(config)[0], config, COUNTER)
    assert not record.kept
    assert words in record.reason and "--counter" in record.reason
