"""A small folder of sample slides: two biomarkers, two resolutions, names that cause trouble."""

import contextlib
import csv
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from patch_extraction.__main__ import main
from shared.samples.sample_slides import write_slide
from shared.samples.specimen import Specimen, section
from tests.conftest import InProcess

REPOSITORY = Path(__file__).parents[2]
# One of the sample slides has 0.32 um/px; the classical counter starts without torch.
COMMON = ("--allow-upsampling", "--counter", "haematoxylin")
SIDE_UM = 512.0  # four patches of 128 um in each direction


@pytest.fixture(scope="session")
def specimens() -> list[Specimen]:
    return [section(seed, SIDE_UM, SIDE_UM) for seed in (21, 22)]


@pytest.fixture(scope="session")
def wsi_dir(specimens, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wsi")
    (folder / "Ki-67").mkdir()
    (folder / "PD-L1").mkdir()
    write_slide(folder / "Ki-67" / "S.1 ü.a.svs", specimens[0], 0.25, aperio=True)
    write_slide(folder / "PD-L1" / "S.1 ü.a.svs", specimens[1], 0.32, aperio=True)
    write_slide(folder / "plain.tif", specimens[1], 0.25)
    return folder


@pytest.fixture
def harvest_here(tmp_path, monkeypatch, in_process: InProcess):
    """As `command`, `python -m patch_extraction` only and in this process, which saves its start."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(words, *in_process(main, *words))

    return call


@contextlib.contextmanager
def hanging(path: Path) -> Iterator[None]:
    """Make a regular file hang whoever opens it: the kernel waits for its lease, for 45 s by default."""
    if int(Path("/proc/sys/fs/lease-break-time").read_text()) < 20:
        pytest.skip("leases are broken too soon on this system")
    asked = signal.signal(signal.SIGIO, signal.SIG_IGN)  # sent when the file is opened
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield
    except OSError as error:
        pytest.skip(f"this file system has no leases ({error})")
    finally:
        os.close(descriptor)
        signal.signal(signal.SIGIO, asked)


def digests(out: Path) -> dict[str, str]:
    """Return what readers of the shards see."""
    paths = [*out.glob("shard-*.tar"), out / "index.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def reasons(out: Path) -> dict[str, str]:
    """Why slides failed, by name, from `slides.csv`."""
    with (out / "slides.csv").open(encoding="utf-8") as file:
        return {row["slide"]: row["reason"] for row in csv.DictReader(file) if row["status"] == "failed"}


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


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one sentence that a refused command says; nothing else may follow it, and no trace of Python."""
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert done.stderr.splitlines()[-1] == lines[0]
    return lines[0]


@pytest.fixture(scope="session")
def undisturbed(wsi_dir, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Harvest by one process."""
    out = tmp_path_factory.mktemp("harvest") / "shards"
    words = ["--wsi-dir", str(wsi_dir), "--out", str(out), "--workers", "1", "--shard-size", "20", *COMMON]
    done = subprocess.run(
        [sys.executable, "-m", "patch_extraction", *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    return out, done
