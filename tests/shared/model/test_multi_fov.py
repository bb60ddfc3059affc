"""Geometry of several fields of view: maps that carry coordinates meet those of the annotated image."""

import pytest
import torch
from torch import nn

from shared.model.decoders import PYRAMID_STRIDES
from shared.model.multi_fov import FieldOfViewFusion, centre_crop

# The smallest has a single cell at stride 64.
SIZES = [(512, 512), (500, 500), (96, 200), (65, 129), (64, 64)]


def coordinates(height: int, width: int, stride: int, factor: int) -> torch.Tensor:
    """Return a map (1, 2, H, W) of a view, holding (x, y) of its cells in px of the annotated image."""
    rows, columns = (-(-side // 64) * 64 // stride for side in (height, width))
    y, x = ((torch.arange(cells) + 0.5) * stride for cells in (rows, columns))
    x, y = (x - width / 2) * factor + width / 2, (y - height / 2) * factor + height / 2
    return torch.stack(torch.meshgrid(x, y, indexing="xy"))[None]


def identity(upsampling: str) -> FieldOfViewFusion:
    """Return a fusion that enlarges and adds, and changes nothing else."""
    fusion = FieldOfViewFusion(1, 2, upsampling)
    for layer in [fusion.enlarge, *fusion.smooth]:
        if layer is not None:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    for channel in range(2):
        fusion.smooth[0].weight.data[channel, channel, 1, 1] = 1
        if fusion.enlarge is not None:
            fusion.enlarge.weight.data[channel, channel] = 1
    return fusion


@pytest.mark.parametrize("views", [2, 3, 4])
@pytest.mark.parametrize(("height", "width"), [*SIZES, (1000, 640), (256, 333)])
@pytest.mark.parametrize("stride", PYRAMID_STRIDES)
def test_views_line_up_with_the_annotated_image(views, height, width, stride):
    """Bilinear enlarging keeps coordinates, up to the border of the annotated image."""
    maps = [coordinates(height, width, stride, 2 ** (views - 1 - view)) for view in range(views)]
    fusion = identity("bilinear")
    with torch.no_grad():
        fused = fusion([[m] for m in maps], [stride], height, width)[0]
    wanted = maps[-1] * views  # every view adds the coordinates of the same place
    rows, columns = -(-height // stride), -(-width // stride)  # beyond lies padding
    assert (fused - wanted)[..., :rows, :columns].abs().max() < 0.01


@pytest.mark.parametrize(("height", "width"), SIZES[:-1])
@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("stride", PYRAMID_STRIDES)
def test_a_cell_of_the_crop_stands_for_a_block_of_cells(height, width, factor, stride):
    """For transposed convolution: the crop's cell carries the mean coordinates of the cells it becomes."""
    own, wider = coordinates(height, width, stride, 1), coordinates(height, width, stride, factor)
    crop = centre_crop(wider, factor, factor, stride, (height, width), *own.shape[-2:])
    rows, columns = (-(-cells // factor) for cells in own.shape[-2:])
    assert crop.shape[-2:] == (rows, columns)
    x = (torch.arange(columns) + 0.5) * factor * stride
    y = (torch.arange(rows) + 0.5) * factor * stride
    assert (crop[0, 0] - x).abs().max() < 0.01 and (crop[0, 1] - y[:, None]).abs().max() < 0.01


def test_the_same_enlarging_layer_serves_all_levels_and_views():
    torch.manual_seed(0)
    fusion = FieldOfViewFusion(5, 4, "transposed")
    pyramids = [[torch.randn(1, 4, 256 // s, 256 // s) for s in PYRAMID_STRIDES] for _ in range(3)]
    fused = fusion(pyramids, PYRAMID_STRIDES, 256, 256)
    assert [m.shape for m in fused] == [m.shape for m in pyramids[-1]]
    level = pyramids[2][1] + fusion.enlarge(pyramids[1][1][..., 8:24, 8:24])
    level = level + fusion.enlarge(fusion.enlarge(pyramids[0][1][..., 12:20, 12:20]))
    torch.testing.assert_close(fused[1], fusion.smooth[1](level), atol=1e-5, rtol=1e-5)
