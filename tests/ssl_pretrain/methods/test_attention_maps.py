"""Attention maps, against timm's own weights, and where they are drawn."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from ssl_pretrain.methods.attention_maps import SIDE, attention_sheet, class_attention, has_class_attention
from ssl_pretrain.methods.trunks import create_trunk
from tests.ssl_pretrain import tiny

TOP = 24  # of the first row of a sheet with a title


@pytest.mark.parametrize("height", [64, 48])
def test_weights_are_those_that_timm_computes(height: int):
    torch.manual_seed(0)
    vit = create_trunk(tiny.VIT, 64).eval()
    image_BCHW = torch.randn(2, 3, height, 64)
    found = class_attention(vit, image_BCHW)
    attention, kept = vit.blocks[-1].attn, []
    attention.fused_attn = False  # then they pass through a layer of their own
    attention.attn_drop.register_forward_hook(lambda _module, given, _result: kept.append(given[0]))
    expected = class_attention(vit, image_BCHW)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.flatten(2), kept[0][:, :, 0, 1:])
    assert found.shape == (2, 2, height // 16, 4)
    assert not attention._forward_pre_hooks


def test_what_has_a_class_token():
    assert has_class_attention(create_trunk(tiny.VIT, 64))
    assert not has_class_attention(create_trunk(tiny.RESNET, 64))
    assert not has_class_attention(timm.create_model("vit_tiny_patch16_224", class_token=False, global_pool="avg"))


def test_the_token_that_is_looked_at_is_bright_where_it_lies():
    """Row 1, column 4 of 3 x 6 tokens in the first head; row 2, column 0 in the second."""
    weight_BHhw = torch.zeros(1, 2, 3, 6)
    weight_BHhw[0, 0, 1, 4] = weight_BHhw[0, 1, 2, 0] = 0.7
    image_BCHW = torch.full((1, 3, 48, 96), 200, dtype=torch.uint8)
    sheet = np.asarray(attention_sheet(image_BCHW, weight_BHhw).convert("L")).astype(int)
    cell = SIDE / 6

    def level(column: int, token: tuple[int, int]) -> int:
        y, x = ((index + 0.5) * cell for index in token)
        return int(sheet[TOP + round(y), column * (SIDE + 4) + round(x)])

    patch, mean, first, second = range(4)
    tokens = [(row, column) for row in range(3) for column in range(6)]
    assert all(abs(level(patch, token) - 200) < 3 for token in tokens)
    assert [token for token in tokens if level(mean, token) > 190] == [(1, 4), (2, 0)]
    assert all(level(mean, token) < 40 for token in tokens if token not in ((1, 4), (2, 0)))
    assert [token for token in tokens if level(first, token) > 250] == [(1, 4)]
    assert [token for token in tokens if level(second, token) > 250] == [(2, 0)]
    assert isinstance(attention_sheet(image_BCHW, torch.ones(1, 2, 3, 6)), Image.Image)
