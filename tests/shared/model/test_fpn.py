import numpy as np
import torch
from scipy.signal import correlate2d

from shared.model.fpn import FeaturePyramid, SummedPyramid

CHANNELS = (3, 4, 5, 6)


def maps_of(channels: tuple[int, ...], finest: tuple[int, int]) -> list[torch.Tensor]:
    height, width = finest
    return [torch.randn(1, c, height >> i, width >> i) for i, c in enumerate(channels)]


def convolve(map_CHW: np.ndarray, layer: torch.nn.Conv2d, stride: int = 1) -> np.ndarray:
    """Zero-padded convolution by scipy, one channel at a time, then every `stride`-th cell."""
    weight, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
    sums = [
        sum(correlate2d(channel, kernel, mode="same") for channel, kernel in zip(map_CHW, kernels, strict=True))
        for kernels in weight
    ]
    return (np.stack(sums) + bias[:, None, None])[:, ::stride, ::stride]


def test_levels_are_top_down_sums_then_a_convolution():
    torch.manual_seed(0)
    neck = FeaturePyramid(CHANNELS, 8)
    maps = maps_of(CHANNELS, (16, 32))
    levels = [level[0].detach().numpy() for level in neck(maps)]
    assert [level.shape for level in levels] == [(8, 16, 32), (8, 8, 16), (8, 4, 8), (8, 2, 4), (8, 1, 2)]

    inputs = [feature[0].double().numpy() for feature in maps]
    above = np.zeros((8, 1, 2))
    for index in (3, 2, 1, 0):
        above = above.repeat(2, axis=1).repeat(2, axis=2) + convolve(inputs[index], neck.lateral[index])
        np.testing.assert_allclose(levels[index], convolve(above, neck.smooth[index]), atol=1e-5)
    np.testing.assert_allclose(levels[4], convolve(inputs[3], neck.extra, stride=2), atol=1e-5)


def test_a_pyramid_of_one_output_has_no_other_convolutions():
    neck = FeaturePyramid((5, 6), 8, outputs=1, extra=False)
    (level,) = neck(maps_of((5, 6), (4, 8)))
    assert level.shape == (1, 8, 4, 8)
    assert sum(p.numel() for p in neck.parameters()) == (5 + 1) * 8 + (6 + 1) * 8 + (8 * 9 + 1) * 8
    assert all(p.grad is not None for p in _backward(neck, level))


def test_a_sum_of_levels_keeps_every_place_where_it_is():
    """Maps that carry coordinates: averaged or interpolated they still do, away from the border."""
    neck = SummedPyramid((2, 2, 2, 2), 2)
    for parameter in neck.parameters():
        torch.nn.init.zeros_(parameter)
    for channel in (0, 1):
        neck.smooth.weight.data[channel, channel, 1, 1] = 1
        for lateral in neck.lateral:
            lateral.weight.data[channel, channel] = 1
    maps = []
    for stride in (4, 8, 16, 32):
        centres = (torch.arange(256 // stride) + 0.5) * stride
        maps.append(torch.stack(torch.meshgrid(centres, centres, indexing="xy"))[None])
    (summed,) = neck(maps)
    torch.testing.assert_close(summed[..., 1:-1, 1:-1], 4 * maps[2][..., 1:-1, 1:-1])


def _backward(module: torch.nn.Module, output: torch.Tensor) -> list[torch.nn.Parameter]:
    output.square().sum().backward()
    return list(module.parameters())
