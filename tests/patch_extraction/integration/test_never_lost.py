"""A night of harvesting survives kill -9 at any moment, slides that hang or crash, and a full disk."""

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.samples.sample_slides import write_slide
from shared.samples.specimen import section
from tests.patch_extraction.conftest import COMMON, REPOSITORY, digests, error_of, hanging, processes_of, reasons

SIDE_UM = 256.0  # four patches a slide


@pytest.fixture(scope="session")
def small_slides(tmp_path_factory) -> Path:
    """Six small slides, among them three of one specimen."""
    folder = tmp_path_factory.mktemp("small")
    for seed, name in ((31, "a.tif"), (32, "b.tif")):
        write_slide(folder / name, section(seed, SIDE_UM, SIDE_UM), 0.25)
        for number, quality in enumerate((80, 75)):
            write_slide(folder / f"{number}{name}", section(seed, SIDE_UM, SIDE_UM), 0.25, quality=quality)
    return folder


class Killed:
    """A harvest that is killed again and again."""

    def __init__(self, wsi_dir: Path, out: Path) -> None:
        self.out = out
        words = ["--wsi-dir", wsi_dir, "--out", out, "--workers", 2, "--shard-size", 6]
        self._words = [sys.executable, "-m", "patch_extraction", *map(str, words)]

    def start(self) -> subprocess.Popen:
        return subprocess.Popen(
            self._words,
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(self) -> str:
        """Run to the end; what it said."""
        process = self.start()
        said = process.communicate()[0]
        assert process.returncode == 0, said
        return said

    def kill_after(self, seconds: float, rng: random.Random) -> None:
        """Start, wait, and kill the harvest, or it and all its workers at once, or one of its processes."""
        process = self.start()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            everyone = processes_of(process.pid)
            who = rng.choice(("main", "all", "one"))
            for victim in {"main": [process.pid], "all": everyone, "one": [rng.choice(everyone)]}[who]:
                os.kill(victim, signal.SIGKILL) if victim in processes_of(process.pid) else None
        process.communicate()
        deadline = time.monotonic() + 20
        while processes_of(process.pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not processes_of(process.pid)  # whoever was left went with the main process


def kill_again_and_again(wsi_dir: Path, tmp_path: Path, times: int, seed: int) -> None:
    """Compare the shards with those of an undisturbed harvest; nothing half-written may be left."""
    begin = time.monotonic()
    Killed(wsi_dir, tmp_path / "undisturbed").finish()
    duration = time.monotonic() - begin
    rng = random.Random(seed)
    harvest = Killed(wsi_dir, tmp_path / "killed")
    for _ in range(times):
        harvest.kill_after(rng.uniform(0.3, 1.0) * duration, rng)
        for record in harvest.out.glob("slides/*.json"):
            if rng.random() < 0.2:  # so that there is always something left to do
                record.unlink()
    harvest.finish()
    assert digests(harvest.out) == digests(tmp_path / "undisturbed")
    names = {str(path.relative_to(harvest.out)) for path in harvest.out.rglob("*")}
    assert names == {
        str(path.relative_to(tmp_path / "undisturbed")) for path in (tmp_path / "undisturbed").rglob("*")
    }


def test_killed_five_times_at_random(small_slides, tmp_path):
    kill_again_and_again(small_slides, tmp_path, times=5, seed=1)


@pytest.mark.slow
def test_killed_fifty_times_at_random(small_slides, tmp_path):
    kill_again_and_again(small_slides, tmp_path, times=50, seed=2)


COUNTER = """
import os, signal
from patch_extraction.counters.base import HaematoxylinCounter
def deadly_once(image, mpp):
    if image.mean() < 230 and os.path.exists("armed"):
        os.remove("armed")
        os.kill(os.getpid(), signal.SIGSEGV)
    return HaematoxylinCounter().find(image, mpp)
"""


def test_slides_that_hang_or_crash_cost_themselves_only(small_slides, harvest_here, tmp_path, monkeypatch):
    (tmp_path / "wsi").mkdir()
    for name in ("a.tif", "b.tif"):
        shutil.copy(small_slides / name, tmp_path / "wsi" / name)
    shutil.copy(small_slides / "0b.tif", tmp_path / "wsi" / "aa.svs")
    (tmp_path / "deadly_counter.py").write_text(COUNTER)
    (tmp_path / "armed").touch()
    monkeypatch.syspath_prepend(tmp_path)
    words = (
        "--wsi-dir",
        "wsi",
        "--workers",
        1,
        "--slide-minutes",
        0.06,
        "--counter",
        "deadly_counter:deadly_once",
    )
    with hanging(tmp_path / "wsi" / "aa.svs"):
        done = harvest_here(*words)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert reasons(tmp_path / "shards") == {
        "a.tif": "wsi/a.tif brought its process down (Segmentation fault); copy it again or remove it",
        "aa.svs": "wsi/aa.svs was given up after 0.06 minutes; copy it again, or give it more time with "
        "--slide-minutes",
    }
    assert "patches in 1 of" in done.stdout
    assert not list((tmp_path / "shards").rglob(".*.tmp"))
    (tmp_path / "wsi" / "aa.svs").unlink()
    again = harvest_here(*words)
    assert again.returncode == 0, again.stderr
    assert "1 of 2 slides are done already" in again.stdout


def test_a_full_disk_stops_the_harvest_and_room_lets_it_go_on(undisturbed, wsi_dir, harvest_here, tmp_path):
    """On a file system of 1.5 MB: about one slide fits."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o"]
    if subprocess.run([*mount, "size=1500k", "tmpfs", place], capture_output=True, check=False).returncode:
        pytest.skip("only the superuser can make a small disk")
    try:
        words = ("--wsi-dir", wsi_dir, "--out", place / "out", "--shard-size", 20, *COMMON)
        done = harvest_here(*words)
        assert done.returncode == 2
        assert "No space left on device; make room" in error_of(done)
        assert not (place / "out" / "index.json").exists()
        assert not list((place / "out").rglob(".*.tmp"))
        subprocess.run([*mount, "remount,size=50m", place], check=True)
        again = harvest_here(*words)
        assert again.returncode == 0, again.stderr
        assert digests(place / "out") == digests(undisturbed[0])
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(small_slides, harvest_here, tmp_path):
    (tmp_path / "wsi").mkdir()
    for name in ("a.tif", "b.tif", "0a.tif"):
        shutil.copy(small_slides / name, tmp_path / "wsi" / name)
    shutil.copy(small_slides / "a.tif", tmp_path / "wsi" / "copy.tif")
    (tmp_path / "wsi" / "text.svs").write_text("This is no slide.\n")
    shutil.copy(small_slides / "0b.tif", tmp_path / "wsi" / "hangs.svs")
    files = [path for path in (tmp_path / "wsi").iterdir() if path.is_file()]
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in files}
    with hanging(tmp_path / "wsi" / "hangs.svs"):
        done = harvest_here("--wsi-dir", "wsi", "--dry-run", "--slide-minutes", 0.02)
    assert done.returncode == 3, done.stderr
    assert "would fail: wsi/hangs.svs was given up after 0.02 minutes" in done.stdout
    (tmp_path / "wsi" / "hangs.svs").unlink()
    del before[tmp_path / "wsi" / "hangs.svs"]
    assert harvest_here("--wsi-dir", "wsi", "--dry-run", "--launcher", "slurm").returncode == 3  # submits nothing
    assert "6 slides: 3 to do, 1 duplicate, 2 failed; at most 500 patches of 128 um a slide" in done.stdout
    assert "would fail: wsi/text.svs is not a slide" in done.stdout
    assert not (tmp_path / "shards").exists()
    assert {path: hashlib.sha256(path.read_bytes()).digest() for path in (tmp_path / "wsi").iterdir()} == before


def test_a_dry_run_of_what_is_done_and_of_what_cannot_be(undisturbed, wsi_dir, harvest_here, tmp_path):
    done = harvest_here("--wsi-dir", wsi_dir, "--out", undisturbed[0], *COMMON, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "3 slides: 3 done; at most" in done.stdout
    (tmp_path / "wsi").mkdir()
    (tmp_path / "wsi" / "a.svs").write_text("This is no slide.\n")
    none = harvest_here("--wsi-dir", "wsi", "--dry-run")
    assert none.returncode == 2
    assert "none of the slides in wsi can be harvested" in error_of(none)


def test_a_dry_run_of_a_part_looks_at_that_part(wsi_dir, harvest_here):
    for part, slides in (("1/4", ["Ki-67/S.1 ü.a.svs"]), ("3/4", ["plain.tif"]), ("4/4", [])):
        done = harvest_here("--wsi-dir", wsi_dir, *COMMON, "--dry-run", "--part", part)
        assert done.returncode == 0, done.stderr
        assert f"{len(slides)} slides: " in done.stdout
        named = [name for name in ("Ki-67/S.1 ü.a.svs", "PD-L1/S.1 ü.a.svs", "plain.tif") if name in done.stdout]
        assert named == slides


# A harvest whose worker outlives being killed, as one does that waits for a disk which does not answer.
STUCK = """
import multiprocessing.context, os, sys, time
from pathlib import Path
from patch_extraction.harvesting import workers
from patch_extraction.config import HarvestConfig, SlideEntry
from patch_extraction.harvesting.slide_harvest import failed_record

config = HarvestConfig(wsi_dir=Path("wsi"), out=Path("out"), slide_minutes=0.02, workers=1)

def hang(source, on_progress):
    if source.name == "b.svs":
        return failed_record(source, config, "done after it", 0)
    Path(sys.argv[1]).write_text(str(os.getpid()))
    time.sleep(3600)

if __name__ == "__main__":
    workers.KILL_SECONDS = 0.2
    multiprocessing.context.ForkServerProcess.kill = lambda process: None
    sources = [SlideEntry(Path(name), name, f"{name[0]}_0", "", None, {}) for name in ("a.svs", "b.svs")]
    for record, _ in workers.run_isolated(hang, sources, config):
        print(record.reason if record else "", flush=True)
"""


def test_nobody_waits_for_a_worker_that_cannot_be_killed(tmp_path):
    (tmp_path / "stuck.py").write_text(STUCK)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    words = [sys.executable, "stuck.py", str(tmp_path / "number")]
    try:
        done = subprocess.run(
            words, **{"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 60}
        )
        assert done.returncode == 0, done.stderr
        assert "a.svs was given up after 0.02 minutes" in done.stdout
        assert "done after it" in done.stdout  # by another process in its place
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int((tmp_path / "number").read_text()), signal.SIGKILL)
