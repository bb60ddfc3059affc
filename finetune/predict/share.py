"""Share of this process in the slides: a part of an array of jobs, a rank of torchrun or Slurm, or all."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from shared.jobs.partition import Part
from shared.jobs.process_rank import numbering_of_process


@dataclass(frozen=True)
class Share:
    """Every `size`-th slide, from the `rank`-th on, so that processes need no communication."""

    rank: int
    size: int
    device: str | None = None
    """GPU of the rank; None: the default device."""


def share_of_process(part: str | None, environment: Mapping[str, str] = os.environ) -> Share:
    """Read the share from `--part I/N` and the variables of torchrun, or of Slurm where the launcher set them.

    Raises:
        UserError: the part is not of that form.
    """
    mine = Part(1, 1) if part is None else Part.of_text(part)
    number, parts = mine.number - 1, mine.of
    ranks = numbering_of_process(environment)
    if ranks is None:
        return Share(number, parts)
    gpus = torch.cuda.device_count()
    # If a task sees only its own GPU, that is the first.
    device = f"cuda:{ranks.local_rank % gpus}" if gpus else None
    return Share(number * ranks.size + ranks.rank, parts * ranks.size, device)
