"""In which precision matrix products and convolutions are computed."""

from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def autocast(device: torch.device, precision: Precision = "auto", *, training: bool = False) -> torch.autocast:
    """Compute matrix products in bfloat16, which needs no loss scaling, inside this context.

    auto: on a GPU, and in training on a processor that computes in it, where a step takes half the time; other
    processors emulate it some hundred times slower.
    """
    half = precision == "bfloat16"
    if precision == "auto":
        half = device.type == "cuda" or (training and processor_computes_bfloat16())
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def processor_computes_bfloat16() -> bool:
    """Check the processor for AMX or AVX-512 BF16."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
