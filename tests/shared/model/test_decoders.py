import pytest
import torch
from torch import nn

from shared.model.decoders import PYRAMID_STRIDES, GridDecoder, PointDecoder
from shared.model.proposals import proposal_grid, sample


def pyramid(height: int, width: int, channels: int, batch: int = 2) -> list[torch.Tensor]:
    return [torch.randn(batch, channels, height // s, width // s) for s in PYRAMID_STRIDES]


def point_decoder(deformable: bool, **settings) -> PointDecoder:
    torch.manual_seed(0)
    return PointDecoder(classes=3, deformable=deformable, channels=8, hidden=16, dropout=0.1, **settings)


def test_training_starts_from_the_plain_grid():
    grid = proposal_grid(128, 192, 16)
    found = point_decoder(deformable=True).eval()(pyramid(128, 192, 8), grid)
    assert found.proposals_N2.shape == (96, 2) and found.logits_BNC.shape == (2, 96, 4)
    assert torch.equal(found.deformed_BN2, grid.flatten(0, 1).expand(2, -1, -1))
    assert not torch.equal(found.points_BN2, found.deformed_BN2)


def test_decoding_follows_the_moved_proposals():
    """Deformation by P2 under the proposal; all levels under the moved proposal; offsets on top of that."""
    decoder, levels, grid = point_decoder(True).eval(), pyramid(64, 128, 8), proposal_grid(64, 128, 16)
    nn.init.normal_(decoder.deform[-1].weight, std=3.0)
    found = decoder(levels, grid)
    moved = found.proposals_N2 + decoder.deform(sample(levels[0], found.proposals_N2.expand(2, -1, -1), 4))
    features = torch.cat([sample(level, moved, s) for level, s in zip(levels, PYRAMID_STRIDES, strict=True)], -1)
    assert (moved - found.proposals_N2).abs().mean() > 0.5
    torch.testing.assert_close(found.deformed_BN2, moved)
    torch.testing.assert_close(found.points_BN2, moved + decoder.locate(features))
    torch.testing.assert_close(found.logits_BNC, decoder.classify(features))


def test_without_deformation_there_is_no_layer_for_it():
    decoder = point_decoder(deformable=False)
    assert not any("deform" in name for name, _ in decoder.named_parameters())
    found = decoder(pyramid(64, 64, 8), proposal_grid(64, 64, 16))
    assert torch.equal(found.deformed_BN2[1], found.proposals_N2)


def deformation_gradient(decoder: PointDecoder, output: torch.Tensor) -> float:
    decoder.zero_grad()
    output.square().mean().backward(retain_graph=True)
    return decoder.deform[-1].weight.grad.abs().max().item()


def test_the_deformation_learns_through_the_sum_and_through_the_sampling():
    decoder = point_decoder(deformable=True).eval()
    levels, grid = pyramid(64, 64, 8), proposal_grid(64, 64, 16)
    # The classifier sees the deformation only through the places that are sampled.
    assert deformation_gradient(decoder, decoder(levels, grid).logits_BNC) > 1e-6
    # With a localisation that ignores its features, only the sum is left.
    nn.init.zeros_(decoder.locate[0].weight)
    assert deformation_gradient(decoder, decoder(levels, grid).points_BN2) > 1e-3


@pytest.mark.parametrize("interval", [16, 8])
@pytest.mark.parametrize(("height", "width"), [(64, 128), (50, 100), (33, 47)])
def test_grid_decoder_deals_channels_to_the_proposals_inside_each_cell(interval, height, width):
    """Against loops over proposals: cell = floor(p / 16), then row and column within the cell."""
    torch.manual_seed(0)
    decoder = GridDecoder(classes=2, interval=interval, channels=4).eval()
    level = torch.randn(2, 4, 4, 8)
    found = decoder([level], proposal_grid(height, width, interval))
    offsets, logits, m = decoder.locate(level), decoder.classify(level), 16 // interval
    assert torch.equal(found.deformed_BN2[0], found.proposals_N2)
    for index, (x, y) in enumerate(found.proposals_N2.tolist()):
        column, row = int(x // 16), int(y // 16)
        inside = int(y % 16 // interval) * m + int(x % 16 // interval)
        channel = [k * m * m + inside for k in range(3)]
        expected = found.proposals_N2[index] + offsets[:, channel[:2], row, column]
        torch.testing.assert_close(found.points_BN2[:, index], expected)
        torch.testing.assert_close(found.logits_BNC[:, index], logits[:, channel, row, column])
