"""LoRA: what is trained, that it begins as the trunk and ends in its weights; gradients of frozen trunks."""

import pytest
import torch

from finetune.training.lora import freeze, merged
from finetune.training.optimiser import create_optimiser
from shared.errors import UserError
from shared.model.detector_file import load_detector, save_detector
from shared.model.dpa_p2pnet import DetectorConfig, DPAP2PNet

VIT = DetectorConfig(arch="vit_tiny_patch16_224", channels=16, hidden=16, interval=16)


def test_attention_alone_is_trained_and_ends_in_plain_weights(tmp_path) -> None:
    torch.manual_seed(0)
    detector = DPAP2PNet(VIT).eval()
    image = torch.rand(1, 3, 64, 64)
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    expected = detector(image).logits_BNC
    for trunk in detector.trunks():
        freeze(trunk, rank=2)
    torch.testing.assert_close(detector(image).logits_BNC, expected)
    trained = {name for name, each in detector.backbone.trunk.named_parameters() if each.requires_grad}
    assert len(trained) == 12 * 2 * 2 and all(".attn." in name for name in trained)
    optimiser = create_optimiser(detector, weight_decay=0.0)
    for _ in range(2):  # in the first step the changes are zero, so only one factor has a gradient
        detector(image).logits_BNC.square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    with torch.inference_mode():
        learnt = detector(image).logits_BNC
        save_detector(tmp_path / "d.pth", merged(detector), {"classes": ["a"], "mpp": 0.5})
        loaded, _ = load_detector(tmp_path / "d.pth")
        torch.testing.assert_close(loaded(image).logits_BNC, learnt, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(detector(image).logits_BNC, learnt)  # trains on
    changed = {name for name, tensor in loaded.state_dict().items() if not torch.equal(tensor, before[name])}
    in_trunk = {name for name in changed if "backbone.trunk" in name}
    assert in_trunk == {
        f"backbone.trunk.blocks.{block}.attn.{layer}.weight" for block in range(12) for layer in ("qkv", "proj")
    }
    change = loaded.backbone.trunk.blocks[3].attn.qkv.weight - before["backbone.trunk.blocks.3.attn.qkv.weight"]
    assert torch.linalg.matrix_rank(change, atol=1e-5) == 2


def test_convolutions_have_no_attention() -> None:
    detector = DPAP2PNet(DetectorConfig(arch="regnetx_002", channels=16, hidden=16))
    with pytest.raises(UserError, match="--lora is for ViTs"):
        freeze(detector.backbone.trunk, rank=4)


def test_a_frozen_network_of_convolutions_records_nothing() -> None:
    """Its maps need no gradients, so that none of its activations is kept for a backward pass."""
    detector = DPAP2PNet(DetectorConfig(arch="regnetx_002", channels=16, hidden=16)).train()
    image = torch.rand(1, 3, 64, 64)
    assert all(level.requires_grad for level in detector.backbone(image))
    freeze(detector.backbone.trunk)
    assert not any(level.requires_grad for level in detector.backbone(image))


def test_less_is_trained_with_less_memory() -> None:
    from finetune.profile.training_cost import training_costs

    everything, lora, frozen = training_costs(VIT, crop=224, batch_size=2, seconds=0)
    assert everything.trained_m > lora.trained_m > frozen.trained_m > 0
    assert lora.trained_m - frozen.trained_m == pytest.approx(12 * 8 * (192 + 576 + 192 + 192) / 1e6)
    assert everything.memory_gib > lora.memory_gib > frozen.memory_gib > 0
