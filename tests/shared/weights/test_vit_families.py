"""Published pathology ViTs and DINOv3: recognised, given an adapter, and with the features of timm's own network.

Configurations as in the model cards and config.json of each (UNI2-h, Virchow2: timm's factory with changes).
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import SwiGLUPacked
from torch import Tensor, nn

from shared.model.backbones import BACKBONES, create_backbone
from shared.model.vit_adapter import ViTAdapter, create_vit, windowed_block
from shared.weights import vit_families
from shared.weights.foreign_layouts import find_trunk
from shared.weights.vit_families import CHANGES_OF_GIANT, DINOV3_VITS, LAYER_SCALED_VITS
from shared.weights.weights_file import IMAGENET_MEAN, IMAGENET_STD, Weights, load_into, read
from tests.shared.weights.test_foreign_layouts import blank, enlarged, source, token_features

GATED = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "init_values": 1e-5, "img_size": 224}
PUBLISHED: dict[str, tuple[str, dict[str, Any], str]] = {
    "UNI": ("vit_large_patch16_224", {"init_values": 1e-5}, "vit_large_patch14_dinov2"),
    "UNI2-h": (
        "vit_giant_patch14_224",
        {**GATED, "depth": 24, "num_heads": 24, "embed_dim": 1536, "mlp_ratio": 2.66667 * 2}
        | {"no_embed_class": True, "reg_tokens": 8},
        "vit_giant24_patch14_dinov2",
    ),
    "Virchow2": (
        "vit_huge_patch14_224",
        {**GATED, "reg_tokens": 4, "mlp_ratio": 5.3375, "global_pool": ""},
        "vit_huge_patch14_virchow2",
    ),
    "H-optimus": ("vit_giant_patch14_reg4_dinov2", {"img_size": 224}, "vit_giant_patch14_dinov2"),
    "GigaPath": ("vit_giant_patch14_dinov2", {"img_size": 224, "patch_size": 16}, "vit_giant_patch14_dinov2"),
    **{name: (name, {}, name) for name in DINOV3_VITS.values() if timm.is_model(name)},
}
SMALL_DINOV3 = [
    name for name in ("vit_small_patch16_dinov3", "vit_small_plus_patch16_dinov3") if name in PUBLISHED
]
Convert = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@pytest.mark.filterwarnings("ignore:.*to a meta parameter")
@pytest.mark.parametrize("family", PUBLISHED)
def test_published_shapes_fit_their_trunks(family: str) -> None:
    """Names and shapes only; all tensors but class token, registers and final norm are used."""
    arch, options, name = PUBLISHED[family]
    with torch.device("meta"):
        tensors = timm.create_model(arch, num_classes=0, **options).state_dict()
        trunk = create_vit(name)
        assert isinstance(create_backbone(name), ViTAdapter)
    weights = Weights(Path("large.pth"), blank(find_trunk(tensors).tensors))
    assert weights.arch == name
    report = load_into(trunk, weights)
    assert report.missing == [] and len(report.used) == len(trunk.state_dict())
    assert {each.split(".")[0] for each in report.dropped} <= {"cls_token", "reg_token", "norm"}


@pytest.mark.parametrize(
    ("family", "mean", "std"),
    [
        ("H-optimus", (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)),
        ("GigaPath", IMAGENET_MEAN, IMAGENET_STD),
        ("UNI2-h", IMAGENET_MEAN, IMAGENET_STD),
    ],
)
def test_normalisation_without_config_json(
    family: str, mean: tuple[float, ...], std: tuple[float, ...], tmp_path: Path
) -> None:
    arch, options, _ = PUBLISHED[family]
    with torch.device("meta"):
        tensors = timm.create_model(arch, num_classes=0, **options).state_dict()
    torch.save(blank(tensors), tmp_path / "pytorch_model.bin")
    weights = read(tmp_path / "pytorch_model.bin")
    assert (weights.mean, weights.std) == (mean, std)


@pytest.mark.parametrize("family", ["UNI2-h", "Virchow2", "H-optimus", "GigaPath"])
def test_features_of_shrunk_giants(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arch, options, name = PUBLISHED[family]
    small = {"embed_dim": 96, "depth": 4, "num_heads": 4}
    patch = options.get("patch_size", 14)
    model = source(arch, **options | small | {"img_size": patch * vit_families.DINOV2_GRID, "num_classes": 0})
    monkeypatch.setitem(LAYER_SCALED_VITS, (96, 4), "shrunk")
    monkeypatch.setitem(CHANGES_OF_GIANT, "shrunk", CHANGES_OF_GIANT.get(name, {}) | small)
    monkeypatch.setitem(BACKBONES, "shrunk", ViTAdapter)
    torch.save(model.state_dict(), tmp_path / "shrunk.pth")
    weights = read(tmp_path / "shrunk.pth")
    backbone = create_backbone(weights.arch).eval()
    assert weights.arch == "shrunk" and load_into(backbone.trunk, weights).missing == []
    torch.manual_seed(1)
    image = torch.randn(2, 3, 3 * patch, 3 * patch)
    with torch.inference_mode():
        features = token_features(backbone.trunk, enlarged(image, patch))
        torch.testing.assert_close(features, token_features(model, image), atol=1e-4, rtol=1e-4)
        assert all(level.isfinite().all() for level in backbone(torch.randn(1, 3, 64, 64)))


def meta_names(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """As Meta publishes DINOv3: biases of zero, their mask, periods, registers called storage."""
    pairs = ((r"\.gamma_([12])$", r".ls\1.gamma"), ("^reg_token$", "storage_tokens"))
    pairs += ((r"fc1_g\.", "w1."), (r"fc1_x\.", "w2."))
    if any("fc1_g" in name for name in own):
        pairs += ((r"mlp\.fc2\.", "mlp.w3."),)
    renamed = renamed_by(own, pairs)
    for name in [name for name in renamed if name.endswith("qkv.weight")]:
        renamed[name.replace("weight", "bias")] = torch.zeros(len(renamed[name]))
        renamed[name.replace("weight", "bias_mask")] = torch.full((len(renamed[name]),), torch.nan)
    return renamed | {"rope_embed.periods": torch.ones(16), "mask_token": torch.zeros(1, 384)}


def hub_names(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """As `DINOv3ViTModel` of transformers: three projections, of which two have biases."""
    renamed = renamed_by(
        own,
        (
            (r"^patch_embed\.proj\.", "embeddings.patch_embeddings."),
            (r"^cls_token$", "embeddings.cls_token"),
            (r"^reg_token$", "embeddings.register_tokens"),
            (r"^blocks\.", "layer."),
            (r"\.gamma_([12])$", r".layer_scale\1.lambda1"),
            (r"\.attn\.proj\.", ".attention.o_proj."),
            (r"\.mlp\.fc1_g\.", ".mlp.gate_proj."),
            (r"\.mlp\.fc1(?:_x)?\.", ".mlp.up_proj."),
            (r"\.mlp\.fc2\.", ".mlp.down_proj."),
        ),
    )
    for name in [name for name in renamed if name.endswith("attn.qkv.weight")]:
        start = name.removesuffix("attn.qkv.weight") + "attention."
        for part, rows in zip("qkv", renamed.pop(name).chunk(3), strict=True):
            renamed[f"{start}{part}_proj.weight"] = rows
            if part != "k":
                renamed[f"{start}{part}_proj.bias"] = torch.zeros(len(rows))
    return renamed


def renamed_by(own: dict[str, Tensor], pairs: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in own.items():
        for pattern, replacement in pairs:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


@pytest.mark.parametrize("convert", [dict, meta_names, hub_names])
@pytest.mark.parametrize("name", SMALL_DINOV3)
def test_features_of_dinov3(name: str, convert: Convert, tmp_path: Path) -> None:
    """An image of one window: the adapter's ViT, still unmoved by injectors, against timm's whole network."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.uniform_(0.5, 1.0)
    torch.save(convert(model.state_dict()), tmp_path / "dinov3.pth")
    weights = read(tmp_path / "dinov3.pth")
    backbone = create_backbone(weights.arch).eval()
    assert weights.arch == name and load_into(backbone.trunk, weights).missing == []
    alone = timm.create_model(name, num_classes=0, class_token=False, num_reg_tokens=0).eval()
    alone.load_state_dict(model.state_dict(), strict=False)
    outputs: list[Tensor] = []
    backbone.trunk.blocks[-1].register_forward_hook(lambda *call: outputs.append(call[2]))
    image = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        backbone(image)
        (expected,) = alone.forward_intermediates(image, indices=[11], norm=False, intermediates_only=True)
    torch.testing.assert_close(outputs[0], expected.flatten(2).transpose(1, 2), atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not SMALL_DINOV3, reason="this release of timm has no DINOv3")
def test_windows_of_a_rotary_block_keep_their_places() -> None:
    """Two windows side by side: each is timm's block on its tokens with the rotations of the whole image."""
    trunk = create_vit("vit_small_patch16_dinov3").eval()
    rope = trunk.rope.get_embed(shape=[14, 28])
    tokens = torch.randn(2, 14 * 28, 384)
    place = torch.arange(14 * 28).unflatten(0, (14, 28))
    with torch.inference_mode():
        found = windowed_block(trunk.blocks[0], tokens, (14, 28), rope)
        for rows in (place[:, :14].flatten(), place[:, 14:].flatten()):
            expected = trunk.blocks[0](tokens[:, rows], rope=rope[rows])
            torch.testing.assert_close(found[:, rows], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not SMALL_DINOV3, reason="this release of timm has no DINOv3")
def test_every_parameter_of_a_rotary_adapter_takes_part() -> None:
    backbone = create_backbone("vit_small_patch16_dinov3")
    sum(level.square().mean() for level in backbone(torch.randn(2, 3, 64, 96))).backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []


def test_biases_that_matter_are_not_left_out() -> None:
    """A DINOv3 whose attention has biases is another network than timm's."""
    names = {f"blocks.{index}.attn.qkv.bias": torch.ones(3) for index in range(2)}
    content = {
        "patch_embed.proj.weight": torch.zeros(4, 3, 16, 16),
        "storage_tokens": torch.zeros(1, 4, 4),
        **names,
    }
    assert names.keys() <= find_trunk(content).tensors.keys()
