"""The output folder: killed harvests, damage, other settings, other folders, foreign files."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from patch_extraction.counters.base import HaematoxylinCounter
from patch_extraction.packing.verify import check_shards
from shared.files import file_lock
from shared.samples.sample_slides import write_slide
from shared.shards.tar_reader import read_with_metadata
from shared.wsi import resampling
from tests.patch_extraction.conftest import COMMON, digests, error_of


@pytest.fixture
def copy(undisturbed, tmp_path) -> Path:
    """Return a finished harvest to tamper with."""
    return Path(shutil.copytree(undisturbed[0], tmp_path / "copy"))


def test_a_finished_harvest_is_not_done_again(undisturbed, copy, harvest_here, wsi_dir):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*.tar")}
    done = harvest_here("--wsi-dir", wsi_dir, "--out", copy, "--shard-size", 20, *COMMON)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 slides are done already" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*.tar")} == before
    assert digests(copy) == digests(undisturbed[0])


def test_a_slide_tar_cut_in_half_is_made_again(undisturbed, copy, harvest_here, wsi_dir):
    path = next(copy.glob("slides/plain_*.tar"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    done = harvest_here("--wsi-dir", wsi_dir, "--out", copy, "--shard-size", 20, *COMMON)
    assert done.returncode == 0, done.stderr
    assert "2 of 3 slides are done already" in done.stdout
    assert path.read_bytes() == (undisturbed[0] / "slides" / path.name).read_bytes()
    assert digests(copy) == digests(undisturbed[0])


def test_a_slide_tar_damaged_in_place_is_made_again_in_the_same_run(undisturbed, copy, harvest_here, wsi_dir):
    """In a header, at equal size; packing is due because a shard is lost."""
    path = next(copy.glob("slides/plain_*.tar"))
    path.write_bytes(b"\xff" * 512 + path.read_bytes()[512:])
    (copy / "shard-000001.tar").unlink()
    done = harvest_here("--wsi-dir", wsi_dir, "--out", copy, "--shard-size", 20, *COMMON)
    assert done.returncode == 0, done.stderr
    assert "tars of 1 slides are damaged; those slides are harvested again" in done.stdout
    assert digests(copy) == digests(undisturbed[0])


def test_overwriting_with_no_patch_leaves_nothing_that_looks_whole(copy, harvest_here, wsi_dir):
    words = ("--wsi-dir", wsi_dir, "--out", copy, "--shard-size", 20, *COMMON, "--min-cells", 5000, "--overwrite")
    done = harvest_here(*words)
    assert done.returncode == 2
    assert "no patch was harvested" in error_of(done)
    assert not list(copy.glob("shard-*"))
    assert not (copy / "index.json").exists()


def test_another_folder_is_refused(undisturbed, copy, harvest_here, wsi_dir, tmp_path):
    (tmp_path / "b").mkdir()
    shutil.copy(wsi_dir / "plain.tif", tmp_path / "b" / "other.tif")
    done = harvest_here("--wsi-dir", "b", "--out", copy, "--shard-size", 20, *COMMON)
    assert done.returncode == 2
    assert "holds 3 slides that are not below b (PD-L1/S.1 ü.a.svs of" in error_of(done)
    assert "give another --out, or harvest their common parent folder" in error_of(done)
    assert digests(copy) == digests(undisturbed[0])
    assert len(list(copy.glob("slides/*.tar"))) == 3


def test_a_slide_of_the_same_name_in_another_folder_is_refused(copy, harvest_here, wsi_dir, specimens, tmp_path):
    moved = Path(shutil.copytree(wsi_dir, tmp_path / "moved"))
    words = ("--wsi-dir", moved, "--out", copy, "--shard-size", 20, *COMMON)
    done = harvest_here(*words)
    assert done.returncode == 0, done.stderr  # the same slides in a folder that was moved
    write_slide(moved / "plain.tif", specimens[0], 0.25)
    done = harvest_here(*words)
    assert done.returncode == 2
    assert "holds a slide that is not below" in error_of(done)


def test_patches_of_a_slide_that_is_gone_stay(harvest_here, wsi_dir, tmp_path):
    folder = Path(shutil.copytree(wsi_dir, tmp_path / "wsi"))
    words = ("--wsi-dir", "wsi", *COMMON)
    assert harvest_here(*words).returncode == 0
    before = digests(tmp_path / "shards")
    (folder / "plain.tif").rename(tmp_path / "plain.tif")
    done = harvest_here(*words)
    assert done.returncode == 0, done.stderr
    assert "kept from an earlier run: plain.tif: it is gone or not chosen, its" in done.stdout
    assert digests(tmp_path / "shards") == before
    with (tmp_path / "shards" / "slides.csv").open() as file:
        assert {row["slide"]: row["status"] for row in csv.DictReader(file)}["plain.tif"] == "kept"
    done = harvest_here(*words, "--min-cells", 45, "--overwrite")
    assert done.returncode == 2
    assert "made with min_cells 30 instead of 45, and its slide plain.tif is gone from wsi" in error_of(done)
    assert digests(tmp_path / "shards") == before


def test_a_slide_that_was_moved_is_not_there_twice(harvest_here, wsi_dir, tmp_path):
    """To the folder of another biomarker, which its patches then have."""
    folder = Path(shutil.copytree(wsi_dir, tmp_path / "wsi"))
    words = ("--wsi-dir", "wsi", *COMMON, "--max-patches", 3)
    assert harvest_here(*words).returncode == 0
    (folder / "plain.tif").rename(folder / "Ki-67" / "moved.tif")
    done = harvest_here(*words)
    assert done.returncode == 0, done.stderr
    assert "plain.tif is Ki-67/moved.tif now; its patches are made again under that name" in done.stdout
    assert json.loads((tmp_path / "shards" / "index.json").read_text())["biomarkers"] == {
        "Ki-67": {"slides": 2, "patches": 6},
        "PD-L1": {"slides": 1, "patches": 3},
    }
    assert not list((tmp_path / "shards").glob("slides/plain*"))


@pytest.mark.parametrize(
    "name", ["shard-000000.tar", "shard-train-7.tar", "index.json", "slides.csv", "config.json", "report.html"]
)
def test_foreign_files_are_not_touched(harvest_here, wsi_dir, tmp_path, name):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / name).write_text("mine")
    done = harvest_here("--wsi-dir", wsi_dir, *COMMON)
    assert done.returncode == 2
    assert f"shards holds {name}, which no harvest made; choose another --out" in error_of(done)
    assert [path.name for path in (tmp_path / "shards").iterdir()] == [name]
    assert (tmp_path / "shards" / name).read_text() == "mine"


def test_a_list_of_slides_is_not_written_over(copy, harvest_here, wsi_dir):
    """The results of a harvest, edited and given back to it."""
    path = copy / "slides.csv"
    before = path.read_bytes()
    done = harvest_here("--wsi-dir", wsi_dir, "--out", copy, "--slides", path, *COMMON)
    assert done.returncode == 2
    assert f"--slides {path} is where a harvest into {copy} writes its results; rename it" in error_of(done)
    assert path.read_bytes() == before


def test_a_harvest_killed_before_its_first_slide_goes_on(harvest_here, wsi_dir, tmp_path, undisturbed):
    (tmp_path / "shards").mkdir()
    shutil.copy(undisturbed[0] / "config.json", tmp_path / "shards")
    done = harvest_here("--wsi-dir", wsi_dir, "--shard-size", 20, *COMMON)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "shards") == digests(undisturbed[0])


def test_two_harvests_at_once(undisturbed, copy, command, wsi_dir):
    with file_lock(copy / ".lock"):
        done = command("patch_extraction", "--wsi-dir", wsi_dir, "--out", copy, *COMMON)
    assert done.returncode == 2
    assert f"another harvest is writing to {copy}; wait for it or choose another --out" in error_of(done)
    assert digests(copy) == digests(undisturbed[0])


def test_what_killed_harvests_left_behind_is_removed(copy, harvest_here, wsi_dir):
    left = [copy / ".shard-000000.tar.123.tmp", copy / "slides" / ".a_12345678.tar.77.tmp"]
    mine = copy / ".notes.tmp"
    for path in (*left, mine):
        path.touch()
    done = harvest_here("--wsi-dir", wsi_dir, "--out", copy, "--shard-size", 20, *COMMON)
    assert done.returncode == 0, done.stderr
    assert [path.exists() for path in (*left, mine)] == [False, False, True]


def test_further_columns_of_the_list_reach_every_patch_without_another_count(
    undisturbed, copy, harvest_here, wsi_dir, tmp_path, monkeypatch
):
    def columns() -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for shard in copy.glob("shard-*.tar"):
            for _, fields in read_with_metadata(shard, 1000):
                found.setdefault(fields["slide"], set()).add(json.dumps(fields["columns"]))
        return found

    names = [row["slide"] for row in csv.DictReader((copy / "slides.csv").read_text().splitlines())]
    monkeypatch.setattr(HaematoxylinCounter, "find", lambda *_: pytest.fail("counted again"))
    for patient in ("P1", "P2"):
        lines = ["slide,patient", *(f"{name},{patient}" for name in names)]
        (tmp_path / "list.csv").write_text("\n".join(lines), encoding="utf-8")
        words = (
            "--wsi-dir",
            wsi_dir,
            "--out",
            copy,
            "--shard-size",
            20,
            *COMMON,
            "--slides",
            tmp_path / "list.csv",
        )
        done = harvest_here(*words, "--pack")
        assert done.returncode == 0, done.stderr
        assert columns() == {name: {json.dumps({"patient": patient})} for name in names}
        assert {row["patient"] for row in csv.DictReader((copy / "slides.csv").read_text().splitlines())} == {
            patient
        }
    check_shards(copy)
    index, old = (json.loads((folder / "index.json").read_text()) for folder in (copy, undisturbed[0]))
    assert index["samples"] == old["samples"] and index["mean"] == old["mean"]


def test_other_settings_are_refused_and_redone_on_demand(undisturbed, copy, harvest_here, wsi_dir):
    words = ("--wsi-dir", wsi_dir, "--out", copy, "--shard-size", 20, *COMMON, "--min-cells", 45)
    done = harvest_here(*words)
    assert done.returncode == 2
    assert "made with min_cells 30 instead of 45; choose another folder with --out" in error_of(done)
    assert digests(copy) == digests(undisturbed[0])
    assert (copy / "config.json").read_bytes() == (undisturbed[0] / "config.json").read_bytes()
    done = harvest_here(*words, "--overwrite")
    assert done.returncode == 0, done.stderr
    index = json.loads((copy / "index.json").read_text())
    assert index["settings"]["min_cells"] == 45
    assert index["samples"] < json.loads((undisturbed[0] / "index.json").read_text())["samples"]


def test_a_machine_that_resamples_otherwise_is_refused(undisturbed, copy, harvest_here, wsi_dir, monkeypatch):
    """Pillow's px are others than those of the package, which not every machine has."""
    pytest.importorskip("cykooz_resizer")
    monkeypatch.setattr(resampling, "fast", None)
    done = harvest_here("--wsi-dir", wsi_dir, "--out", copy, "--shard-size", 20, *COMMON)
    assert done.returncode == 2
    assert "made with resampler 'cykooz' instead of 'Pillow'; choose another folder" in error_of(done)
    assert digests(copy) == digests(undisturbed[0])
