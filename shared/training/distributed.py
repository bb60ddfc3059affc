"""Process group of the ranks that SLURM or torchrun started, or of a single process."""

import contextlib
import datetime
import inspect
import os
import platform
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from shared.errors import UserError
from shared.jobs.process_rank import Numbering, numbering_of_process
from shared.signals import STOPPED, StopSignal, ignore_signals_in_worker, leave_marker

# Time limit of collective operations; the first rank scores, draws and writes while the others wait.
PATIENCE = datetime.timedelta(minutes=30)

__all__ = [
    "StopSignal",
    "World",
    "any_rank",
    "end_at_checkpoint",
    "exchange_gradients",
    "from_first_rank",
    "ignore_signals_in_worker",
    "is_stopped",
    "mean_over_ranks",
    "replicated",
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
        """True on the rank that writes files and draws the progress bar."""
        return self.rank == 0


def start() -> World:
    """Join the process group that the environment describes: torchrun's variables, SLURM's, or none.

    Under SLURM, MASTER_ADDR and MASTER_PORT come from the sbatch script.

    Raises:
        UserError: several SLURM tasks that do not know each other, more ranks on a node than GPUs, or no way to
            the first rank.
    """
    environment = os.environ
    numbering = numbering_of_process()
    if numbering is None and int(environment.get("SLURM_PROCID", 0)) > 0:
        raise UserError(
            "several SLURM tasks were started without MASTER_ADDR and MASTER_PORT, so each would train by "
            "itself; start them with the scripts in slurm/, or ask for one task"
        )
    rank, local_rank, size = numbering or Numbering(rank=0, local_rank=0, size=1)
    device = _device(local_rank)
    if size > 1:
        # Data-loader workers and libraries read the rank from torchrun's variables.
        environment.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(local_rank))
        backend = "nccl" if device.type == "cuda" else "gloo"
        gpu = device if device.type == "cuda" else None
        try:
            dist.init_process_group(backend, device_id=gpu, timeout=PATIENCE)
        except (dist.DistNetworkError, ValueError) as error:  # ValueError: MASTER_ADDR or MASTER_PORT is not set
            raise UserError(_why_no_meeting(error)) from error
    elif device.type == "cuda" and (gpus := torch.cuda.device_count()) > 1:
        print(f"note: 1 of {gpus} GPUs is used; torchrun --nproc-per-node {gpus} -m MODULE ... uses all of them")
    return World(rank, local_rank, size, device)


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Wait for all ranks (barrier)."""
    if dist.is_initialized():
        dist.barrier()


def mean_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Average a tensor over all ranks; in a single process, return it unchanged."""
    if dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value


def from_first_rank(value: torch.Tensor) -> torch.Tensor:
    """Return the first rank's value on all ranks."""
    if dist.is_initialized():
        device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
        sent = value.to(device)
        dist.broadcast(sent, 0)
        value = sent.to(value.device)
    return value


def replicated(module: nn.Module, world: World, some_unused: bool = False, send_buffers: bool = True) -> nn.Module:
    """Wrap a module so that its gradients are averaged over the ranks, if there are several.

    `some_unused`: parameters may get no gradient; looking for them takes time. `send_buffers`: the first rank's
    buffers replace the others' before every pass; not needed where ranks keep equal ones or use none of them.
    """
    if world.size == 1:
        return module
    devices = [world.device] if world.device.type == "cuda" else None
    # torch 2.15 has another name for it and warns of the old one.
    known = inspect.signature(DistributedDataParallel).parameters
    sending = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return DistributedDataParallel(
        module,
        device_ids=devices,
        **{sending: send_buffers},  # type: ignore[arg-type]
        gradient_as_bucket_view=True,
        find_unused_parameters=some_unused,
    )


def exchange_gradients(module: nn.Module, only_if: bool) -> AbstractContextManager[None]:
    """Exchange gradients of a `replicated` module only in the last of the accumulated passes."""
    if isinstance(module, DistributedDataParallel) and not only_if:
        return module.no_sync()
    return contextlib.nullcontext()


def any_rank(flag: bool, device: torch.device) -> bool:
    """Return True on all ranks if the flag is set on any."""
    if not dist.is_initialized():
        return flag
    value = torch.tensor(float(flag), device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def is_stopped(stop: StopSignal, world: World) -> bool:
    """Return True on all ranks if any has received a stop signal."""
    return any_rank(stop.received is not None, world.device)


def end_at_checkpoint(when: str, stop: StopSignal, world: World) -> int:
    """Request a requeue and print when the run stopped, as "after step 7"; returns the exit code."""
    if world.is_main:
        leave_marker(when)
    wait_for_all()  # a rank that left before the others are done would have them killed
    if world.is_main:
        print(f"stopped {when} by {stop.received or 'another rank'}; the same command goes on")
    return STOPPED


def _why_no_meeting(error: Exception) -> str:
    address, port = (os.environ.get(f"MASTER_{name}") for name in ("ADDR", "PORT"))
    if "EADDRINUSE" in str(error):
        return f"port {port} of {address}, where the ranks meet, is in use; set MASTER_PORT to a free one"
    reason = str(error).splitlines()[0]
    return (
        f"a rank could not reach the first one at {address}:{port}, see MASTER_ADDR and MASTER_PORT, and "
        f"NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME where nodes have several networks ({reason})"
    )


def _device(local_rank: int) -> torch.device:
    """Select the rank's GPU; the only visible one if the launcher gives each task its own."""
    if not torch.cuda.is_available():
        asked_for_cpu = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
        if os.environ.get("SLURM_GPUS_ON_NODE", "0") != "0" and not asked_for_cpu:
            raise UserError(
                f"the job was given GPUs, but torch finds none on {platform.node()}: see nvidia-smi there, and "
                "whether torch is built for CUDA; CUDA_VISIBLE_DEVICES= trains on the CPU"
            )
        return torch.device("cpu")
    gpus = torch.cuda.device_count()
    if local_rank >= gpus > 1:
        raise UserError(
            f"task {local_rank} of this node has no GPU, there are {gpus}; start one task for each GPU"
        )
    device = torch.device("cuda", 0 if gpus == 1 else local_rank)
    torch.cuda.set_device(device)
    return device
