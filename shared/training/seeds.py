"""Seeds that depend on the position in a run, so that a resumed run draws the same numbers."""

import numpy as np
import torch


def seed_batch(seed: int, batch: int, rank: int) -> None:
    """Seed torch's generators (of the CPU and the GPU) for one batch of one rank.

    Whatever ran before, a resumed run draws the same dropout and masks as one that was never interrupted.
    """
    torch.manual_seed(int(np.random.SeedSequence((seed, batch, rank)).generate_state(1, np.uint64)[0] >> 1))
