"""What the benchmarks share: timing two things in turn, and a CSV that says where and when."""

import csv
import datetime
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from shared.training.run_folder import git_commit, versions

Result = TypeVar("Result")
PACKAGES = ("python", "torch", "numpy", "scipy")


def in_turn(
    works: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Shortest seconds of each; one after another in every round, so that a busy machine slows all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            seconds[name].append(timed(work, clock)[0])
    return {name: min(each) for name, each in seconds.items()}


def timed(work: Callable[[], Result], clock: Callable[[], float] = time.perf_counter) -> tuple[float, Result]:
    """Seconds and result of one call; waits for the GPU."""
    start = clock()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start, result


def write(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write the rows, each with machine, versions, commit and date; printed as well."""
    installed = versions()
    about = {
        "machine": machine(),
        "versions": ", ".join(f"{name} {installed[name]}" for name in PACKAGES),
        "commit": git_commit(),
        "date": datetime.date.today().isoformat(),
    }
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], *about])
        writer.writeheader()
        writer.writerows({**row, **about} for row in rows)
    for row in rows:
        print(", ".join(f"{name} {value}" for name, value in row.items()))


def measured_here(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV that this commit measured on this machine: an interrupted benchmark goes on after them."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if (row["machine"], row["commit"]) == (machine(), git_commit())]


def machine() -> str:
    """Return the GPU's name, or the processor's with the number of threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {torch.get_num_threads()} threads"
