"""`python -m tests.benchmarks.detector`: the whole detector, plain against smoothing only what is sampled.

On a GPU also plain eager float32 against the sampled, channels-last, bfloat16, compiled network.
"""

from pathlib import Path

import torch

from shared.detector import Config, Detector
from tests.benchmarks.measuring import in_turn, machine, write

SIDE = 1024
OUT = Path(__file__).with_suffix(".csv")


def main() -> None:
    """Time, print the ratios, write the CSV (one for a CPU, one for a GPU)."""
    on_gpu = torch.cuda.is_available()
    rows = [sampled_against_plain(torch.device("cuda" if on_gpu else "cpu"))]
    if on_gpu:
        rows.append(everything_against_plain())
    write(OUT.with_stem("detector_gpu") if on_gpu else OUT, rows)


@torch.inference_mode()
def sampled_against_plain(device: torch.device) -> dict[str, object]:
    """The same network twice."""
    torch.manual_seed(0)
    detector = Detector(Config(classes=10)).eval().to(device)
    image = torch.rand(1, 3, SIDE, SIDE, device=device)

    def run(samples_smoothing: bool) -> torch.Tensor:
        detector.samples_smoothing = samples_smoothing
        return detector(image).points_BN2

    difference = (run(True) - run(False)).abs().max().item()
    seconds = in_turn({"plain": lambda: run(False), "sampled": lambda: run(True)}, repeats=8)
    return row("smooth only what is sampled", seconds["plain"], seconds["sampled"], difference)


@torch.inference_mode()
def everything_against_plain() -> dict[str, object]:
    """A batch of 8 on the GPU."""
    torch.manual_seed(0)
    plain = Detector(Config(classes=10)).eval().cuda()
    plain.samples_smoothing = False
    fast = Detector(Config(classes=10)).eval().cuda().to(memory_format=torch.channels_last)
    fast.load_state_dict(plain.state_dict())
    compiled = torch.compile(fast)
    image = torch.rand(8, 3, SIDE, SIDE, device="cuda")
    image_cl = image.to(memory_format=torch.channels_last)

    def run_fast() -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return compiled(image_cl).points_BN2

    difference = (run_fast() - plain(image).points_BN2).abs().max().item()
    seconds = in_turn({"plain": lambda: plain(image), "fast": run_fast}, repeats=8)
    return row("sampled, channels last, bfloat16, compiled", seconds["plain"], seconds["fast"], difference)


def row(what: str, plain: float, fast: float, difference: float) -> dict[str, object]:
    """A line of the CSV."""
    return {
        "what": what,
        "image_px": SIDE,
        "plain_ms": round(1000 * plain, 1),
        "fast_ms": round(1000 * fast, 1),
        "ratio": round(plain / fast, 2),
        "largest_difference_px": f"{difference:.1e}",
    }


if __name__ == "__main__":
    print(machine())
    main()
