"""`python -m finetune.sweep TABLE --data DIR --seeds 0,1,2`: train a table's rows, print it beside the paper's."""

import signal

from shared.cli import parse, run
from shared.signals import StopSignal


def main() -> int:
    """Run; returns 0, 2 (refused), 3 (some runs failed) or 85 (stopped; the same command goes on)."""
    stop = StopSignal(signal.SIGINT)  # before torch, as in finetune
    from finetune.sweep.config import SweepConfig
    from finetune.sweep.run import sweep

    return sweep(parse(SweepConfig, "python -m finetune.sweep"), stop)


if __name__ == "__main__":
    run(main)
