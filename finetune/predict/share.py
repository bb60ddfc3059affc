"""Which slides fall to this process: a part of an array of jobs, a rank of torchrun or Slurm, or all of them."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from shared.command_line import UserError
from shared.distributed import place_of_process


@dataclass(frozen=True)
class Share:
    """Each `size`-th slide, from the `rank`-th on. Processes need not talk to each other, so none waits."""

    rank: int
    size: int
    device: str | None = None
    """The rank's GPU; None: choose."""


def share_of_process(part: str | None, environment: Mapping[str, str] = os.environ) -> Share:
    """From `--part I/N` and the variables of torchrun, or of Slurm where the launcher set them.

    Raises:
        UserError: the part is not of that form.
    """
    number, parts = _numbers(part)
    place = place_of_process(environment)
    if place is None:
        return Share(number, parts)
    gpus = torch.cuda.device_count()
    # Where a task is shown just its own GPU, that is the first.
    device = f"cuda:{place.local_rank % gpus}" if gpus else None
    return Share(number * place.size + place.rank, parts * place.size, device)


def _numbers(part: str | None) -> tuple[int, int]:
    """Part 3/16 is number 2 of 16."""
    if part is None:
        return 0, 1
    form = re.fullmatch(r"(\d{1,6})/(\d{1,6})", part)
    if form is None or not 1 <= int(form[1]) <= int(form[2]):
        raise UserError(f"--part {part} is not of the form I/N, such as 3/16")
    return int(form[1]) - 1, int(form[2])
