"""`python -m patch_extraction` as users type it: what comes out, and what is said to wrong input."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from shared.samples.sample_slides import write_slide
from tests.conftest import ENVIRONMENT
from tests.patch_extraction.conftest import COMMON, REPOSITORY, digests, error_of


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
    done = command("patch_extraction", "--wsi-dir", wsi_dir, "--workers", 3, "--shard-size", 20, *COMMON)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "shards") == digests(undisturbed[0])  # the default of --out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--wsi-dir", "nowhere"), "there is no folder nowhere; check the path"),
        (("--wsi-dir", "empty"), "empty holds no slides; files with one of these endings are read: .bif, .czi"),
        (("--wsi-dir", "text/a.svs"), "text/a.svs is a file; give its folder"),
        (("--wsi-dir", "text"), "no patch was harvested from text; see the reasons above"),
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
        (("--wsi-dir", "text", "--slide-mpp", "b.svs=0.25"), "--slide-mpp b.svs=0.25 matches no slide in text"),
    ],
)
def test_wrong_input_is_one_sentence(harvest_here, tmp_path, words, sentence):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.svs").write_text("This is no slide.\n" * 100)
    done = harvest_here(*words)
    assert done.returncode == 2
    assert sentence in error_of(done)
    assert not list(tmp_path.rglob("*.tar"))
    assert not list(tmp_path.rglob("index.json"))


def test_unknown_options_are_refused(command, tmp_path):
    done = command("patch_extraction", "--wsi-dirs", tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_bad_slides_are_named_and_the_others_harvested(harvest_here, wsi_dir, specimens, tmp_path):
    folder = tmp_path / "wsi"
    folder.mkdir()
    good = folder / "good.tif"
    shutil.copy(wsi_dir / "plain.tif", good)
    (folder / "text.svs").write_text("This is no slide.\n")
    (folder / "empty.ndpi").touch()
    (folder / "cut.tif").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (folder / "gone.svs").symlink_to(tmp_path / "nowhere.svs")
    (folder / "twice").mkdir()
    shutil.copy(good, folder / "twice")
    write_slide(folder / "silent.tif", specimens[0], 0.5, resolution=False)
    done = harvest_here("--wsi-dir", folder, "--out", "o", "--workers", 2)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    failures = [line for line in done.stdout.splitlines() if line.startswith("failed: ")]
    reasons = {
        "text.svs": "is not a slide",
        "empty.ndpi": "is empty; copy it again",
        "cut.tif": "is a TIFF, but cut short",
        "gone.svs": "cannot be opened: No such file or directory",
        "silent.tif": "does not state its resolution; give its um/px with --slide-mpp",
    }
    assert len(failures) == len(reasons)
    for name, reason in reasons.items():
        assert any(str(folder / name) in line and reason in line for line in failures), (name, failures)
    assert "hint: --slide-mpp NAME=0.25" in done.stdout
    assert "5 of 7 slides failed" in done.stderr
    assert "duplicate: twice/good.tif: the same file as good.tif" in done.stdout
    index = json.loads((tmp_path / "o" / "index.json").read_text())
    assert index["slides"] == 1
    with (tmp_path / "o" / "slides.csv").open() as file:
        status = {row["slide"]: row["status"] for row in csv.DictReader(file)}
    assert status == dict.fromkeys(reasons, "failed") | {"good.tif": "harvested", "twice/good.tif": "duplicate"}
    assert len(list((tmp_path / "o" / "slides").glob("*.tar"))) == 1

    mended = harvest_here("--wsi-dir", folder, "--out", "o", "--slide-mpp", "silent.tif=0.25")
    assert mended.returncode == 3
    assert "1 of 7 slides are done already" in mended.stdout
    assert json.loads((tmp_path / "o" / "index.json").read_text())["slides"] == 2


def test_a_list_of_slides_chooses_orders_and_names_their_biomarkers(harvest_here, wsi_dir, tmp_path):
    (tmp_path / "slides.csv").write_text("slide,biomarker,slide_mpp\nplain,CD8,\nKi-67/S.1 ü.a.svs,,0.26\n")
    words = ("--wsi-dir", wsi_dir, "--max-patches", 3, "--slides")
    done = harvest_here(*words, "slides.csv")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "shards" / "slides.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["slide"], row["biomarker"], row["slide_mpp"], row["mpp_source"]) for row in rows] == [
        ("plain.tif", "CD8", "0.25", "openslide.mpp-x"),
        ("Ki-67/S.1 ü.a.svs", "Ki-67", "0.26", "override"),
    ]
    wanted = {"slide", "status", "reason", "slide_mpp", "mpp_source", "tissue_mm2", "candidates", "screened"}
    assert {*wanted, "counted", "kept", "seconds", "bytes"} <= rows[0].keys()
    (tmp_path / "fewer.csv").write_text("slide,biomarker\nplain.tif,CD8\n")
    done = harvest_here(*words, "fewer.csv")
    assert done.returncode == 0, done.stderr
    assert "kept from an earlier run: Ki-67/S.1 ü.a.svs: it is gone or not chosen, its 3 patches" in done.stdout
    other = harvest_here(*words, "fewer.csv", "--min-cells", 31, "--overwrite")
    assert "its slide Ki-67/S.1 ü.a.svs is not in fewer.csv; name it there, or remove" in error_of(other)
    assert json.loads((tmp_path / "shards" / "index.json").read_text())["biomarkers"] == {
        "CD8": {"slides": 1, "patches": 3},
        "Ki-67": {"slides": 1, "patches": 3},
    }


def test_a_duplicate_counts_as_tried_when_parts_are_packed(harvest_here, wsi_dir, tmp_path):
    (tmp_path / "wsi" / "b").mkdir(parents=True)
    for name in ("a.tif", "b/copy.tif"):
        shutil.copy(wsi_dir / "plain.tif", tmp_path / "wsi" / name)
    words = ("--wsi-dir", "wsi", "--max-patches", 2)
    assert [harvest_here(*words, "--part", part).returncode for part in ("1/2", "2/2")] == [0, 0]
    done = harvest_here(*words, "--pack")
    assert done.returncode == 0, done.stderr
    assert "duplicate: b/copy.tif: the same file as a.tif" in done.stdout
    assert json.loads((tmp_path / "shards" / "index.json").read_text())["slides"] == 1
    (tmp_path / "wsi" / "a.tif").unlink()  # then the copy is no copy any more, and not harvested
    assert "1 of 1 slides are still to be harvested" in error_of(harvest_here(*words, "--pack"))


def test_a_slide_that_may_not_be_read(wsi_dir, tmp_path):
    (tmp_path / "wsi").mkdir()
    shutil.copy(wsi_dir / "plain.tif", tmp_path / "wsi" / "a.tif")
    (tmp_path / "wsi" / "a.tif").chmod(0)
    words = [sys.executable, "-m", "patch_extraction", "--wsi-dir", "wsi"]
    if os.geteuid() == 0:  # who may read everything, unless told otherwise
        if shutil.which("setpriv") is None:
            pytest.skip("the superuser may read everything")
        rights = "-dac_override,-dac_read_search"
        words = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}", *words]
    done = subprocess.run(words, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "failed: wsi/a.tif cannot be opened: Permission denied" in done.stdout


def test_names_that_are_not_utf8(harvest_here, wsi_dir, tmp_path):
    folder = os.fsencode(tmp_path / "wsi") + b"/f\xe4rbung"
    Path(os.fsdecode(folder)).mkdir(parents=True)
    shutil.copy(wsi_dir / "plain.tif", folder + b"/Pr\xfcf.tif")
    Path(os.fsdecode(folder + b"/b\xf6se.svs")).write_text("This is no slide.\n")
    done = harvest_here("--wsi-dir", "wsi", "--max-patches", 2)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    with (tmp_path / "shards" / "slides.csv").open(encoding="utf-8") as file:
        status = {row["slide"]: row["status"] for row in csv.DictReader(file)}
    assert status == {r"f\xe4rbung/Pr\xfcf.tif": "harvested", r"f\xe4rbung/b\xf6se.svs": "failed"}
    assert r"wsi/f\xe4rbung/b\xf6se.svs is not a slide" in done.stdout
    index = json.loads((tmp_path / "shards" / "index.json").read_text(encoding="utf-8"))
    assert index["biomarkers"] == {r"f\xe4rbung": {"slides": 1, "patches": 2}}


def test_hostile_names(harvest_here, wsi_dir, tmp_path):
    """Dashes, line breaks, terminal codes and HTML in names; what is no slide at all is counted."""
    (tmp_path / "wsi" / "-rf").mkdir(parents=True)
    shutil.copy(wsi_dir / "plain.tif", tmp_path / "wsi" / "-rf" / "-a.tif")
    for name in ("b\nerror: c.svs", "\x1b[31m.svs", "<script>alert(1)<", "=cmd.gz", "d.svs.partial"):
        suffix = "" if name.endswith((".svs", ".gz", ".partial")) else ".svs"
        (tmp_path / "wsi" / f"{name}{suffix}").write_text(f"{name} is no slide.\n")
    os.mkfifo(tmp_path / "wsi" / "pipe.svs")
    done = harvest_here("--wsi-dir", "wsi", "--max-patches", 2, "--slide-minutes", 2)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert "\x1b[31m" not in done.stdout + done.stderr
    assert r"failed: wsi/b\nerror: c.svs is not a slide" in done.stdout
    assert "failed: wsi/pipe.svs is not a regular file" in done.stdout
    assert "passed over: 2 files (1 .gz, 1 .partial)" in done.stdout
    with (tmp_path / "shards" / "slides.csv").open(encoding="utf-8") as file:
        status = {row["slide"]: row["status"] for row in csv.DictReader(file)}
    assert status.pop("-rf/-a.tif") == "harvested"
    assert status == dict.fromkeys(
        (r"b\nerror: c.svs", r"\x1b[31m.svs", "<script>alert(1)<.svs", "pipe.svs"), "failed"
    )
    assert "<script" not in (tmp_path / "shards" / "report.html").read_text(encoding="utf-8")
    assert {path.parent.parent for path in (tmp_path / "shards").rglob("*.tar")} <= {
        tmp_path,
        tmp_path / "shards",
    }


def test_links_in_the_output_folder_are_replaced_not_followed(harvest_here, wsi_dir, tmp_path):
    (tmp_path / "wsi").mkdir()
    shutil.copy(wsi_dir / "plain.tif", tmp_path / "wsi" / "a.tif")
    words = ("--wsi-dir", "wsi", "--max-patches", 2)
    assert harvest_here(*words).returncode == 0
    shards = tmp_path / "shards"
    victims = []
    for path in [shards / "slides.csv", shards / "report.html", *shards.rglob("*.tar")]:
        victims.append(tmp_path / f"victim of {path.name}")
        victims[-1].write_text("mine")
        path.unlink()
        path.symlink_to(victims[-1])
    done = harvest_here(*words)
    assert done.returncode == 0, done.stderr
    assert {victim.read_text() for victim in victims} == {"mine"}
    assert not [path for path in shards.rglob("*") if path.is_symlink()]


def test_a_folder_that_cannot_be_listed_is_named(harvest_here, wsi_dir, tmp_path):
    """A path longer than the system takes stops even the superuser."""
    (tmp_path / "wsi").mkdir()
    shutil.copy(wsi_dir / "plain.tif", tmp_path / "wsi" / "a.tif")
    opened = [os.open(tmp_path / "wsi", os.O_RDONLY)]
    for _ in range(17):
        os.mkdir("x" * 250, dir_fd=opened[-1])
        opened.append(os.open("x" * 250, os.O_RDONLY, dir_fd=opened[-1]))
    for descriptor in opened:
        os.close(descriptor)
    done = harvest_here("--wsi-dir", "wsi", "--max-patches", 2)
    assert done.returncode == 3, done.stderr
    assert "cannot be listed: File name too long; slides below it are left out" in done.stderr
    assert "folders left out: 1 (wsi/xxx" in done.stderr.splitlines()[-1]
    assert json.loads((tmp_path / "shards" / "index.json").read_text())["samples"] == 2


def test_every_real_slide_is_harvested_or_named(harvest_here, real_data, tmp_path):
    """The small ones and all the bad ones; the 40x slides take longer than a test should."""
    (tmp_path / "wsi").mkdir()
    for path in (real_data / "slides").iterdir():
        if path.name not in ("CD34_ihc_40x.svs", "oral_scc_he_4x.svs", "chromogranin_ihc_40x_region.svs"):
            (tmp_path / "wsi" / path.name).symlink_to(path)
    words = ("--wsi-dir", "wsi", "--slide-mpp", "keratin*=0.25", "tcga*=0.5", "--patch-mpp", "0.5")
    done = harvest_here(*words, "--max-patches", 6, "--biomarker", "mixed")
    assert done.returncode == 3, done.stderr
    with (tmp_path / "shards" / "slides.csv").open() as file:
        rows = {row["slide"]: row for row in csv.DictReader(file)}
    harvested = {
        name: (row["mpp_source"], row["kept"]) for name, row in rows.items() if row["status"] == "harvested"
    }
    assert harvested == {
        "CMU-1-Small-Region.svs": ("openslide.mpp-x", "6"),
        "keratin_ihc_no_resolution_region.tiff": ("override", "6"),
        "pancreas_he_20x_region.svs": ("openslide.mpp-x", "6"),
        "tcga-cr-7395-01a-01-ts1.svs": ("override", "6"),
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
