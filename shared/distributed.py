"""Ranks: the process group from SLURM, torchrun or a single process, and the wish to stop."""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

from shared.stop_signal import StopSignal, ignore_signals_in_worker

__all__ = [
    "StopSignal",
    "World",
    "any_rank",
    "ignore_signals_in_worker",
    "mean_over_ranks",
    "start",
    "stop",
    "wait_for_all",
]


@dataclass(frozen=True)
class World:
    """This process among the others."""

    rank: int
    local_rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and draws the progress bar."""
        return self.rank == 0


def start() -> World:
    """Join the process group that the environment describes: torchrun's variables, SLURM's, or none.

    Under SLURM, MASTER_ADDR and MASTER_PORT come from the sbatch script.
    """
    environment = os.environ
    if "RANK" in environment:
        rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        local_rank = int(environment.get("LOCAL_RANK", 0))
    elif "SLURM_PROCID" in environment and "MASTER_ADDR" in environment:
        rank, size = int(environment["SLURM_PROCID"]), int(environment["SLURM_NTASKS"])
        local_rank = int(environment["SLURM_LOCALID"])
    else:
        rank, size, local_rank = 0, 1, 0
    device = _device(local_rank)
    if size > 1:
        # Data-loader workers and libraries look for the rank in torchrun's variables.
        environment.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(local_rank))
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, device_id=device if device.type == "cuda" else None)
    return World(rank, local_rank, size, device)


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Go on only when every rank has come here."""
    if dist.is_initialized():
        dist.barrier()


def mean_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over all ranks (itself in a single process)."""
    if dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is up on any rank; every rank gets the same answer."""
    if not dist.is_initialized():
        return flag
    value = torch.tensor(float(flag), device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def _device(local_rank: int) -> torch.device:
    """The rank's GPU; the only one if the launcher shows each task just its own."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", 0 if torch.cuda.device_count() == 1 else local_rank)
    torch.cuda.set_device(device)
    return device
