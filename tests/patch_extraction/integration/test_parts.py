"""A harvest in parts: the same shards as by one process, and nobody in anybody's way."""

import shutil
from pathlib import Path

import pytest

from patch_extraction.__main__ import main
from tests.conftest import InProcess, locked_elsewhere
from tests.patch_extraction.conftest import COMMON, digests


@pytest.fixture
def harvest(wsi_dir: Path, tmp_path: Path, in_process: InProcess):
    """Run the command in this process; returns exit code, stdout and stderr."""

    def call(*args: object, wsi_dir: Path = wsi_dir) -> tuple[int, str, str]:
        words = ["--wsi-dir", wsi_dir, "--out", tmp_path / "out", "--shard-size", 20, "--workers", 1]
        return in_process(main, *words, *COMMON, *args)

    return call


def test_parts_then_pack_give_the_shards_of_one_process(harvest, undisturbed, tmp_path):
    out = tmp_path / "out"
    code, said, _ = harvest("--part", "2/2")
    assert code == 0 and "part 2/2: 1 of 3 slides; after all parts: the same command with --pack" in said
    code, _, error = harvest("--pack")
    assert code == 2 and "error: 2 of 3 slides are still to be harvested into" in error
    assert not (out / "index.json").exists() and not (out / "slides.csv").exists()
    assert harvest("--part", "1/2")[0] == 0
    code, said, _ = harvest("--part", "1/2")
    assert code == 0 and "2 of 2 slides are done already" in said
    assert harvest("--pack")[0] == 0
    assert digests(out) == digests(undisturbed[0])
    assert (out / "slides.csv").read_text().count("\n") == 4
    # Settings are those of the whole, whichever task wrote them.
    assert '"part": null' in (out / "config.json").read_text()


def test_a_part_redone_with_other_settings_takes_the_shards_away(harvest, undisturbed, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(undisturbed[0], out)
    assert "choose another folder" in harvest("--part", "1/2", "--min-cells", 40)[2]
    assert digests(out) == digests(undisturbed[0])
    assert harvest("--part", "1/2", "--min-cells", 40, "--overwrite")[0] == 0
    assert not (out / "index.json").exists() and not list(out.glob("shard-*"))
    code, _, error = harvest("--pack", "--min-cells", 40, "--overwrite")
    assert code == 2 and "1 of 3 slides are still to be harvested" in error
    assert harvest("--part", "2/2", "--min-cells", 40, "--overwrite")[0] == 0
    assert harvest("--pack", "--min-cells", 40)[0] == 0


def test_a_slide_that_failed_in_its_part_does_not_hold_up_the_others(harvest, wsi_dir, tmp_path):
    folder = tmp_path / "wsi"
    folder.mkdir()
    shutil.copy(wsi_dir / "plain.tif", folder)
    (folder / "a.svs").write_bytes(b"no slide")
    assert harvest("--part", "1/2", wsi_dir=folder)[0] == 3
    assert harvest("--part", "2/2", wsi_dir=folder)[0] == 0
    code, said, error = harvest("--pack", wsi_dir=folder)
    assert code == 3 and f"failed: {folder}/a.svs" in said and "1 of 2 slides failed" in error
    code, _, error = harvest("--pack", "--slide-mpp", "a.svs=0.3", wsi_dir=folder)
    assert code == 2 and "1 of 2 slides are still to be harvested" in error  # with that it was not tried


@pytest.mark.parametrize(
    ("lock", "shared", "args", "sentence"),
    [
        (".lock", False, ("--part", "1/3"), "another harvest is writing to"),
        (".lock", True, ("--pack",), "another harvest is writing to"),
        (".part-1-of-3.lock", False, ("--part", "1/3"), "another task harvests part 1/3 into"),
        (".part-1-of-2.lock", False, ("--part", "1/3"), "tasks with another number of parts than 3"),
    ],
)
def test_who_would_be_in_the_way_is_refused(harvest, tmp_path, lock: str, shared: bool, args, sentence: str):
    out = tmp_path / "out"
    out.mkdir()
    with locked_elsewhere(out / lock, shared):
        code, _, error = harvest(*args)
    assert code == 2 and error.splitlines()[-1].startswith(f"error: {sentence}")
    assert not list(out.glob("slides/*"))


def test_a_part_and_a_pack_at_once_are_refused(harvest):
    assert "error: --part and --pack exclude each other" in harvest("--part", "1/2", "--pack")[2]
