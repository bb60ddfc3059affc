"""Attention maps of a ViT's class token."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from shared.reporting.pictures import contact_sheet

SIDE = 160


def has_class_attention(trunk: nn.Module) -> bool:
    """Return True if a timm trunk is a ViT with a class token."""
    return getattr(trunk, "cls_token", None) is not None and hasattr(trunk, "blocks")


@torch.no_grad()
def class_attention(vit: Any, image_BCHW: Tensor) -> Tensor:
    """Attention (B, heads, rows, columns) of the class token to each token of the image, in the last block.

    The weights sum to 1 together with those of the class token itself (and registers). They are computed here
    from the block's input, as torch's fused attention keeps its own to itself.
    """
    attention = vit.blocks[-1].attn
    inputs: list[Tensor] = []
    hook = attention.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    try:
        vit(image_BCHW)
    finally:
        hook.remove()
    weights_BHN = _first_row(attention, inputs[0])
    rows, columns = (side // vit.patch_embed.patch_size[0] for side in image_BCHW.shape[-2:])
    maps_BHhw: Tensor = weights_BHN[..., -rows * columns :].unflatten(-1, (rows, columns))
    return maps_BHhw


def _first_row(attention: Any, input_BND: Tensor) -> Tensor:
    """Compute the softmax (B, heads, N) of timm's `Attention` for its first query."""
    query, key, _ = attention.qkv(input_BND).unflatten(-1, (3, attention.num_heads, -1)).unbind(2)
    query_BHD, key_BNHD = attention.q_norm(query[:, 0]), attention.k_norm(key)
    logits_BHN = torch.einsum("bhd,bnhd->bhn", query_BHD, key_BNHD) * attention.scale
    attention_BHN: Tensor = logits_BHN.float().softmax(dim=-1)
    return attention_BHN


def attention_sheet(image_BCHW: Tensor, attention_BHhw: Tensor) -> Image.Image:
    """Rows of a patch (uint8), the mean of its heads and every head; bright where the class token attends.

    Each map is stretched from its own least to its own greatest weight.
    """
    heads = attention_BHhw.shape[1]
    images = []
    for image_CHW, maps_Hhw in zip(image_BCHW.cpu(), attention_BHhw.cpu(), strict=True):
        patch = Image.fromarray(image_CHW.permute(1, 2, 0).numpy())
        maps = [maps_Hhw.mean(dim=0), *maps_Hhw]
        images += [patch, _heat(patch, maps[0]), *(_map(one_hw, patch.size) for one_hw in maps[1:])]
    captions = ["patch", "mean of heads", *(f"head {number}" for number in range(1, heads + 1))]
    title = "what the class token looks at in the last block"
    return contact_sheet(images, len(captions), captions * len(image_BCHW), SIDE, title)


def _map(weight_hw: Tensor, size: tuple[int, int]) -> Image.Image:
    """Draw a gray picture of a map, one square a token."""
    low, high = weight_hw.min(), weight_hw.max()
    level_hw = (255 * (weight_hw - low) / (high - low).clamp_min(1e-12)).round().to(torch.uint8)
    return Image.fromarray(level_hw.numpy()).resize(size, Image.Resampling.NEAREST)


def _heat(patch: Image.Image, weight_hw: Tensor) -> Image.Image:
    """Darken the patch where the map is low."""
    light = _map(weight_hw, patch.size).point(lambda level: 40 + level * 215 / 255)
    return Image.composite(patch, Image.new("RGB", patch.size, "black"), light)
