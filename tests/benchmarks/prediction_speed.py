"""`python -m tests.benchmarks.prediction_speed`: mm2/s of `python -m finetune.predict` on a slide, with a GPU.

A sample slide of 17 mm2 and an untrained DPA-P2PNet at 0.25 um/px: the command as it is typed, from its start to
the written report, and how busy the GPU is in the meantime (nvidia-smi, twice a second).
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean

import torch
from openslide import OpenSlide

from shared.model.detector_file import save_detector
from shared.model.dpa_p2pnet import DetectorConfig, DPAP2PNet
from shared.samples.sample_slides import write_slide
from shared.samples.specimen import section
from tests.benchmarks.measuring import measured_here, write

OUT = Path(__file__).with_suffix(".csv")
SIDE, SIDE_ON_CPU, MPP = 16_384, 1024, 0.25
METER = ("nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=500", "--id=0")


def main() -> None:
    """Measure several numbers of reading processes; on a CPU a small slide, to see that it runs."""
    on_gpu = torch.cuda.is_available()
    if on_gpu and measured_here(OUT):
        return
    with tempfile.TemporaryDirectory() as folder:
        slide, detector = prepared(Path(folder), SIDE if on_gpu else SIDE_ON_CPU)
        rows = [measured(slide, detector, workers, on_gpu) for workers in ((2, 8) if on_gpu else (1,))]
    if on_gpu:
        write(OUT, rows)
    print(rows)


def prepared(folder: Path, side: int) -> tuple[Path, Path]:
    """Prepare a slide and a detector."""
    torch.manual_seed(0)
    slide = folder / "slide.tif"
    write_slide(slide, section(0, side * MPP, side * MPP), MPP)
    detector = DPAP2PNet(DetectorConfig(classes=2))
    save_detector(folder / "detector.pth", detector, {"classes": ["negative", "positive"], "mpp": MPP})
    return slide, folder / "detector.pth"


def measured(slide: Path, detector: Path, workers: int, on_gpu: bool) -> dict[str, object]:
    """One prediction."""
    out = slide.with_name(f"cells-{workers}")
    words = [sys.executable, "-m", "finetune.predict", detector, slide, "--out", out, "--everywhere"]
    meter = subprocess.Popen(METER, stdout=subprocess.PIPE, text=True) if on_gpu else None
    start = time.perf_counter()
    subprocess.run([*map(str, words), "--workers", str(workers), "--batch-size", "8"], check=True)
    seconds = time.perf_counter() - start
    busy: list[int] = []
    if meter is not None:
        meter.terminate()
        busy = [int(line) for line in meter.communicate()[0].split() if line.isdigit()]
    width, height = OpenSlide(str(slide)).dimensions
    area = width * height * MPP**2 / 1e6
    return {
        "workers": workers,
        "mm2": round(area, 2),
        "seconds": round(seconds, 1),
        "mm2_per_second": round(area / seconds, 3),
        "gpu_busy_percent": round(mean(busy)) if busy else "",
    }


if __name__ == "__main__":
    main()
