"""Point proposals: where they start, and the features under them (px of the image, corner origin)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UnsmoothedLevel(NamedTuple):
    """A level of the pyramid before its 3x3 convolution, which is then computed under the points only.

    P2's convolution is a quarter of the detector's work, and one in sixteen of its outputs is sampled.
    """

    map_BCHW: Tensor
    smooth: nn.Conv2d

    def float(self) -> "UnsmoothedLevel":
        """Convert the map to single precision."""
        return UnsmoothedLevel(self.map_BCHW.float(), self.smooth)


Level = Tensor | UnsmoothedLevel


def proposal_grid(height: int, width: int, interval: int, device: torch.device | str = "cpu") -> Tensor:
    """Make the pre-set proposals of one image, one per `interval` x `interval` px cell: rows x columns x (x, y).

    There are ceil(size / interval) of them along each side. Where the interval does not divide the side, the
    remainder is halved between both borders, so that the grid stays centred: 500 px at 8 px gives 2, 10, ..., 498.
    """
    y = _positions(height, interval, device)
    x = _positions(width, interval, device)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def leading_padding(side: int, interval: int) -> int:
    """Left or top padding in px that aligns the proposals with those of training crops.

    In crops whose side the interval divides, proposals are at the centres of their cells, to half a pixel.
    Without the padding a network samples its maps at other fractions of a cell than in training: a small one
    found half of the nuclei, and ResNet-50 lost 1.2 points of F1 on CoNSeP's 500 px after 100 epochs (none after
    30, at batch 4).
    """
    return -side % interval // 2


def sample(level: Level, points_BN2: Tensor, stride: int) -> Tensor:
    """Sample the features of a level under points by bilinear interpolation (Eq. 1); zero outside the map.

    The map's cell (row i, column j) is a value at the centre of the image square it stands for, at
    ((j + 0.5) * stride, (i + 0.5) * stride) px. Normalising by `stride * cells` (not by the image's size,
    which padding enlarges) with `align_corners=False` keeps this exact for every size of image; the usual
    `align_corners=True` would shift the sampled place by up to half a cell between one side and the other.

    Args:
        level: One level of the pyramid.
        points_BN2: (x, y) in px of the image; float32, as half precision is off by 0.5 px at 1024 px.
        stride: Pixels of the image per cell of the map.

    Returns:
        Features, B x N x C. Differentiable in the map and in the points.
    """
    if isinstance(level, UnsmoothedLevel):
        return _smoothed_under(level, points_BN2 / stride - 0.5)
    height, width = level.shape[-2:]
    x_BN, y_BN = points_BN2.unbind(-1)
    grid_BN2 = torch.stack([2 * x_BN / (stride * width) - 1, 2 * y_BN / (stride * height) - 1], dim=-1)
    features_BC1N = F.grid_sample(level, grid_BN2[:, None], mode="bilinear", align_corners=False)
    return features_BC1N[:, :, 0].transpose(1, 2)


def _smoothed_under(level: UnsmoothedLevel, cells_BN2: Tensor) -> Tensor:
    """Sample the smoothed map without computing it, from the 4 x 4 cells around each point.

    Convolution and bilinear interpolation are both linear: interpolate the nine shifted maps, then multiply
    once by the kernel. Corners of the interpolation outside the map weigh nothing, as in
    `grid_sample`; taps of the kernel outside it are the convolution's zero padding.
    """
    map_BCHW, smooth = level
    first_BN2 = cells_BN2.floor()
    sides = (map_BCHW.shape[-1], map_BCHW.shape[-2])
    x_BN34, y_BN34 = (_tap_weights(cells_BN2[..., i], first_BN2[..., i], side) for i, side in enumerate(sides))
    weights_BN9K = torch.einsum("bnur,bnvs->bnuvrs", y_BN34, x_BN34).flatten(4, 5).flatten(2, 3)
    taps_BN9C = weights_BN9K @ _gather_4x4(map_BCHW, first_BN2)
    kernel_FD = smooth.weight.permute(2, 3, 1, 0).flatten(0, 2)
    features_BND = taps_BN9C.flatten(2) @ kernel_FD
    if smooth.bias is None:
        return features_BND
    # The sum over the middle tap is that of the interpolation's own weights: 1 inside, less at the border.
    return features_BND + smooth.bias * weights_BN9K[:, :, 4].sum(-1, keepdim=True)


def _tap_weights(cell_BN: Tensor, first_BN: Tensor, side: int) -> Tensor:
    """Weights along one axis, B x N x 3 x 4: of the cells first - 1 .. first + 2 in each tap of the kernel."""
    after_BN = cell_BN - first_BN
    low_BN = (1 - after_BN) * ((first_BN >= 0) & (first_BN < side))
    high_BN = after_BN * ((first_BN >= -1) & (first_BN < side - 1))
    pair_BN2 = torch.stack([low_BN, high_BN], -1)
    weights_BN34 = torch.stack([F.pad(pair_BN2, (tap, 2 - tap)) for tap in range(3)], -2)
    cells_BN4 = first_BN[..., None] + torch.arange(-1, 3, device=cell_BN.device)
    return weights_BN34 * ((cells_BN4 >= 0) & (cells_BN4 < side))[..., None, :]


def _gather_4x4(map_BCHW: Tensor, first_BN2: Tensor) -> Tensor:
    """Gather the cells from `first - 1` to `first + 2` (clamped to the map): B x N x 16 x C."""
    batch, channels, height, width = map_BCHW.shape
    offsets = torch.arange(-1, 3, device=map_BCHW.device)
    x_BN4, y_BN4 = (first_BN2[..., axis, None].long() + offsets for axis in (0, 1))
    index_BN44 = y_BN4.clamp(0, height - 1)[..., None] * width + x_BN4.clamp(0, width - 1)[..., None, :]
    first_of_image_B = torch.arange(batch, device=map_BCHW.device) * (height * width)
    cells_KC = map_BCHW.permute(0, 2, 3, 1).reshape(-1, channels)  # a view, of a channels-last map
    return F.embedding(index_BN44.flatten(2) + first_of_image_B[:, None, None], cells_KC)


def _positions(side: int, interval: int, device: torch.device | str) -> Tensor:
    origin = (side % interval or interval) / 2
    count = -(-side // interval)
    return torch.arange(count, device=device, dtype=torch.float32) * interval + origin
