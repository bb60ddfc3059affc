"""Precision and kernels of matrix products and convolutions."""

import os
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


def set_backends(deterministic: bool) -> None:
    """Choose the GPU's kernels for a training; `backends` returns the choice.

    By default cuDNN tries its kernels for every new shape and keeps the fastest, as in the official codes of
    MoCo v2, SwAV, DINO and MAE. What stays in float32 is multiplied as TF32, which the releases of torch that
    they were published for did by themselves. Deterministic: kernels that always give the same bits, no TF32.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = not deterministic
    torch.backends.cuda.matmul.allow_tf32 = not deterministic


def backends() -> dict[str, bool]:
    """Return the choices of `set_backends`."""
    return {
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "tf32": torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
