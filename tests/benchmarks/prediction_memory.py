"""`python -m tests.benchmarks.prediction_memory`: memory and time of writing millions of cells, as CSV.

A made-up slide on which a made-up detector finds a cell every 8 px goes through everything that a prediction
does but the network: tiles, cells on disk, seams, GeoJSON, CSV, pictures, report.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from PIL import Image
from torch import Tensor, nn

from finetune.predict import slide_job
from finetune.predict.config import PredictConfig
from finetune.predict.prediction_plan import PredictPlan
from shared.model.cells import DetectedCells
from shared.model.decoders import Detections
from shared.model.detector_file import LoadedDetector
from shared.model.dpa_p2pnet import DetectorConfig
from shared.model.proposals import proposal_grid
from shared.signals import StopSignal
from tests.benchmarks.measuring import write

SPACING = 8  # px between cells
MPP = 0.5


class Crowd(nn.Module):
    """Finds a cell at every proposal."""

    def __init__(self) -> None:
        super().__init__()
        self.config = DetectorConfig(arch="resnet50", classes=3, interval=SPACING)

    def forward(self, image_BCHW: Tensor) -> Detections:
        """Wherever it looks."""
        grid_N2 = proposal_grid(*image_BCHW.shape[-2:], SPACING).flatten(0, 1)
        points_BN2 = grid_N2.expand(len(image_BCHW), -1, -1)
        logits_NC = torch.zeros(len(grid_N2), 4)
        logits_NC[torch.arange(len(grid_N2)), torch.arange(len(grid_N2)) % 3] = 2.0
        return Detections(grid_N2, points_BN2, points_BN2, logits_NC.expand(len(image_BCHW), -1, -1))

    def detect(self, image_BCHW: Tensor, threshold: float | None = None) -> list[DetectedCells]:
        """See `CellDetector`."""
        return self(image_BCHW).cells(threshold)


@dataclass
class Blank:
    """An image of any size that takes no memory."""

    size: tuple[int, int]
    path: Path = Path("blank")
    mpp: float = MPP

    def read(self, x: float, y: float, width: int, height: int, mpp: float) -> Image.Image:
        """White."""
        return Image.new("RGB", (width, height), "white")

    def overview(self, mpp: float) -> Image.Image:
        """White."""
        return Image.new("RGB", tuple(max(1, round(side * self.mpp / mpp)) for side in self.size), "white")

    def close(self) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Options:
    """Measure in a process of its own for each number of cells."""

    cells: tuple[int, ...] = (100_000, 500_000, 2_000_000)
    out: Path = Path(__file__).with_suffix(".csv")
    in_this_process: bool = False


def measure(cells: int, folder: Path) -> dict[str, float]:
    """Write so many cells; memory in MB above that of the empty process, seconds, and what was counted."""
    side = round((cells**0.5) * SPACING)
    source = Blank((side, side))
    slide_job.open_source = lambda *_: source
    torch.set_num_threads(1)
    image = folder / "blank.png"
    image.write_bytes(b"blank")
    detector = LoadedDetector(image, Crowd(), ("a", "b", "c"), MPP, torch.device("cpu"))
    config = PredictConfig(detector=image, sources=(image,), out=folder / "out", workers=0, batch_size=1)
    job = slide_job.SlideJob(PredictPlan(config, detector, "", ()), image, Path("blank"))
    _predict(replace(job, path=image), 1024)  # what is loaded at first use is no matter of cells
    before = peak_mb()
    start, cpu_start = time.perf_counter(), time.process_time()
    summary = slide_job.predict_slide(job, StopSignal())
    assert summary is not None
    return {
        "cells": summary["cells"],
        "base_mb": round(before),
        "peak_mb": round(peak_mb()),
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu_start, 1),
    }


def _predict(job: slide_job.SlideJob, side: int) -> None:
    """Run a small prediction."""
    known = slide_job.open_source
    slide_job.open_source = lambda *_: Blank((side, side))
    slide_job.predict_slide(replace(job, name=Path("small")), StopSignal())
    slide_job.open_source = known


def peak_mb() -> float:
    """Most memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(cells: int) -> dict[str, float]:
    """Measure the same in a process of its own."""
    words = [
        sys.executable,
        "-m",
        "tests.benchmarks.prediction_memory",
        "--in-this-process",
        "--cells",
        str(cells),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure, and write the table."""
    options = tyro.cli(Options, description=__doc__)
    if options.in_this_process:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(options.cells[0], Path(folder))))
        return
    write(options.out, [measured(cells) for cells in options.cells])


if __name__ == "__main__":
    main()
