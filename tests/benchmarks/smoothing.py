"""`python -m tests.benchmarks.smoothing`: smooth a level everywhere, or only where it is sampled?

For each of the finest levels of a 1024 px image, and each usual interval of proposals: the 3x3 convolution of
the whole map and samplings of it, against samplings that smooth. `chosen` is what the detector does, by
`SAMPLING_COST`; it should be `sampled` where the ratio is above one. Processor time of one thread, which other
work on the machine disturbs least.
"""

import time
from pathlib import Path

import torch
from torch import nn

from shared.model.decoders import PYRAMID_STRIDES
from shared.model.dpa_p2pnet import pays_to_sample
from shared.model.proposals import UnsmoothedLevel, proposal_grid, sample
from tests.benchmarks.measuring import in_turn, write

SIDE, CHANNELS = 1024, 256
OUT = Path(__file__).with_suffix(".csv")


def main() -> None:
    """Time, print, write the CSV."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    write(OUT, [compare(level, interval) for interval in (8, 16) for level in range(3)])


@torch.inference_mode()
def compare(level: int, interval: int) -> dict[str, object]:
    """One level; P2 is sampled twice, as the proposals are also deformed by it."""
    stride = PYRAMID_STRIDES[level]
    times = 2 if level == 0 else 1
    cells = SIDE // stride
    map_BCHW = torch.randn(1, CHANNELS, cells, cells).contiguous(memory_format=torch.channels_last)
    smooth = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
    points_BN2 = proposal_grid(SIDE, SIDE, interval).flatten(0, 1)[None]
    points_BN2 = points_BN2 + torch.randn_like(points_BN2)

    def everywhere() -> None:
        smoothed_BCHW = smooth(map_BCHW)
        for _ in range(times):
            sample(smoothed_BCHW, points_BN2, stride)

    def where_sampled() -> None:
        for _ in range(times):
            sample(UnsmoothedLevel(map_BCHW, smooth), points_BN2, stride)

    seconds = in_turn({"everywhere": everywhere, "sampled": where_sampled}, repeats=5, clock=time.process_time)
    return {
        "level": f"P{level + 2}",
        "interval": interval,
        "samplings": times,
        "everywhere_ms": round(1000 * seconds["everywhere"], 1),
        "sampled_ms": round(1000 * seconds["sampled"], 1),
        "ratio": round(seconds["everywhere"] / seconds["sampled"], 2),
        "chosen": "sampled" if pays_to_sample(times * points_BN2.shape[1], map_BCHW) else "everywhere",
    }


if __name__ == "__main__":
    main()
