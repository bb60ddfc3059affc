"""In which precision matrix products and convolutions are computed."""

from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def autocast(device: torch.device, precision: Precision = "auto") -> torch.autocast:
    """Matrix products in bfloat16 (which needs no loss scaling) inside this context; auto: on a GPU alone."""
    half = device.type == "cuda" if precision == "auto" else precision == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=half)
