"""Images as tensors for the detector."""

import numpy as np
import torch
from torch import Tensor


def to_image(views_KHWC: np.ndarray) -> Tensor:
    """Convert views to what the detector takes: uint8 (3, H, W), or (K, 3, H, W) if there are several."""
    views_KCHW = torch.tensor(views_KHWC).permute(0, 3, 1, 2).contiguous()  # a copy: some arrays are read-only
    return views_KCHW[0] if len(views_KCHW) == 1 else views_KCHW
