"""`python -m patch_extraction` as users type it: what comes out, and what is said to wrong input."""

import csv
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from shared.sample_slides import write_slide

REPOSITORY = Path(__file__).parents[2]
BIG = ("--allow-upsampling",)  # one of the sample slides has 0.32 um/px


def digests(out: Path) -> dict[str, str]:
    """What readers of the shards see."""
    paths = [*out.glob("shard-*.tar"), out / "index.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def undisturbed(wsi_dir, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A harvest by one process."""
    out = tmp_path_factory.mktemp("harvest") / "shards"
    words = ["--wsi-dir", str(wsi_dir), "--out", str(out), "--workers", "1", "--shard-size", "20", *BIG]
    done = subprocess.run(
        [sys.executable, "-m", "patch_extraction", *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    return out, done


def test_output_of_a_harvest(undisturbed):
    out, done = undisturbed
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    index = json.loads((out / "index.json").read_text())
    assert len(index["shards"]) >= 2
    assert set(index["biomarkers"]) == {"", "Ki-67", "PD-L1"}
    assert {"patch_mpp": 0.25, "min_cells": 30, "max_patches": 500}.items() <= index["settings"].items()
    config = json.loads((out / "config.json").read_text())
    assert (config["shard_size"], config["allow_upsampling"]) == (20, True)
    assert "git_commit" in json.loads((out / "provenance.json").read_text())
    with (out / "slides.csv").open() as file:
        rows = {row["slide"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"Ki-67/S.1 ü.a.svs", "PD-L1/S.1 ü.a.svs", "plain.tif"}
    assert sum(int(row["kept"]) for row in rows.values()) == index["samples"]
    assert rows["PD-L1/S.1 ü.a.svs"]["slide_mpp"] == "0.32"
    assert len(list((out / "thumbnails").glob("*.jpg"))) == 3
    sheet = np.asarray(Image.open(out / "contact_sheet.png").convert("RGB"), int)
    assert sheet.std() > 20


def test_the_last_lines_say_where_things_are(undisturbed):
    out, done = undisturbed
    last = done.stdout.splitlines()[-3:]
    for line, path in zip(last, ("index.json", "contact_sheet.png", "slides.csv"), strict=True):
        assert str(out / path) in line
    assert f"settings (in {out}/config.json):\n  wsi_dir = " in done.stdout
    assert "\n  min_cells = 30\n" in done.stdout
    assert "harvesting: 100%" in done.stderr
    assert "3/3" in done.stderr


def test_plain_webdataset_reads_the_shards(undisturbed):
    out, _ = undisturbed
    urls = sorted(str(path) for path in out.glob("shard-*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert len(samples) == json.loads((out / "index.json").read_text())["samples"]
    assert len({sample["__key__"] for sample in samples}) == len(samples)
    for sample in samples:
        assert sample["jpg"].size == (512, 512)
        assert sample["json"]["cells"] >= 30
        assert sample["json"]["biomarker"] == sample["json"]["slide"].rpartition("/")[0]


def test_more_workers_give_the_same_bytes(undisturbed, command, wsi_dir, tmp_path):
    done = command("patch_extraction", "--wsi-dir", wsi_dir, "--workers", 3, "--shard-size", 20, *BIG)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "shards") == digests(undisturbed[0])  # the default of --out


def processes_of(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            found += [int(entry.name)] if int(state[3]) == session and state[0] != "Z" else []
    return found


def test_killed_and_started_again(undisturbed, wsi_dir, tmp_path):
    """kill -9 at three moments; then the shards are those of an undisturbed run."""
    out = tmp_path / "shards"
    words = [sys.executable, "-m", "patch_extraction", "--wsi-dir", wsi_dir, "--out", out, "--shard-size", 20]
    words = [*map(str, words), "--workers", "2", *BIG]
    for records in (0, 1, 2):
        process = subprocess.Popen(words, cwd=REPOSITORY, stderr=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and len(list(out.glob("slides/*.json"))) < records:
            time.sleep(0.005)
        time.sleep(0.9 if records == 0 else 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 20
        while processes_of(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not processes_of(process.pid)  # the workers went with their parent
        assert not (out / "index.json").exists() or json.loads((out / "index.json").read_text())["samples"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "slides are done already; going on with the others" in done.stdout
    assert digests(out) == digests(undisturbed[0])


@pytest.fixture
def copy(undisturbed, tmp_path) -> Path:
    """A finished harvest to tamper with."""
    return Path(shutil.copytree(undisturbed[0], tmp_path / "copy"))


def test_a_finished_harvest_is_not_done_again(undisturbed, copy, command, wsi_dir):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*.tar")}
    done = command("patch_extraction", "--wsi-dir", wsi_dir, "--out", copy, "--shard-size", 20, *BIG)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 slides are done already" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*.tar")} == before
    assert digests(copy) == digests(undisturbed[0])


def test_a_slide_tar_cut_in_half_is_made_again(undisturbed, copy, command, wsi_dir):
    path = next(copy.glob("slides/plain_*.tar"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    done = command("patch_extraction", "--wsi-dir", wsi_dir, "--out", copy, "--shard-size", 20, *BIG)
    assert done.returncode == 0, done.stderr
    assert "2 of 3 slides are done already" in done.stdout
    assert path.read_bytes() == (undisturbed[0] / "slides" / path.name).read_bytes()
    assert digests(copy) == digests(undisturbed[0])


def test_a_slide_tar_damaged_in_place_is_mended_by_starting_again(undisturbed, copy, command, wsi_dir):
    """In a header, at equal size; packing is due because a shard is lost."""
    path = next(copy.glob("slides/plain_*.tar"))
    path.write_bytes(b"\xff" * 512 + path.read_bytes()[512:])
    (copy / "shard-000001.tar").unlink()
    words = ("--wsi-dir", wsi_dir, "--out", copy, "--shard-size", 20, *BIG)
    done = command("patch_extraction", *words)
    assert done.returncode == 2
    assert f"{path} is damaged; start the harvest again" in error_of(done)
    done = command("patch_extraction", *words)
    assert done.returncode == 0, done.stderr
    assert "2 of 3 slides are done already" in done.stdout
    assert digests(copy) == digests(undisturbed[0])


def test_overwriting_with_no_patch_leaves_nothing_that_looks_whole(copy, command, wsi_dir):
    words = ("--wsi-dir", wsi_dir, "--out", copy, "--shard-size", 20, *BIG, "--min-cells", 5000, "--overwrite")
    done = command("patch_extraction", *words)
    assert done.returncode == 2
    assert "no patch was harvested" in error_of(done)
    assert not list(copy.glob("shard-*"))
    assert not (copy / "index.json").exists()


def test_another_folder_is_refused(undisturbed, copy, command, wsi_dir, tmp_path):
    (tmp_path / "b").mkdir()
    shutil.copy(wsi_dir / "plain.tif", tmp_path / "b" / "other.tif")
    done = command("patch_extraction", "--wsi-dir", "b", "--out", copy, "--shard-size", 20, *BIG)
    assert done.returncode == 2
    assert "holds 3 slides that are not below b (PD-L1/S.1 ü.a.svs of" in error_of(done)
    assert "give another --out, or harvest their common parent folder" in error_of(done)
    assert digests(copy) == digests(undisturbed[0])
    assert len(list(copy.glob("slides/*.tar"))) == 3


def test_a_slide_of_the_same_name_in_another_folder_is_refused(copy, command, wsi_dir, specimens, tmp_path):
    moved = Path(shutil.copytree(wsi_dir, tmp_path / "moved"))
    words = ("--wsi-dir", moved, "--out", copy, "--shard-size", 20, *BIG)
    done = command("patch_extraction", *words)
    assert done.returncode == 0, done.stderr  # the same slides in a folder that was moved
    write_slide(moved / "plain.tif", specimens[0], 0.25)
    done = command("patch_extraction", *words)
    assert done.returncode == 2
    assert "holds a slide that is not below" in error_of(done)


def test_patches_of_a_slide_that_is_gone_stay(command, wsi_dir, tmp_path):
    folder = Path(shutil.copytree(wsi_dir, tmp_path / "wsi"))
    words = ("--wsi-dir", "wsi", *BIG)
    assert command("patch_extraction", *words).returncode == 0
    before = digests(tmp_path / "shards")
    (folder / "plain.tif").rename(tmp_path / "plain.tif")
    done = command("patch_extraction", *words)
    assert done.returncode == 0, done.stderr
    assert "kept from an earlier run: plain.tif: the slide is gone, its" in done.stdout
    assert digests(tmp_path / "shards") == before
    with (tmp_path / "shards" / "slides.csv").open() as file:
        assert {row["slide"]: row["status"] for row in csv.DictReader(file)}["plain.tif"] == "kept"
    done = command("patch_extraction", *words, "--min-cells", 45, "--overwrite")
    assert done.returncode == 2
    assert "made with min_cells 30 instead of 45, and its slide plain.tif is gone from wsi" in error_of(done)
    assert digests(tmp_path / "shards") == before


@pytest.mark.parametrize("name", ["shard-000000.tar", "shard-train-7.tar", "index.json"])
def test_foreign_files_are_not_touched(command, wsi_dir, tmp_path, name):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / name).write_text("mine")
    done = command("patch_extraction", "--wsi-dir", wsi_dir, *BIG)
    assert done.returncode == 2
    assert f"shards holds {name}, which no harvest made; choose another --out" in error_of(done)
    assert [path.name for path in (tmp_path / "shards").iterdir()] == [name]
    assert (tmp_path / "shards" / name).read_text() == "mine"


def test_two_harvests_at_once(undisturbed, copy, command, wsi_dir):
    with (copy / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = command("patch_extraction", "--wsi-dir", wsi_dir, "--out", copy, *BIG)
    assert done.returncode == 2
    assert f"another harvest is writing to {copy}; wait for it or choose another --out" in error_of(done)
    assert digests(copy) == digests(undisturbed[0])


def test_what_killed_harvests_left_behind_is_removed(copy, command, wsi_dir):
    left = [copy / ".shard-000000.tar.123.tmp", copy / "slides" / ".a_12345678.tar.77.tmp"]
    mine = copy / ".notes.tmp"
    for path in (*left, mine):
        path.touch()
    done = command("patch_extraction", "--wsi-dir", wsi_dir, "--out", copy, "--shard-size", 20, *BIG)
    assert done.returncode == 0, done.stderr
    assert [path.exists() for path in (*left, mine)] == [False, False, True]


def test_other_settings_are_refused_and_redone_on_demand(undisturbed, copy, command, wsi_dir):
    words = ("--wsi-dir", wsi_dir, "--out", copy, "--shard-size", 20, *BIG, "--min-cells", 45)
    done = command("patch_extraction", *words)
    assert done.returncode == 2
    assert "made with min_cells 30 instead of 45; choose another folder with --out" in error_of(done)
    assert digests(copy) == digests(undisturbed[0])
    assert (copy / "config.json").read_bytes() == (undisturbed[0] / "config.json").read_bytes()
    done = command("patch_extraction", *words, "--overwrite")
    assert done.returncode == 0, done.stderr
    index = json.loads((copy / "index.json").read_text())
    assert index["settings"]["min_cells"] == 45
    assert index["samples"] < json.loads((undisturbed[0] / "index.json").read_text())["samples"]


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence that a refused command says; nothing else may follow it, and no trace of Python."""
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert done.stderr.splitlines()[-1] == lines[0]
    return lines[0]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--wsi-dir", "nowhere"), "there is no folder nowhere; check the path"),
        (("--wsi-dir", "empty"), "empty holds no slides; files with one of these endings are read: .bif, .czi"),
        (("--wsi-dir", "text/a.svs"), "text/a.svs is a file; give the folder that it lies in"),
        (("--wsi-dir", "text"), "no patch was harvested from text; the reasons stand above"),
        (
            ("--wsi-dir", "text", "--out", "text/a.svs"),
            "cannot write to text/a.svs: File exists; choose another --out",
        ),
        (
            ("--wsi-dir", "text", "--patch-mpp", "4"),
            "--patch-mpp 4.0 is out of range; give a number from 0.05 to 1",
        ),
        (("--wsi-dir", "text", "--max-patches", "0"), "--max-patches 0 is out of range"),
        (("--wsi-dir", "text", "--seed", "-1"), "--seed -1 is out of range"),
        (("--wsi-dir", "text", "--slide-mpp", "40x"), "--slide-mpp 40x is not a resolution; give um/px"),
        (("--wsi-dir", "text", "--slide-mpp", "a.svs=400"), "--slide-mpp a.svs=400 is not a resolution"),
        (("--wsi-dir", "text", "--slide-mpp", "b.svs=0.25"), "--slide-mpp b.svs=0.25 fits no slide in text"),
    ],
)
def test_wrong_input_is_one_sentence(command, tmp_path, words, sentence):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.svs").write_text("This is no slide.\n" * 100)
    done = command("patch_extraction", *words)
    assert done.returncode == 2
    assert sentence in error_of(done)
    assert not list(tmp_path.rglob("*.tar"))
    assert not list(tmp_path.rglob("index.json"))


def test_unknown_options_are_refused(command, tmp_path):
    done = command("patch_extraction", "--wsi-dirs", tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_bad_slides_are_named_and_the_others_harvested(command, wsi_dir, specimens, tmp_path):
    folder = tmp_path / "wsi"
    folder.mkdir()
    good = folder / "good.tif"
    shutil.copy(wsi_dir / "plain.tif", good)
    (folder / "text.svs").write_text("This is no slide.\n")
    (folder / "empty.ndpi").touch()
    (folder / "cut.tif").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (folder / "gone.svs").symlink_to(tmp_path / "nowhere.svs")
    write_slide(folder / "silent.tif", specimens[0], 0.5, resolution=False)
    done = command("patch_extraction", "--wsi-dir", folder, "--out", "o", "--workers", 2)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    failures = [line for line in done.stdout.splitlines() if line.startswith("failed: ")]
    reasons = {
        "text.svs": "is not a slide",
        "empty.ndpi": "is empty; copy it again",
        "cut.tif": "is a TIFF, but cut short",
        "gone.svs": "cannot be opened: No such file or directory",
        "silent.tif": "does not state its resolution; say how many um/px it has with --slide-mpp",
    }
    assert len(failures) == len(reasons)
    for name, reason in reasons.items():
        assert any(str(folder / name) in line and reason in line for line in failures), (name, failures)
    assert "hint: --slide-mpp NAME=0.25" in done.stdout
    assert "5 of 6 slides failed" in done.stderr
    index = json.loads((tmp_path / "o" / "index.json").read_text())
    assert index["slides"] == 1
    with (tmp_path / "o" / "slides.csv").open() as file:
        status = {row["slide"]: row["status"] for row in csv.DictReader(file)}
    assert status == dict.fromkeys(reasons, "failed") | {"good.tif": "harvested"}
    assert len(list((tmp_path / "o" / "slides").glob("*.tar"))) == 1

    mended = command("patch_extraction", "--wsi-dir", folder, "--out", "o", "--slide-mpp", "silent.tif=0.25")
    assert mended.returncode == 3
    assert "1 of 6 slides are done already" in mended.stdout
    assert json.loads((tmp_path / "o" / "index.json").read_text())["slides"] == 2


def test_a_slide_that_may_not_be_read(command, wsi_dir, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("the superuser may read everything")
    (tmp_path / "wsi").mkdir()
    shutil.copy(wsi_dir / "plain.tif", tmp_path / "wsi" / "a.tif")
    (tmp_path / "wsi" / "a.tif").chmod(0)
    done = command("patch_extraction", "--wsi-dir", "wsi")
    assert done.returncode == 2
    assert "Permission denied" in done.stdout


def test_names_that_are_not_utf8(command, wsi_dir, tmp_path):
    folder = os.fsencode(tmp_path / "wsi") + b"/f\xe4rbung"
    Path(os.fsdecode(folder)).mkdir(parents=True)
    shutil.copy(wsi_dir / "plain.tif", folder + b"/Pr\xfcf.tif")
    Path(os.fsdecode(folder + b"/b\xf6se.svs")).write_text("This is no slide.\n")
    done = command("patch_extraction", "--wsi-dir", "wsi", "--max-patches", 2)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    with (tmp_path / "shards" / "slides.csv").open(encoding="utf-8") as file:
        status = {row["slide"]: row["status"] for row in csv.DictReader(file)}
    assert status == {r"f\xe4rbung/Pr\xfcf.tif": "harvested", r"f\xe4rbung/b\xf6se.svs": "failed"}
    assert r"wsi/f\xe4rbung/b\xf6se.svs is not a slide" in done.stdout
    index = json.loads((tmp_path / "shards" / "index.json").read_text(encoding="utf-8"))
    assert index["biomarkers"] == {r"f\xe4rbung": {"slides": 1, "patches": 2}}


def test_a_folder_that_cannot_be_listed_is_named(command, wsi_dir, tmp_path):
    """A path longer than the system takes stops even the superuser."""
    (tmp_path / "wsi").mkdir()
    shutil.copy(wsi_dir / "plain.tif", tmp_path / "wsi" / "a.tif")
    opened = [os.open(tmp_path / "wsi", os.O_RDONLY)]
    for _ in range(17):
        os.mkdir("x" * 250, dir_fd=opened[-1])
        opened.append(os.open("x" * 250, os.O_RDONLY, dir_fd=opened[-1]))
    for descriptor in opened:
        os.close(descriptor)
    done = command("patch_extraction", "--wsi-dir", "wsi", "--max-patches", 2)
    assert done.returncode == 3, done.stderr
    assert "cannot be listed: File name too long; slides below it are left out" in done.stderr
    assert "folders left out: 1 (wsi/xxx" in done.stderr.splitlines()[-1]
    assert json.loads((tmp_path / "shards" / "index.json").read_text())["samples"] == 2


def test_every_real_slide_is_harvested_or_named(command, real_data, tmp_path):
    """The small ones and all the bad ones; the 40x slides take longer than a test should."""
    (tmp_path / "wsi").mkdir()
    for path in (real_data / "slides").iterdir():
        if path.name not in ("CD34_ihc_40x.svs", "oral_scc_he_4x.svs", "chromogranin_ihc_40x_region.svs"):
            (tmp_path / "wsi" / path.name).symlink_to(path)
    words = ("--wsi-dir", "wsi", "--slide-mpp", "keratin*=0.25", "tcga*=0.5", "--patch-mpp", "0.5")
    done = command("patch_extraction", *words, "--max-patches", 8, "--biomarker", "mixed")
    assert done.returncode == 3, done.stderr
    with (tmp_path / "shards" / "slides.csv").open() as file:
        rows = {row["slide"]: row for row in csv.DictReader(file)}
    harvested = {
        name: (row["mpp_source"], row["kept"]) for name, row in rows.items() if row["status"] == "harvested"
    }
    assert harvested == {
        "CMU-1-Small-Region.svs": ("openslide.mpp-x", "8"),
        "keratin_ihc_no_resolution_region.tiff": ("override", "8"),
        "pancreas_he_20x_region.svs": ("openslide.mpp-x", "8"),
        "tcga-cr-7395-01a-01-ts1.svs": ("override", "8"),
    }
    failed = {name for name, row in rows.items() if row["status"] == "failed"}
    assert failed == {
        "boxes.tiff",
        "broken.svs",
        "corrupt_tile.svs",
        "small_dicom.dcm",
        "truncated.svs",
        "unreadable.svs",
    }
    assert all(rows[name]["reason"] for name in failed)
    assert json.loads((tmp_path / "shards" / "index.json").read_text())["biomarkers"].keys() == {"mixed"}


def test_it_starts_without_torch_and_soon():
    start = time.monotonic()
    code = "import sys, patch_extraction.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
    assert time.monotonic() - start < 10  # 1.5 s; the machine may be busy
