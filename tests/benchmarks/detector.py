"""`python -m tests.benchmarks.detector`: the whole detector as it predicts, against the same written plainly.

Plainly: weights and maps in torch's usual layout, every level smoothed everywhere. On a CPU with all its threads:
the machine should be idle. On a GPU there is a second comparison, with the detector in bfloat16 and compiled.
"""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import torch
from torch import nn

from shared.model.dpa_p2pnet import Detections, DetectorConfig, DPAP2PNet
from shared.model.proposals import proposal_grid
from tests.benchmarks.measuring import in_turn, measured_here, write

SIDE = 1024
OUT = Path(__file__).with_suffix(".csv")


def main() -> None:
    """Time, print the ratios, write the CSV (one for a CPU, one for a GPU)."""
    if torch.cuda.is_available():
        device = torch.device("cuda")
        out = OUT.with_stem("detector_gpu")
        if not measured_here(out):
            write(out, [*parts_of_the_gain(device), everything_on_a_gpu()])
    else:
        write(OUT, parts_of_the_gain(torch.device("cpu")))


def plainly(detector: DPAP2PNet, image_BCHW: torch.Tensor) -> Detections:
    """Compute what the detector does for one view with sides divisible by 64, without what makes it fast."""
    height, width = image_BCHW.shape[-2:]
    grid_RS2 = proposal_grid(height, width, detector.config.interval, image_BCHW.device)
    maps = detector.backbone((image_BCHW - detector.mean) / detector.std)
    return detector.decoder(detector.neck(maps), grid_RS2)


@torch.inference_mode()
def parts_of_the_gain(device: torch.device) -> list[dict[str, object]]:
    """Measure the same weights in turn: plainly, with channels last, and as the detector does it."""
    plain, detector = random_detectors(device)
    image = torch.rand(1, 3, SIDE, SIDE, device=device)

    def run(samples_smoothing: bool) -> Detections:
        detector.samples_smoothing = samples_smoothing
        return detector(image)

    works: dict[str, Callable[[], Detections]] = {
        "plainly": lambda: plainly(plain, image),
        "channels last": lambda: run(False),
        "channels last, smoothed only where sampled": lambda: run(True),
    }
    results = {name: work() for name, work in works.items()}
    seconds = in_turn(works, repeats=8)
    return [row(name, seconds, results) for name in list(works)[1:]]


@torch.inference_mode()
def everything_on_a_gpu() -> dict[str, object]:
    """Measure a batch of 8, also in bfloat16 and compiled."""
    plain, detector = random_detectors(torch.device("cuda"))
    compiled = torch.compile(detector)
    image = torch.rand(8, 3, SIDE, SIDE, device="cuda")

    def fast() -> Detections:
        with torch.autocast("cuda", torch.bfloat16):
            return compiled(image)

    name = "channels last, smoothed only where sampled, bfloat16, compiled; batch of 8"
    works: dict[str, Callable[[], Detections]] = {"plainly": lambda: plainly(plain, image), name: fast}
    results = {each: work() for each, work in works.items()}
    return row(name, in_turn(works, repeats=8), results)


def random_detectors(device: torch.device) -> tuple[DPAP2PNet, DPAP2PNet]:
    """Make detectors of the same weights, no part silent, in the usual layout and in that of loaded ones."""
    torch.manual_seed(0)
    plain = DPAP2PNet(DetectorConfig(classes=10)).eval().to(device)
    for name, parameter in plain.named_parameters():
        if name.endswith("bn3.weight"):
            nn.init.constant_(parameter, 0.5)  # zero in timm
        if name.endswith("deform.3.weight"):
            nn.init.normal_(parameter)  # zero before training: proposals would not move
    return plain, deepcopy(plain).to(memory_format=torch.channels_last)


def row(what: str, seconds: dict[str, float], results: dict[str, Detections]) -> dict[str, object]:
    """Return a line of the CSV."""
    points, logits = (
        (getattr(results[what], name) - getattr(results["plainly"], name)).abs().max().item()
        for name in ("points_BN2", "logits_BNC")
    )
    return {
        "what": what,
        "image_px": SIDE,
        "plain_ms": round(1000 * seconds["plainly"], 1),
        "fast_ms": round(1000 * seconds[what], 1),
        "ratio": round(seconds["plainly"] / seconds[what], 2),
        "largest_difference_px": f"{points:.1e}",
        "largest_difference_of_logits": f"{logits:.1e}",
    }


if __name__ == "__main__":
    main()
