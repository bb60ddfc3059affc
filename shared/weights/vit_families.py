"""ViTs that are recognised by width and number of blocks, and how timm makes each with patches of 16 px."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

PATCH = 16  # px, of every ViT here
DINOV2_GRID = 37  # side of the grid that DINOv2's position embeddings were trained for: 518 px of 14 px patches
# (width, blocks) of a plain ViT -> timm name.
VITS = {
    (192, 12): "vit_tiny_patch16_224",
    (384, 12): "vit_small_patch16_224",
    (768, 12): "vit_base_patch16_224",
    (1024, 24): "vit_large_patch16_224",
}
# The same of ViTs with layer scale: timm's names of DINOv2's networks, which other projects took over with
# patches of 14 or 16 px and with or without registers. Here all have patches of 16 px and no registers.
LAYER_SCALED_VITS = {
    (384, 12): "vit_small_patch14_dinov2",
    (768, 12): "vit_base_patch14_dinov2",
    (1024, 24): "vit_large_patch14_dinov2",  # UNI, Phikon-v2
    (1536, 40): "vit_giant_patch14_dinov2",  # H-optimus, Prov-GigaPath
    (1536, 24): "vit_giant24_patch14_dinov2",  # UNI2-h; not among timm's names
    (1280, 32): "vit_huge_patch14_virchow2",  # Virchow and Virchow2; not among timm's names
}
# (width, blocks, gated feed-forward layers) of DINOv3's ViTs: rotary instead of learned positions.
DINOV3_VITS = {
    (384, 12, False): "vit_small_patch16_dinov3",
    (384, 12, True): "vit_small_plus_patch16_dinov3",
    (768, 12, False): "vit_base_patch16_dinov3",
    (1024, 24, False): "vit_large_patch16_dinov3",
    (1280, 32, True): "vit_huge_plus_patch16_dinov3",
}
# Numbers of DINOv2's giant that other networks have changed (their config.json and model cards).
CHANGES_OF_GIANT: dict[str, dict[str, Any]] = {
    "vit_giant24_patch14_dinov2": {"depth": 24},
    "vit_huge_patch14_virchow2": {"embed_dim": 1280, "depth": 32, "num_heads": 16, "mlp_ratio": 5.3375},
}
# H-optimus-0 and -1 (model cards): no ImageNet normalisation, unlike all others here.
H_OPTIMUS_MEAN = (0.707223, 0.578729, 0.703617)
H_OPTIMUS_STD = (0.211883, 0.230117, 0.177517)


def timm_options(arch: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the options by which `timm.create_model` makes an architecture with patches of 16 px."""
    if arch not in LAYER_SCALED_VITS.values():
        return arch, {}
    options: dict[str, Any] = {"patch_size": PATCH, "img_size": PATCH * DINOV2_GRID}
    if arch in CHANGES_OF_GIANT:
        return "vit_giant_patch14_dinov2", {**options, **CHANGES_OF_GIANT[arch]}
    return arch, options


def is_h_optimus(tensors: Mapping[str, Tensor]) -> bool:
    """Recognise H-optimus under timm's names: DINOv2's giant with registers, and positions for 224 px."""
    positions, registers = tensors.get("pos_embed"), tensors.get("reg_token")
    if positions is None or registers is None or "blocks.39.ls1.gamma" not in tensors:
        return False
    return positions.shape == (1, 16 * 16, 1536) and registers.shape[1] == 4
