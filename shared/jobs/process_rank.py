"""The number of a process among all that a launcher started; does not import torch."""

import os
from collections.abc import Mapping
from typing import NamedTuple


class Numbering(NamedTuple):
    """The number of a process among all, among those of its node, and how many there are."""

    rank: int
    local_rank: int
    size: int


def numbering_of_process(environment: Mapping[str, str] = os.environ) -> Numbering | None:
    """From the variables of torchrun, or of SLURM where the launcher set them; None: started by neither."""
    if "RANK" in environment:
        local_rank = int(environment.get("LOCAL_RANK", 0))
        return Numbering(int(environment["RANK"]), local_rank, int(environment["WORLD_SIZE"]))
    if "SLURM_PROCID" in environment and "MASTER_ADDR" in environment:
        local_rank = int(environment["SLURM_LOCALID"])
        return Numbering(int(environment["SLURM_PROCID"]), local_rank, int(environment["SLURM_NTASKS"]))
    return None
