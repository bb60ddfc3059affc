"""ViTAdapter against timm's blocks, a literal windowed attention, and convolution arithmetic."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from shared.model.vit_adapter import Extractor, ViTAdapter, cell_centres, windowed_attention, windowed_block

ARCH = "vit_tiny_patch16_224"


def plain_vit(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(ARCH, class_token=False, global_pool="avg", num_classes=0).eval()


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def slow_windowed_attention(attention: nn.Module, tokens_ND: np.ndarray, size, window: int) -> np.ndarray:
    """One window and one head after the other; what lies beyond the map is a key and a value of zeros."""
    (height, width), heads, channels = size, attention.num_heads, tokens_ND.shape[-1]
    weight, bias = (p.detach().double().numpy() for p in attention.qkv.parameters())
    qkv = np.zeros((-(-height // window) * window, -(-width // window) * window, 3, heads, channels // heads))
    qkv[:height, :width] = (tokens_ND @ weight.T + bias).reshape(height, width, 3, heads, -1)
    mixed = np.zeros((*qkv.shape[:2], channels))
    for top in range(0, height, window):
        for left in range(0, width, window):
            part = qkv[top : top + window, left : left + window].reshape(window**2, 3, heads, -1)
            query, key, value = part.transpose(1, 2, 0, 3)
            scores = query @ key.transpose(0, 2, 1) / (channels // heads) ** 0.5
            values = (softmax(scores) @ value).transpose(1, 0, 2).reshape(window, window, channels)
            mixed[top : top + window, left : left + window] = values
    weight, bias = (p.detach().double().numpy() for p in attention.proj.parameters())
    return mixed[:height, :width].reshape(-1, channels) @ weight.T + bias


@pytest.mark.parametrize(("size", "window"), [((14, 14), 14), ((32, 16), 14), ((5, 7), 3), ((4, 2), 6)])
def test_windowed_attention_equals_the_slow_one(size, window):
    torch.manual_seed(0)
    attention = plain_vit().blocks[0].attn
    nn.init.normal_(attention.qkv.weight, std=0.2)
    nn.init.normal_(attention.qkv.bias)
    tokens = torch.randn(2, size[0] * size[1], 192)
    with torch.inference_mode():
        found = windowed_attention(attention, tokens, size, window).numpy()
    for image in range(2):
        expected = slow_windowed_attention(attention, tokens[image].double().numpy(), size, window)
        np.testing.assert_allclose(found[image], expected, atol=1e-4)


def test_a_windowed_block_is_timms_block_on_every_window():
    """28 x 28 tokens are four whole windows, so timm's own block can be the reference."""
    block = plain_vit().blocks[3]
    tokens = torch.randn(1, 28 * 28, 192)
    with torch.inference_mode():
        found = windowed_block(block, tokens, (28, 28)).view(28, 28, 192)
        for top in (0, 14):
            for left in (0, 14):
                window = tokens.view(28, 28, 192)[top : top + 14, left : left + 14]
                expected = block(window.reshape(1, 196, 192)).view(14, 14, 192)
                torch.testing.assert_close(found[top : top + 14, left : left + 14], expected, atol=1e-5, rtol=0)


def caught_tokens(adapter: ViTAdapter, image: torch.Tensor, parts: nn.ModuleList, place: int):
    """Return what is handed to each of the adapter's parts as its input number `place`."""
    caught: list[torch.Tensor] = []
    hooks = [
        part.register_forward_pre_hook(lambda _module, inputs: caught.append(inputs[place])) for part in parts
    ]
    with torch.inference_mode():
        adapter(image)
    for hook in hooks:
        hook.remove()
    return caught


def vit_tokens(adapter: ViTAdapter, image: torch.Tensor) -> list[torch.Tensor]:
    """Return the ViT's tokens after each of the four runs of blocks."""
    return caught_tokens(adapter, image, adapter.extractors, place=1)


def adapter_around(vit: nn.Module) -> ViTAdapter:
    adapter = ViTAdapter(ARCH).eval()
    adapter.trunk.load_state_dict(
        {name: tensor for name, tensor in vit.state_dict().items() if not name.startswith("fc_norm")}
    )
    return adapter


def test_a_fresh_adapter_leaves_the_vit_alone():
    """At 224 px a window holds the whole image: the tokens are those of timm's ViT, run after run."""
    vit = plain_vit()
    image = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        _, expected = vit.forward_intermediates(image, indices=[2, 5, 8, 11], output_fmt="NLC")
    for tokens, wanted in zip(vit_tokens(adapter_around(vit), image), expected, strict=True):
        torch.testing.assert_close(tokens, wanted, atol=1e-4, rtol=0)


def test_blocks_2_5_8_11_look_everywhere_and_the_others_within_windows():
    """At 448 px: timm's blocks, on windows cut out by hand or on the whole image, after block by block."""
    vit = plain_vit()
    image = torch.randn(1, 3, 448, 448)
    with torch.inference_mode():
        tokens = vit.patch_embed.proj(image).flatten(2).mT + bicubic(vit.pos_embed, (28, 28))
        expected = []
        for index, block in enumerate(vit.blocks):
            if index in (2, 5, 8, 11):
                tokens = block(tokens)
                expected.append(tokens)
            else:
                windows = tokens.view(2, 14, 2, 14, 192).transpose(1, 2).reshape(4, 196, 192)
                tokens = block(windows).view(2, 2, 14, 14, 192).transpose(1, 2).reshape(1, 784, 192)
    for found, wanted in zip(vit_tokens(adapter_around(vit), image), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def bicubic(position_1ND: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Keys' cubic convolution with a = -0.75 at half-pixel centres, borders repeated, as matrices."""
    grid = position_1ND.detach().double().numpy().reshape(14, 14, -1)
    rows, columns = cubic_matrix(size[0]), cubic_matrix(size[1])
    resampled = np.einsum("ri,cj,ijd->rcd", rows, columns, grid)
    return torch.from_numpy(resampled.reshape(1, size[0] * size[1], -1)).float()


def cubic_matrix(size: int, source: int = 14, a: float = -0.75) -> np.ndarray:
    matrix = np.zeros((size, source))
    for target in range(size):
        centre = (target + 0.5) * source / size - 0.5
        for near in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            t = abs(centre - near)
            inner = (a + 2) * t**3 - (a + 3) * t**2 + 1
            outer = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
            matrix[target, np.clip(near, 0, source - 1)] += inner if t <= 1 else outer
    return matrix


@pytest.mark.parametrize("size", [(64, 64), (224, 224), (128, 448), (512, 320)])
def test_position_embeddings_follow_the_images_grid(size):
    adapter = ViTAdapter(ARCH).eval()
    with torch.no_grad():
        adapter.trunk.patch_embed.proj.weight.zero_()
        adapter.trunk.patch_embed.proj.bias.zero_()
    found = caught_tokens(adapter, torch.zeros(1, 3, *size), adapter.injectors, place=0)[0]
    expected = bicubic(adapter.trunk.pos_embed, (size[0] // 16, size[1] // 16))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_the_injector_speaks_once_gamma_moves():
    vit = plain_vit()
    adapter = adapter_around(vit)
    image = torch.randn(1, 3, 64, 64)
    silent = vit_tokens(adapter, image)
    nn.init.constant_(adapter.injectors[0].gamma, 0.1)
    speaking = vit_tokens(adapter, image)
    assert not torch.allclose(silent[0], speaking[0], atol=1e-3)


def test_extractors_drop_their_feed_forward_part_while_training():
    torch.manual_seed(0)
    extractor = Extractor(width=32, heads=2, drop_path=0.5).train()
    prior, tokens, sizes = torch.randn(64, 21, 32), torch.randn(64, 4, 32), [(4, 4), (2, 2), (1, 1)]
    kept = (extractor(prior, tokens, sizes) != extractor.eval()(prior, tokens, sizes)).flatten(1).any(1)
    assert 0.9 < kept.float().mean() <= 1  # dropped (0 x) or doubled (2 x), never as in evaluation
    with torch.no_grad():
        both = [extractor.train()(prior, tokens, sizes) for _ in range(2)]
    same = (both[0] == both[1]).flatten(1).all(1).float().mean()
    assert 0.3 < same < 0.7  # per image


def test_centres_of_cells():
    centres = cell_centres([(2, 4), (1, 2)], torch.device("cpu"))
    assert centres[:3].tolist() == [[0.125, 0.25], [0.375, 0.25], [0.625, 0.25]]
    assert centres[4:].tolist()[0] == [0.125, 0.75]
    assert centres[8:].tolist() == [[0.25, 0.5], [0.75, 0.5]]


@pytest.mark.parametrize(
    ("arch", "heads", "values"),
    [
        ("vit_tiny_patch16_224", 3, 96),
        ("vit_small_patch16_224", 6, 192),
        ("vit_base_patch16_224", 12, 384),
        ("vit_large_patch16_224", 16, 512),
    ],
)
def test_widths_follow_the_vit(arch, heads, values):
    with torch.device("meta"):
        adapter = ViTAdapter(arch)
    attention = adapter.injectors[0].attention
    assert (attention.heads, attention.value.out_features) == (heads, values)
    assert adapter.extractors[0].feedforward.expand.out_features == values // 2
    assert adapter.extractors[0].attention.levels == 1


def test_base_has_the_published_number_of_parameters():
    """97.469 M with the class token's place in pos_embed (768 numbers), which is never used and left out."""
    with torch.device("meta"):
        adapter = ViTAdapter("vit_base_patch16_224")
    assert round((sum(p.numel() for p in adapter.parameters()) + 768) / 1e6, 3) == 97.469
