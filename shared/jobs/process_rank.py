"""The number of a process among all that a launcher started; does not import torch."""

import os
from collections.abc import Mapping
from typing import NamedTuple

from shared.errors import UserError


class Numbering(NamedTuple):
    """The number of a process among all, among those of its node, and how many there are."""

    rank: int
    local_rank: int
    size: int


def numbering_of_process(environment: Mapping[str, str] = os.environ) -> Numbering | None:
    """Read the variables of torchrun, or of SLURM where the launcher set MASTER_ADDR; None: started by neither.

    Raises:
        UserError: a variable is missing or no number.
    """
    if "RANK" in environment:
        return _numbering(environment, ("RANK", "LOCAL_RANK", "WORLD_SIZE"), "torchrun")
    if "SLURM_PROCID" in environment and "MASTER_ADDR" in environment:
        return _numbering(environment, ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS"), "srun")
    return None


def _numbering(environment: Mapping[str, str], names: tuple[str, str, str], launcher: str) -> Numbering:
    values = {name: environment.get(name, "0" if name == "LOCAL_RANK" else "") for name in names}
    for name, value in values.items():
        if not value.isdecimal():
            problem = f"is {value!r}, no number" if value else "is not set"
            raise UserError(f"{names[0]} is set, but {name} {problem}; start with {launcher}, or unset {names[0]}")
    return Numbering(*map(int, values.values()))
