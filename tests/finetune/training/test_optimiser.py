"""Learning rates of trunk, layers and heads by the first step of AdamW, which moves every weight by its rate."""

import pytest
import torch

from finetune.training.optimiser import create_optimiser, set_learning_rate
from shared.errors import UserError
from shared.model.dpa_p2pnet import DetectorConfig, DPAP2PNet


def moves(detector: DPAP2PNet, **rates: float) -> dict[str, float]:
    """Largest change of every tensor in a step at a rate of 0.1 with gradients of one."""
    before = {name: parameter.detach().clone() for name, parameter in detector.named_parameters()}
    optimiser = create_optimiser(detector, weight_decay=0.0, **rates)
    for parameter in detector.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    set_learning_rate(optimiser, 0.1)
    optimiser.step()
    return {name: (after - before[name]).abs().max().item() for name, after in detector.named_parameters()}


def test_all_weights_have_one_rate_by_default() -> None:
    detector = DPAP2PNet(DetectorConfig(arch="regnetx_002", channels=16, hidden=16))
    assert moves(detector).values() == pytest.approx([0.1] * len(dict(detector.named_parameters())), rel=1e-3)


def test_the_trunk_has_its_own_rate() -> None:
    for name, move in moves(
        DPAP2PNet(DetectorConfig(arch="regnetx_002", channels=16, hidden=16)), trunk_rate=0.25
    ).items():
        assert move == pytest.approx(0.025 if "trunk" in name else 0.1, rel=1e-3), name


def test_a_frozen_trunk_stays() -> None:
    detector = DPAP2PNet(DetectorConfig(arch="regnetx_002", channels=16, hidden=16))
    detector.backbone.trunk.requires_grad_(False)
    assert {move > 0 for name, move in moves(detector).items() if "trunk" in name} == {False}
    detector(torch.rand(1, 3, 64, 64)).logits_BNC.sum().backward()
    assert all(parameter.grad is None for parameter in detector.backbone.trunk.parameters())


def test_blocks_of_a_vit_learn_slower_towards_its_input() -> None:
    detector = DPAP2PNet(DetectorConfig(arch="vit_tiny_patch16_224", channels=16, hidden=16))
    moved = moves(detector, layer_decay=0.5, trunk_rate=0.8)
    trunk = "backbone.trunk."
    for block in range(12):
        assert moved[f"{trunk}blocks.{block}.mlp.fc1.weight"] == pytest.approx(
            0.08 * 0.5 ** (11 - block), rel=1e-2
        )
    assert moved[f"{trunk}patch_embed.proj.weight"] == pytest.approx(0.08 * 0.5**12, rel=5e-2)
    assert moved["backbone.prior.stem.0.weight"] == pytest.approx(0.1, rel=1e-3)


def test_convolutions_have_no_blocks_to_slow() -> None:
    detector = DPAP2PNet(DetectorConfig(arch="regnetx_002", channels=16, hidden=16))
    with pytest.raises(UserError, match="--layer-decay is for ViTs"):
        create_optimiser(detector, weight_decay=0.0, layer_decay=0.7)
