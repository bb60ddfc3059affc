"""A harvest as an array of jobs, on sample slides: killed, submitted again, and equal to one process's."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from patch_extraction import launch
from patch_extraction.config import HarvestConfig
from shared.errors import UserError
from tests.conftest import REPOSITORY
from tests.patch_extraction.conftest import COMMON, digests
from tests.slurm.checkout import make_python
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import slurm

__all__ = ["slurm"]  # a fixture
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
HARVEST = (*COMMON, "--shard-size", "20", "--workers", "1")


@pytest.fixture
def checkout(tmp_path: Path, wsi_dir: Path) -> Path:
    """Return a fresh clone after `make setup`, with slides."""
    folder = tmp_path / "checkout"
    make_python(folder, f'exec {sys.executable} "$@"')
    for name in ("shared", "patch_extraction", "slurm"):
        (folder / name).symlink_to(REPOSITORY / name)
    shutil.copytree(wsi_dir, folder / "slides")
    return folder


def test_a_killed_task_is_made_good_by_submitting_again(
    slurm: Cluster, checkout: Path, undisturbed: tuple[Path, subprocess.CompletedProcess[str]]
):
    out = checkout / "shards"
    options = ("--array=1-3", "--cpus-per-task=1")
    first = slurm.submit(Path("slurm/extract.sh"), *HARVEST, cwd=checkout, options=options)
    kill_when(out / ".part-2-of-3.lock", "--part 2/3")
    states = [slurm.wait(f"{first}_{part}", *ENDS)["JobState"] for part in (1, 2, 3)]
    assert states == ["COMPLETED", "FAILED", "COMPLETED"]
    pack = slurm.wait(slurm.wait_for_pack(first), *ENDS)
    log = next(checkout.glob("pack-*.out")).read_text()
    assert pack["ExitCode"] == "2:0", log
    assert "error: 1 of 3 slides are still to be harvested into shards" in log
    assert not (out / "index.json").exists()

    second = slurm.submit(Path("slurm/extract.sh"), *HARVEST, cwd=checkout, options=(*options, "--array=1-2"))
    for part in (1, 2):
        assert slurm.wait(f"{second}_{part}", *ENDS)["JobState"] == "COMPLETED"
    pack = slurm.wait(slurm.wait_for_pack(second), *ENDS)
    assert pack["JobState"] == "COMPLETED"
    assert digests(out) == digests(undisturbed[0])


def test_the_launcher_submits_parts_and_a_pack_and_reports(
    slurm: Cluster, checkout: Path, undisturbed: tuple[Path, subprocess.CompletedProcess[str]]
):
    """One slide is none: its part and the packing say so and end with 3, all else is there."""
    (checkout / "slides" / "PD-L1" / "broken.svs").write_bytes(b"no slide")
    words = ("--wsi-dir", "slides", *HARVEST, "--launcher", "slurm", "--parts", "2", "--slurm.cpus", "1")
    done = slurm.stage("patch_extraction", *words, cwd=checkout)
    assert done.returncode == 3, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.split("\nrun ")[1].splitlines()[1:]]
    table = {row[0]: (row[2], row[3]) for row in rows if row[0] in ("part-1", "part-2", "pack")}
    logs = checkout / "shards" / "jobs"
    assert table == {
        "part-1": ("FAILED", "shards/jobs/part-1.log"),
        "part-2": ("COMPLETED", "shards/jobs/part-2.log"),
        "pack": ("FAILED", "shards/jobs/pack.log"),
    }
    assert "1 of 4 slides failed (see above)" in (logs / "pack.log").read_text()
    assert digests(checkout / "shards")["shard-000000.tar"] == digests(undisturbed[0])["shard-000000.tar"]


def test_only_the_pack_is_submitted_where_that_is_asked_for(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    slurm.log_in(monkeypatch, tmp_path)
    submitted = []
    monkeypatch.setattr(launch, "wait_in_slurm", lambda *words, then: submitted.append((words[0], then)) or 0)
    config = HarvestConfig(wsi_dir=tmp_path, out=tmp_path)
    asked = dataclasses.replace(launch.LAUNCH, parts=2)
    assert launch.harvest_in_slurm(3, config, asked) == 0
    assert launch.harvest_in_slurm(3, dataclasses.replace(config, pack=True), asked) == 0
    assert [([task.name for task in tasks], last.name) for tasks, last in submitted] == [
        (["part-1", "part-2"], "pack"),
        ([], "pack"),
    ]
    with pytest.raises(UserError, match="leave out --part, or give --parts N"):
        launch.harvest_in_slurm(3, dataclasses.replace(config, part="1/2"), asked)


def kill_when(there: Path, words: str) -> None:
    """kill -9 of the task whose command line has these words, as soon as a file is there."""
    end = time.monotonic() + 60
    while not there.exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    found = [pid for pid, line in command_lines() if words in line and "srun" not in line and "-m patch" in line]
    os.kill(found[0], signal.SIGKILL)


def command_lines() -> list[tuple[int, str]]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found.append((int(process.name), (process / "cmdline").read_text().replace("\0", " ")))
        except OSError:
            continue
    return sorted(found)
