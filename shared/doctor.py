"""`python -m shared.doctor [FOLDER]`: check that this machine can run the stages, and what to do if it cannot."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from packaging.requirements import Requirement

from shared.cli import parse, run
from shared.errors import UserError
from shared.files import SHARED_MEMORY, atomic_path, lock_error
from shared.weights.shipped import NUCLEI_FILE

State = Literal["ok", "note", "missing"]
PROJECT = "dpa-p2pnet"
MIN_SHARED_MEMORY = 2**30  # bytes; the published recipes of pre-training keep about 1 GB of crops ahead
PROBE = b"\0" * 2**26  # 64 MiB
SIGNS: dict[State, str] = {"ok": "ok     ", "note": "note   ", "missing": "MISSING"}


@dataclass(frozen=True)
class DoctorConfig:
    """Check Python, packages, GPU, Slurm, shared memory, and the file system of a folder for output.

    Exit code 0: every stage can run; 1: something is missing, named with its remedy.
    """

    folder: Annotated[Path, tyro.conf.Positional] = Path()
    """Folder for output, on the file system to check."""
    json: bool = False
    """Print the result as JSON."""


@dataclass(frozen=True)
class Finding:
    """Result of one check."""

    name: str
    state: State
    found: str
    remedy: str = ""


def examine(config: DoctorConfig) -> int:
    """Run all checks and print them; returns the exit code.

    Raises:
        UserError: the folder does not exist.
    """
    if not config.folder.is_dir():
        raise UserError(
            f"{config.folder} is not a folder; give an existing one, on the file system of your output"
        )
    findings = [*_software(), *_gpu(), _slurm(), _shared_memory(), *_file_system(config.folder)]
    if config.json:
        print(json.dumps([dataclasses.asdict(each) for each in findings], indent=2))
    else:
        for each in findings:
            print(f"{SIGNS[each.state]} {each.name:<15} {each.found}")
            if each.remedy:
                print(f"{'':<24}{each.remedy}")
    return int(any(each.state == "missing" for each in findings))


def _software() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("Python", "ok", f"{platform.python_version()} on {platform.platform()}, {cores} CPU cores")
    yield _packages()
    yield _openslide()
    if NUCLEI_FILE.is_file():
        yield Finding("weights", "ok", f"{NUCLEI_FILE.name} ({NUCLEI_FILE.stat().st_size / 2**20:.0f} MiB)")
    else:
        yield Finding(
            "weights",
            "missing",
            f"{NUCLEI_FILE} does not exist",
            f"restore it: git checkout -- {NUCLEI_FILE}",
        )


def _packages() -> Finding:
    """Compare installed packages with the requirements of the project."""
    try:
        requirements = [Requirement(line) for line in importlib.metadata.requires(PROJECT) or []]
    except importlib.metadata.PackageNotFoundError:
        return Finding("packages", "missing", f"{PROJECT} is not installed", "run: make setup")
    wanted = [each for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    wrong = []
    for requirement in wanted:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement} (absent)")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement} (installed: {version})")
    if wrong:
        return Finding(
            "packages", "missing", ", ".join(wrong), f"run: {sys.executable} -m pip install --editable ."
        )
    return Finding("packages", "ok", f"all {len(wanted)} as required, torch {importlib.metadata.version('torch')}")


def _openslide() -> Finding:
    try:
        import openslide
    except (ImportError, OSError) as error:
        return Finding("OpenSlide", "missing", str(error), f"run: {sys.executable} -m pip install openslide-bin")
    return Finding("OpenSlide", "ok", f"library {openslide.__library_version__}")


def _gpu() -> Iterator[Finding]:
    import torch

    from shared.training.precision import processor_computes_bfloat16

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            bfloat16 = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bfloat16"
            yield Finding(f"GPU {index}", "ok", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, {bfloat16}")
        return
    if driver := _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"):
        remedy = (
            f"torch needs a driver for CUDA {torch.version.cuda}: update it, or install a torch for an older CUDA"
        )
        yield Finding("GPU", "missing", f"{driver}, but torch cannot use it", remedy)
    else:
        yield Finding("GPU", "note", "none; the demo and small trainings run on the CPU")
    half = "computes in bfloat16" if processor_computes_bfloat16() else "has no bfloat16; trainings use float32"
    yield Finding("processor", "ok", half)


def _slurm() -> Finding:
    version = _output("sbatch", "--version")
    if not version:
        return Finding("Slurm", "note", "no sbatch; commands run on this machine, `--launcher slurm` does not")
    absent = [name for name in ("srun", "squeue", "scontrol", "scancel") if shutil.which(name) is None]
    if absent:
        return Finding(
            "Slurm", "missing", f"{version} without {', '.join(absent)}", "install Slurm's client commands"
        )
    accounting = "with" if _output("sacct", "--noheader", "--jobs=1") is not None else "without"
    return Finding("Slurm", "ok", f"{version}, {accounting} accounting")


def _shared_memory() -> Finding:
    if not SHARED_MEMORY.is_dir():
        return Finding("shared memory", "note", f"no {SHARED_MEMORY} on this system")
    total, _, free = shutil.disk_usage(SHARED_MEMORY)
    found = f"{SHARED_MEMORY}: {free / 2**30:.1f} of {total / 2**30:.1f} GiB are free"
    if free < MIN_SHARED_MEMORY:
        return Finding("shared memory", "note", found, "containers: docker run --shm-size=8g, or --ipc=host")
    return Finding("shared memory", "ok", found)


def _file_system(folder: Path) -> Iterator[Finding]:
    """Write a file and lock it, in a temporary folder below `folder`."""
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".doctor-") as name:
            speed = _write_speed(Path(name, "probe"))
            locks = _locks(Path(name, "probe"))
    except OSError as error:
        found = f"cannot write to {folder.resolve()}: {error.strerror}"
        yield Finding("output", "missing", found, "choose another folder")
        return
    free = shutil.disk_usage(folder).free / 2**30
    yield Finding("output", "ok", f"{folder.resolve()}: {speed:.0f} MiB/s written, {free:.0f} GiB free")
    yield locks


def _write_speed(path: Path) -> float:
    """MiB/s of a synced write that replaces a file, as all stages write."""
    path.touch()
    start = time.perf_counter()
    with atomic_path(path) as temporary:
        temporary.write_bytes(PROBE)
    return len(PROBE) / 2**20 / (time.perf_counter() - start)


def _locks(path: Path) -> Finding:
    if reason := lock_error(path):
        found = f"none ({reason}); two commands in one folder are not kept apart"
        return Finding("locks", "note", found, "Lustre: mount with flock; NFS: start lockd")
    return Finding("locks", "ok", "POSIX locks work")


def _output(*command: str) -> str | None:
    """First line that a command prints; None if it does not exist or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return (done.stdout.strip().splitlines() or [""])[0]


if __name__ == "__main__":
    run(lambda: examine(parse(DoctorConfig, "python -m shared.doctor")))
