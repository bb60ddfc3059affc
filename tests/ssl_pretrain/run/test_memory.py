"""Memory counted without a GPU against the networks' closed forms, and what is said of GPUs that have less."""

import timm
import torch

from shared.training.peak_memory import counted_memory
from ssl_pretrain.recipes import RECIPES
from ssl_pretrain.run.memory import GIB, MemoryEstimate, estimate_memory
from tests.ssl_pretrain.stub import changed


def bytes_an_image(arch: str) -> float:
    """Return what a forward pass keeps for an image; casts of weights are the same for one and for several."""
    network = timm.create_model(arch, num_classes=0)
    kept = []
    for images in (2, 4):
        with counted_memory() as memory:
            features = network(torch.zeros(images, 3, 224, 224))
            kept.append(memory.now)
            del features
    return (kept[1] - kept[0]) / 2


def test_a_vit_keeps_37_bytes_a_feature_of_a_block():
    """Of ViT-B's 12 blocks, 197 tokens, 768 features: inputs of both sums and norms in float32 (8), outputs of the
    norms (4), queries, keys and values (6), attention (2) and its copy in order (2), both hidden layers (16)."""
    expected = 12 * 197 * 768 * 38
    assert abs(bytes_an_image("vit_base_patch16_224") / expected - 1) < 0.05


def test_a_resnet_keeps_every_convolution_twice():
    """Convolutions' and batch norms' outputs, 11.1 M of each in ResNet-50 (timm's results, activations), in
    bfloat16; ReLUs and sums are done in place."""
    expected = 2 * 2 * 11.11e6
    assert abs(bytes_an_image("resnet50") / expected - 1) < 0.05


def test_the_published_micro_batch_and_a_larger_network():
    """ViT-B's 112 M weights of MAE take four numbers each; activations computed again are not kept."""
    recipe = RECIPES["mae_vitb"]
    estimate = estimate_memory(recipe, 16)
    assert 4 * 4 * 110e6 < estimate.state < 4 * 4 * 114e6
    again = estimate_memory(changed(recipe, checkpoint_activations=True), 16)
    assert again.state == estimate.state and again.images < 0.8 * estimate.images


def test_what_does_not_fit_is_said_before_queueing():
    estimate = MemoryEstimate(state=2 * GIB, images=40 * GIB)
    text = estimate.describe(256, (40, 80))
    assert "does not fit 40 GB" in text and ", fits 80 GB" in text and "--micro-batch" not in text
    assert "--micro-batch" in estimate.describe(256, (40,))
    assert "FSDP" in MemoryEstimate(state=90 * GIB, images=GIB).describe(1, (80,))
