"""GPU usage of a run: model FLOPs utilisation (MFU) and memory."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from shared.errors import UserError

# Dense bfloat16 operations a second in units of 1e12, by a word of the GPU's name (NVIDIA's data sheets).
PEAKS = {
    "A100": 312,
    "A800": 312,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "H200": 989,
    "H800": 989,
    "L40S": 362,
    "A40": 150,
    "A10": 125,
}
# Memory that these are sold with, in GB.
MEMORIES = {
    "A100": (40, 80),
    "A800": (40, 80),
    "H100 PCIe": (80,),
    "H100 NVL": (94,),
    "H100": (80,),
    "H200": (141,),
    "H800": (80,),
    "L40S": (48,),
    "A40": (48,),
    "A10": (24,),
}
# Errors of CUDA and its libraries that are no `OutOfMemoryError`: without room for the context of a process, say.
EXHAUSTED = re.compile(r"CUDA error: out of memory|CU\w+_STATUS_ALLOC_FAILED")
ASKED = re.compile(r"[Tt]ried to allocate [\d.]+ \w+")
# Remedy of commands without options that lower their need.
ON_CPU = "more memory free on the GPU, or on the CPU with CUDA_VISIBLE_DEVICES= in front"


def peak_flops(device: torch.device) -> float | None:
    """Operations a second that a GPU could do in bfloat16; None if it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).replace("-", " ").split()
    return next((1e12 * peak for model, peak in PEAKS.items() if set(model.split()) <= set(name)), None)


def utilisation(flops: float, images_per_second: float, ranks: int, device: torch.device) -> dict[str, float]:
    """Metrics of GPU usage: `mfu_percent`, if the GPU's peak is known, and `memory_gb`.

    Args:
        flops: Operations for one image.
        images_per_second: Of all ranks.
        ranks: GPUs.
        device: This rank's.
    """
    used, peak, memory = {}, peak_flops(device), memory_gb(device)
    if peak is not None:
        used["mfu_percent"] = round(100 * flops * images_per_second / (ranks * peak), 1)
    if memory is not None:
        used["memory_gb"] = round(memory, 2)
    return used


def memory_gb(device: torch.device) -> float | None:
    """Peak memory of tensors on a GPU so far, in 1e9 bytes."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


@contextmanager
def explain_out_of_memory(remedy: str) -> Iterator[None]:
    """Turn torch's errors about exhausted memory into a UserError.

    Args:
        remedy: Options that lower the need for memory.

    Raises:
        UserError: the memory of the GPU, or that of the machine, ran out.
    """
    try:
        yield
    except RuntimeError as error:
        if not (reason := exhausted(error)):
            raise
        raise UserError(f"{reason}; run the same command with {remedy}") from error


def exhausted(error: RuntimeError) -> str:
    """Return which memory ran out, from torch's error; empty if it is about something else."""
    message = str(error)
    on_host = "DefaultCPUAllocator" in message
    if not (isinstance(error, torch.OutOfMemoryError) or on_host or EXHAUSTED.search(message)):
        return ""
    asked = ASKED.search(message)
    detail = asked[0] if asked else message.splitlines()[0].split(". ")[0]
    return f"the memory of the {'machine' if on_host else 'GPU'} ran out ({detail})"
