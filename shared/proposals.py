"""Point proposals: where they start, and the features under them (px of the image, corner origin)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def proposal_grid(height: int, width: int, interval: int, device: torch.device | str = "cpu") -> Tensor:
    """The pre-set proposals of one image, one per `interval` x `interval` px cell: rows x columns x (x, y).

    There are ceil(size / interval) of them along each side. Where the interval does not divide the side,
    the outermost stand half of what is left over from the border, so the grid stays centred:
    500 px at 8 px gives 2, 10, ..., 498.
    """
    y = _positions(height, interval, device)
    x = _positions(width, interval, device)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def sample(map_BCHW: Tensor, points_BN2: Tensor, stride: int) -> Tensor:
    """Features of a map under points, by bilinear interpolation (Eq. 1); zero outside the map.

    The map's cell (row i, column j) is a value at the centre of the image square it stands for, at
    ((j + 0.5) * stride, (i + 0.5) * stride) px. Normalising by `stride * cells` (not by the image's size,
    which padding enlarges) with `align_corners=False` keeps this exact for every size of image; the usual
    `align_corners=True` would let the sampled place drift by up to half a cell from one side to the other.

    Args:
        map_BCHW: One level of the pyramid.
        points_BN2: (x, y) in px of the image; float32, as half precision is off by 0.5 px at 1024 px.
        stride: Pixels of the image per cell of the map.

    Returns:
        Features, B x N x C. Differentiable in the map and in the points.
    """
    height, width = map_BCHW.shape[-2:]
    x_BN, y_BN = points_BN2.unbind(-1)
    grid_BN2 = torch.stack([2 * x_BN / (stride * width) - 1, 2 * y_BN / (stride * height) - 1], dim=-1)
    features_BC1N = F.grid_sample(map_BCHW, grid_BN2[:, None], mode="bilinear", align_corners=False)
    return features_BC1N[:, :, 0].transpose(1, 2)


def _positions(side: int, interval: int, device: torch.device | str) -> Tensor:
    origin = (side % interval or interval) / 2
    count = -(-side // interval)
    return torch.arange(count, device=device, dtype=torch.float32) * interval + origin
