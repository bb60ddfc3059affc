"""Multi-scale deformable attention (Zhu et al. 2020, Deformable DETR, Eq. 3) in plain PyTorch."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = tuple[int, int]  # height, width


class DeformableAttention(nn.Module):
    """Each query looks at a few places around its reference point on every level of a feature map.

    Args:
        width: Channels of queries, features and output.
        heads: Attention heads.
        levels: Levels of the feature map.
        points: Places looked at per head and level; 4 in Deformable DETR and ViT-Adapter.
        ratio: Channels of the values relative to `width`; ViT-Adapter's MAE configuration has 0.5.
    """

    def __init__(self, width: int, heads: int, levels: int, points: int = 4, ratio: float = 0.5) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        inner = int(width * ratio)
        self.offset = nn.Linear(width, heads * levels * points * 2)
        self.weight = nn.Linear(width, heads * levels * points)
        self.value = nn.Linear(width, inner)
        self.output = nn.Linear(inner, width)

    def reset(self) -> None:
        """Start as an average over fixed places: rays in `heads` directions, 1..`points` cells long."""
        angles_M = torch.arange(self.heads) * (2 * math.pi / self.heads)
        rays_M2 = torch.stack([angles_M.cos(), angles_M.sin()], dim=-1)
        rays_M2 = rays_M2 / rays_M2.abs().amax(dim=-1, keepdim=True)
        lengths_P = torch.arange(1, self.points + 1)
        bias_MLP2 = (rays_M2[:, None, :] * lengths_P[:, None])[:, None].repeat(1, self.levels, 1, 1)
        nn.init.zeros_(self.offset.weight)
        with torch.no_grad():
            self.offset.bias.copy_(bias_MLP2.flatten())
        for layer in (self.weight, self.value, self.output):
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.weight.weight)
        nn.init.xavier_uniform_(self.value.weight)
        nn.init.xavier_uniform_(self.output.weight)

    def forward(
        self, query_BQD: Tensor, reference_Q2: Tensor, feature_BKD: Tensor, sizes: Sequence[Size]
    ) -> Tensor:
        """Attend; returns B x Q x D.

        Args:
            query_BQD: Queries.
            reference_Q2: Their places (x, y) in 0..1 of the image.
            feature_BKD: Cells of all levels, one level after the other, row by row.
            sizes: (height, width) of each level; the products add up to K.
        """
        batch, queries, _ = query_BQD.shape
        shape = (batch, queries, self.heads, self.levels, self.points)
        offset_BQMLP2 = self.offset(query_BQD).view(*shape, 2).float()
        weight_BQMLP = self.weight(query_BQD).view(*shape[:3], -1).float().softmax(-1).view(shape)
        value_BKMd = self.value(feature_BKD).unflatten(-1, (self.heads, -1)).float()
        attended = attend(value_BKMd, sizes, reference_Q2, offset_BQMLP2, weight_BQMLP)
        attended_BND: Tensor = self.output(attended)
        return attended_BND


def attend(
    value_BKMd: Tensor,
    sizes: Sequence[Size],
    reference_Q2: Tensor,
    offset_BQMLP2: Tensor,
    weight_BQMLP: Tensor,
) -> Tensor:
    """Weighted sums of the values at `reference + offset`, B x Q x (M d).

    All in one precision, float32 or better. Offsets are in cells of the level; values are interpolated
    bilinearly and are zero outside the map. The points of a level are summed before the next level is
    sampled, so that only one level's samples exist at a time.
    """
    batch, queries, heads, _, points = weight_BQMLP.shape
    values = value_BKMd.split([height * width for height, width in sizes], dim=1)
    sums = []
    for level, (height, width) in enumerate(sizes):
        map_BMdHW = values[level].permute(0, 2, 3, 1).reshape(batch * heads, -1, height, width)
        x, y = offset_BQMLP2[:, :, :, level].unbind(-1)
        place_BQMP2 = reference_Q2[:, None, None] + torch.stack([x / width, y / height], dim=-1)
        grid = (2 * place_BQMP2 - 1).transpose(1, 2).reshape(batch * heads, queries, points, 2)
        sampled = F.grid_sample(map_BMdHW, grid, mode="bilinear", align_corners=False)  # (B M) d Q P
        weight = weight_BQMLP[:, :, :, level].transpose(1, 2).reshape(batch * heads, 1, queries, points)
        sums.append((sampled * weight).sum(dim=-1))
    total_BMdQ = torch.stack(sums).sum(dim=0).view(batch, heads, -1, queries)
    return total_BMdQ.permute(0, 3, 1, 2).flatten(2)
