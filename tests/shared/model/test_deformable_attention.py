import numpy as np
import torch

from shared.model.deformable_attention import DeformableAttention, attend

SIZES = [(6, 9), (3, 5), (2, 2)]
CELLS = sum(height * width for height, width in SIZES)


def bilinear(map_HWd: np.ndarray, x: float, y: float) -> np.ndarray:
    """Value at (x, y) in cells, corner origin, zero outside."""
    total = np.zeros(map_HWd.shape[-1])
    for row in range(map_HWd.shape[0]):
        for column in range(map_HWd.shape[1]):
            near = max(0.0, 1 - abs(x - column - 0.5)) * max(0.0, 1 - abs(y - row - 0.5))
            total += near * map_HWd[row, column]
    return total


def slow_attend(value, reference, offset, weight) -> np.ndarray:
    batch, queries, heads, _, points = weight.shape
    output = np.zeros((batch, queries, heads, value.shape[-1]))
    for b, q, m in np.ndindex(batch, queries, heads):
        start = 0
        for level, (height, width) in enumerate(SIZES):
            cells = value[b, start : start + height * width, m].reshape(height, width, -1)
            for p in range(points):
                x = reference[q, 0] * width + offset[b, q, m, level, p, 0]
                y = reference[q, 1] * height + offset[b, q, m, level, p, 1]
                output[b, q, m] += weight[b, q, m, level, p] * bilinear(cells, x, y)
            start += height * width
    return output.reshape(batch, queries, -1)


def test_attention_equals_the_slow_loop():
    torch.manual_seed(0)
    value = torch.randn(2, CELLS, 2, 3)
    reference, offset = torch.rand(4, 2), torch.randn(2, 4, 2, 3, 2, 2) * 2
    weight = torch.rand(2, 4, 2, 3, 2)
    found = attend(value, SIZES, reference, offset, weight)
    expected = slow_attend(*(t.double().numpy() for t in (value, reference, offset, weight)))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_weights_are_a_softmax_over_levels_and_points():
    """Where all values are equal and no place lies outside, the output is the projected value itself."""
    torch.manual_seed(0)
    layer = DeformableAttention(width=8, heads=2, levels=3, points=2)
    layer.reset()
    torch.nn.init.normal_(layer.weight.weight)
    torch.nn.init.zeros_(layer.offset.bias)
    feature = torch.randn(1, 1, 8).expand(1, CELLS, 8)
    found = layer(torch.randn(1, 5, 8), torch.full((5, 2), 0.5), feature, SIZES)
    torch.testing.assert_close(found, layer.output(layer.value(feature[:, :5])))


def test_attention_starts_on_rays():
    layer = DeformableAttention(width=64, heads=8, levels=2, points=3)
    layer.reset()
    offset_MLP2 = layer.offset(torch.randn(64)).view(8, 2, 3, 2)
    lengths = torch.arange(1.0, 4.0)
    torch.testing.assert_close(offset_MLP2[0, 1], torch.stack([lengths, 0 * lengths], -1))
    torch.testing.assert_close(offset_MLP2[1, 0], torch.stack([lengths, lengths], -1))
    torch.testing.assert_close(offset_MLP2[6, 0], torch.stack([0 * lengths, -lengths], -1))
    assert not layer.weight(torch.randn(64)).any()


def test_gradients_reach_values_places_and_weights():
    torch.manual_seed(0)
    value = torch.randn(1, CELLS, 1, 2, dtype=torch.float64, requires_grad=True)
    offset = torch.randn(1, 2, 1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(1, 2, 1, 3, 2, dtype=torch.float64, requires_grad=True)
    reference = torch.rand(2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v, o, w: attend(v, SIZES, reference, o, w), (value, offset, weight))


def test_places_stay_in_single_precision_under_autocast():
    torch.manual_seed(0)
    layer = DeformableAttention(width=32, heads=2, levels=3)
    layer.reset()
    reference, feature = torch.rand(50, 2), torch.randn(1, CELLS, 32)
    exact = layer(torch.zeros(1, 50, 32), reference, feature, SIZES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = layer(torch.zeros(1, 50, 32), reference, feature, SIZES)
    # bf16 keeps 8 bits: rounded values err by 1 %, rounded places would err by much more.
    assert (rounded - exact).abs().max() < 0.02 * exact.abs().max()
