"""Several fields of view: features of wider concentric images, added to the annotated image's pyramid.

The K images have the same size in px; image k covers 2^(K-k) times the width of the last, which is the
annotated one. The paper's Eq. 2 prints the upsampling factor as 2(K-k); with a crop of 1/2^(K-k) it must be
2^(K-k).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from shared.model.proposals import sample

Upsampling = Literal["transposed", "bilinear"]


class FieldOfViewFusion(nn.Module):
    """Crop, enlarge and add the pyramids of the wider views, then a 3x3 convolution on every level (Eq. 2).

    Args:
        levels: Levels of a pyramid.
        channels: Channels of every level.
        upsampling: `transposed`: one stride-2 transposed convolution for all levels and views, applied once
            for every doubling; `bilinear`: nothing to learn.
    """

    def __init__(self, levels: int, channels: int, upsampling: Upsampling) -> None:
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(channels, channels, 2, stride=2) if upsampling == "transposed" else None
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(levels))

    def forward(
        self, pyramids: Sequence[Sequence[Tensor]], strides: Sequence[int], height: int, width: int
    ) -> list[Tensor]:
        """K pyramids, that of the annotated image last -> one pyramid with the sizes of the last.

        Args:
            pyramids: Of the views, widest first.
            strides: Of the levels, px of an image per cell.
            height: Of every image in px, without padding behind it; with twice what was put before it.
            width: As `height`.
        """
        fused = []
        for level, (stride, smooth) in enumerate(zip(strides, self.smooth, strict=True)):
            *wider, own_BCHW = (pyramid[level] for pyramid in pyramids)
            for view, map_BCHW in enumerate(wider):
                doublings = len(wider) - view
                own_BCHW = own_BCHW + self._centre(map_BCHW, doublings, stride, (height, width), own_BCHW)
            fused.append(smooth(own_BCHW))
        return fused

    def _centre(
        self, map_BCHW: Tensor, doublings: int, stride: int, size: tuple[int, int], like_BCHW: Tensor
    ) -> Tensor:
        """Crop the centre of a wider view and enlarge it to the cells of `like_BCHW`."""
        rows, columns = like_BCHW.shape[-2:]
        if self.enlarge is None:
            return centre_crop(map_BCHW, 2**doublings, 1, stride, size, rows, columns)
        centre_BCHW = centre_crop(map_BCHW, 2**doublings, 2**doublings, stride, size, rows, columns)
        for _ in range(doublings):
            centre_BCHW = self.enlarge(centre_BCHW)
        return centre_BCHW[..., :rows, :columns]


def centre_crop(  # noqa: PLR0913
    map_BCHW: Tensor, factor: int, block: int, stride: int, size: tuple[int, int], rows: int, columns: int
) -> Tensor:
    """Crop the part of a wider view's map that the annotated image covers, read between its cells.

    The result has ceil(rows / block) x ceil(columns / block) cells. Each holds the wider map at the centre of
    the block x block cells of the annotated image's map that it stands for. The image's centre falls between
    cells for most sizes, so a cut at whole cells would be off by up to half of one.

    Args:
        map_BCHW: One level of a view that covers `factor` times the width.
        factor: 2^(K-k).
        block: `factor` for a crop that is to be enlarged, 1 for one that is enlarged already.
        stride: Px of an image per cell.
        size: Height and width of the images in px, without padding.
        rows: Of the annotated image's map.
        columns: Of the annotated image's map.
    """
    y_H, x_W = (
        # From the annotated image to the wider view: towards the common centre.
        ((torch.arange(-(-cells // block), device=map_BCHW.device) + 0.5) * block * stride - side / 2) / factor
        + side / 2
        for cells, side in zip((rows, columns), size, strict=True)
    )
    points_HW2 = torch.stack(torch.meshgrid(x_W, y_H, indexing="xy"), dim=-1)
    points_BN2 = points_HW2.flatten(0, 1).expand(len(map_BCHW), -1, -1)
    crop_BNC = sample(map_BCHW.float(), points_BN2, stride)
    centre_BCHW: Tensor = crop_BNC.transpose(1, 2).unflatten(2, points_HW2.shape[:2]).to(map_BCHW.dtype)
    return centre_BCHW
