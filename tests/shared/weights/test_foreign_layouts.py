"""Checkpoints as other projects write them: the trunk that comes out gives the source network's features."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from shared.errors import UserError
from shared.model.backbones import create_backbone
from shared.model.vit_adapter import create_vit
from shared.weights.foreign_layouts import find_trunk
from shared.weights.weights_file import IMAGENET_MEAN, LoadReport, Weights, load_into, read

TINY = "vit_tiny_patch16_224"
SMALL_SCALED = "vit_small_patch14_dinov2"
Tensors = dict[str, Tensor]


def source(arch: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        model = timm.create_model(arch, **options)
    return varied(model)


def varied(model: nn.Module) -> nn.Module:
    """Numbers for a network: no scale is one and no shift zero, so that none can be lost or swapped unseen."""
    torch.manual_seed(0)
    model = model.to_empty(device="cpu").eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.ndim > 1:
                tensor.normal_(std=tensor[0].numel() ** -0.5)
            elif tensor.is_floating_point():
                tensor.uniform_(0.5, 1.0)
    return model


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return source("resnet50")


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    return source(TINY, num_classes=0)


@pytest.fixture(scope="module")
def scaled_vit() -> nn.Module:
    """DINOv2's small network: patches of 14 px, layer scale, 37 x 37 places and a class token."""
    return source(SMALL_SCALED, init_values=1.0, num_classes=0)


def under(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def blank(tensors: Mapping[str, Tensor]) -> Tensors:
    """Tensors of the same shapes that are not the ones wanted; they take no place in a file."""
    return {name: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) for name, tensor in tensors.items()}


def without(tensors: Mapping[str, Tensor], *endings: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(endings)}


def loaded(folder: Path, content: Mapping[str, Any]) -> tuple[nn.Module, Weights, LoadReport]:
    """Trunk in eval mode from a checkpoint that went through a file."""
    path = folder / "foreign.pth"
    torch.save(content, path)
    weights = read(path)
    path.unlink()
    trunk = empty_trunk(weights.arch)
    return trunk, weights, load_into(trunk, weights)


def empty_trunk(arch: str) -> nn.Module:
    """Return a backbone's trunk in which every number that is not loaded shows."""
    with torch.device("meta"):
        trunk = create_backbone(arch).trunk
    trunk = trunk.to_empty(device="cpu").eval()
    with torch.no_grad():
        for tensor in trunk.state_dict().values():
            tensor.fill_(torch.nan if tensor.is_floating_point() else 0)
    return trunk


def token_features(vit: nn.Module, image_BCHW: Tensor) -> Tensor:
    """Return a timm ViT's patch tokens alone through its blocks, at the first places of its grid."""
    tokens = vit.patch_embed.proj(image_BCHW).flatten(2).transpose(1, 2)
    grid = vit.patch_embed.num_patches
    return vit.blocks(tokens + vit.pos_embed[:, -grid:][:, : tokens.shape[1]])


def check_vit(expected: nn.Module, trunk: nn.Module) -> None:
    torch.manual_seed(1)
    image = torch.randn(2, 3, 48, 48)
    with torch.inference_mode():
        torch.testing.assert_close(
            token_features(trunk, image), token_features(expected, image), atol=1e-5, rtol=1e-5
        )
    grid = expected.patch_embed.num_patches
    torch.testing.assert_close(trunk.pos_embed, expected.pos_embed[:, -grid:])


RESNETS = {
    "torchvision": lambda own, other: own,
    "torchvision of 2016": lambda own, other: without(own, "num_batches_tracked"),
    "Lunit": lambda own, other: without(own, "fc.weight", "fc.bias"),
    "compiled": lambda own, other: under("_orig_mod.module.", own),
    "MoCo v2": lambda own, other: {
        "epoch": 200,
        "arch": "resnet50",
        "state_dict": {
            **under("module.encoder_q.", without(own, "fc.weight", "fc.bias")),
            **under("module.encoder_q.", {"fc.0.weight": torch.zeros(4, 4), "fc.2.weight": torch.zeros(4, 4)}),
            **under("module.encoder_k.", other),
            "module.queue": torch.zeros(4, 8),
            "module.queue_ptr": torch.zeros(1, dtype=torch.long),
        },
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.03}]},
    },
    "SwAV": lambda own, other: {
        **under("module.", without(own, "fc.weight", "fc.bias")),
        "module.projection_head.0.weight": torch.zeros(4, 4),
        "module.prototypes.weight": torch.zeros(4, 4),
    },
    "DINO": lambda own, other: {
        "student": {**under("module.backbone.", other), "module.head.mlp.0.weight": torch.zeros(4, 4)},
        "teacher": {**under("module.backbone.", own), "module.head.mlp.0.weight": torch.zeros(4, 4)},
        "args": argparse.Namespace(arch="resnet50", global_crops_scale=(0.14, 1.0)),
        "epoch": 800,
    },
    "VISSL": lambda own, other: {
        "phase_idx": 3,
        "classy_state_dict": {
            "base_model": {
                "model": {
                    "trunk": under("_feature_blocks.", without(own, "fc.weight", "fc.bias")),
                    "heads": {"0.clf.0.weight": torch.zeros(4, 4)},
                },
                "meta": {},
            }
        },
    },
    "lightly, DINO": lambda own, other: {
        "state_dict": {**under("student_backbone.", other), **under("backbone.", own)},
        "hyper_parameters": {"batch_size_per_device": 64},
    },
    "lightly, MoCo": lambda own, other: {
        "state_dict": {**under("backbone_momentum.", children(other)), **under("backbone.", children(own))}
    },
}


def children(tensors: Tensors) -> Tensors:
    """Make a ResNet without its classifier, as `nn.Sequential(*list(resnet.children())[:-1])`."""
    places = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    return {
        name.replace(name.split(".")[0], str(places[name.split(".")[0]]), 1): tensor
        for name, tensor in without(tensors, "fc.weight", "fc.bias").items()
    }


@pytest.mark.parametrize("family", RESNETS)
def test_residual_networks(family: str, resnet: nn.Module, tmp_path: Path) -> None:
    own = resnet.state_dict()
    trunk, weights, report = loaded(tmp_path, RESNETS[family](own, blank(own)))
    assert (weights.arch, weights.mean, report.missing) == ("resnet50", IMAGENET_MEAN, [])
    torch.manual_seed(1)
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = resnet.forward_intermediates(image, indices=(1, 2, 3, 4), intermediates_only=True)
        for level, wanted in zip(trunk(image), expected, strict=True):
            torch.testing.assert_close(level, wanted, atol=1e-5, rtol=1e-5)


def mae_decoder() -> Tensors:
    return {"mask_token": torch.zeros(1, 1, 8), "decoder_blocks.0.norm1.weight": torch.zeros(8)}


def split_attention(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> Tensors:
    """timm's names changed by `names`; each joined layer of query, key and value becomes three."""
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        for old, new in names.items():
            name = re.sub(old, new, name)
        if ".qkv." in name:
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[name.replace(".qkv.", f".{part}.")] = rows
        else:
            renamed[name] = tensor
    return renamed


def huggingface_vit(tensors: Mapping[str, Tensor]) -> Tensors:
    return split_attention(
        tensors,
        {
            r"^cls_token": "embeddings.cls_token",
            r"^pos_embed": "embeddings.position_embeddings",
            r"^patch_embed\.proj": "embeddings.patch_embeddings.projection",
            r"^norm\.": "layernorm.",
            r"^blocks\.": "encoder.layer.",
            r"norm1": "layernorm_before",
            r"norm2": "layernorm_after",
            r"attn\.qkv": "attention.attention.qkv",
            r"attn\.proj": "attention.output.dense",
            r"mlp\.fc1": "intermediate.dense",
            r"mlp\.fc2": "output.dense",
        },
    )


def in_version_5(tensors: Mapping[str, Tensor]) -> Tensors:
    """Return the names in memory of transformers 5.23."""
    names = {
        r"^encoder\.layer\.": "layers.",
        r"attention\.attention\.(.)[a-z]+\.": r"attention.\1_proj.",
        r"attention\.output\.dense": "attention.o_proj",
        r"intermediate\.dense": "mlp.fc1",
        r"output\.dense": "mlp.fc2",
    }
    return split_attention(tensors, names)


def huggingface_dinov2(tensors: Mapping[str, Tensor]) -> Tensors:
    return split_attention(
        tensors,
        {
            r"^(cls_token|register_tokens)": r"embeddings.\1",
            r"^pos_embed": "embeddings.position_embeddings",
            r"^patch_embed\.proj": "embeddings.patch_embeddings.projection",
            r"^norm\.": "layernorm.",
            r"^blocks\.": "encoder.layer.",
            r"attn\.qkv": "attention.attention.qkv",
            r"attn\.proj": "attention.output.dense",
            r"ls(\d)\.gamma": r"layer_scale\1.lambda1",
        },
    )


VITS = {
    "timm": lambda own, other: {**own, "head.weight": torch.zeros(9, 192), "fc_norm.weight": torch.zeros(192)},
    "MAE": lambda own, other: {"model": {**own, **mae_decoder()}},
    "MAE in training": lambda own, other: {
        "model": {**own, **mae_decoder()},
        "optimizer": {"state": {}, "param_groups": []},
        "epoch": 799,
        "scaler": {"scale": 1.0},
        "args": argparse.Namespace(model="mae_vit_tiny", blr=1.5e-4, distributed=True),
    },
    "DINO": lambda own, other: {
        "student": {**under("module.backbone.", other), "module.head.last_layer.weight_g": torch.zeros(4, 1)},
        "teacher": {**under("backbone.", own), "head.last_layer.weight_g": torch.zeros(4, 1)},
        "args": argparse.Namespace(patch_size=16),
    },
    "DINO, only the student": lambda own, other: {"student": under("module.backbone.", own)},
    "lightly": lambda own, other: {
        "state_dict": {
            **under("student_backbone.vit.", other),
            **under("teacher_backbone.vit.", own),
            "teacher_backbone.mask_token": torch.zeros(1, 1, 192),
        }
    },
    "lightly, MAE": lambda own, other: {
        "state_dict": {
            **under("backbone.vit.", own),
            **under("decoder.", {"decoder_blocks.0.norm1.weight": own["norm.weight"]}),
        }
    },
    "MoCo v3": lambda own, other: {
        "state_dict": {**under("module.momentum_encoder.", other), **under("module.base_encoder.", own)}
    },
    "transformers": lambda own, other: {**huggingface_vit(own), "pooler.dense.weight": torch.zeros(192, 192)},
    "transformers 5, in memory": lambda own, other: in_version_5(huggingface_vit(own)),
    "transformers, classifier": lambda own, other: {
        **under("vit.", huggingface_vit(own)),
        "classifier.weight": torch.zeros(3, 192),
    },
    "transformers, MAE": lambda own, other: {
        **under("vit.", huggingface_vit(own)),
        **under("decoder.decoder_layers.0.", {"attention.attention.query.weight": torch.zeros(8, 8)}),
    },
}


@pytest.mark.parametrize("family", VITS)
def test_plain_vits(family: str, vit: nn.Module, tmp_path: Path) -> None:
    own = vit.state_dict()
    trunk, weights, report = loaded(tmp_path, VITS[family](own, blank(own)))
    assert (weights.arch, report.missing) == (TINY, [])
    assert {"cls_token", "norm.weight"} <= set(report.dropped)
    check_vit(vit, trunk)


def test_torchvision_s_vit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with torch.device("meta"):
        model = torchvision.models.VisionTransformer(224, 16, 12, 3, 192, 768)
    model = varied(model)
    trunk, weights, report = loaded(tmp_path, model.state_dict())
    assert (weights.arch, report.missing) == (TINY, [])
    image = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        tokens = model.conv_proj(image).flatten(2).transpose(1, 2) + model.encoder.pos_embedding[:, 1:]
        torch.testing.assert_close(
            trunk.forward_features(image), model.encoder.layers(tokens), atol=1e-5, rtol=1e-5
        )


def enlarged(image_BCHW: Tensor, patch: int, size: int = 16) -> Tensor:
    """Every patch of an image resized on its own; what resampling a kernel undoes."""
    rows, columns = image_BCHW.shape[-2] // patch, image_BCHW.shape[-1] // patch
    patches = image_BCHW.unfold(2, patch, patch).unfold(3, patch, patch).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    resized = nn.functional.interpolate(patches, (size, size), mode="bicubic", antialias=True)
    resized = resized.unflatten(0, (-1, rows, columns)).permute(0, 3, 1, 4, 2, 5)
    return resized.reshape(len(image_BCHW), 3, rows * size, columns * size)


def dinov2(tensors: Mapping[str, Tensor]) -> Tensors:
    """As official files have it; the mask token is in all of them."""
    return {**tensors, "mask_token": torch.zeros(1, 384)}


def in_chunks(tensors: Mapping[str, Tensor], chunk: int = 4) -> Tensors:
    """Blocks in chunks, as in DINOv2's training: the number of the chunk, then the block's own."""
    return {
        re.sub(r"^blocks\.(\d+)", lambda found: f"blocks.{int(found[1]) // chunk}.{found[1]}", name): tensor
        for name, tensor in tensors.items()
    }


SCALED_VITS = {
    "timm": lambda own: own,
    "DINOv2": dinov2,
    "DINOv2 in training": lambda own: {
        "teacher": {**under("backbone.", in_chunks(dinov2(own))), "dino_head.mlp.0.weight": torch.zeros(4, 4)}
    },
    "registers": lambda own: {**dinov2(own), "register_tokens": torch.zeros(1, 4, 384)},
    "registers, timm": lambda own: {
        **own,
        "reg_token": torch.zeros(1, 4, 384),
        "pos_embed": own["pos_embed"][:, 1:],  # class token and registers have none
    },
    "registers with positions": lambda own: {
        **own,
        "reg_token": torch.zeros(1, 4, 384),
        "pos_embed": torch.cat([torch.zeros(1, 4, 384), own["pos_embed"]], dim=1),
    },
    "transformers": huggingface_dinov2,
    "transformers, registers": lambda own: under(
        "dinov2_with_registers.", huggingface_dinov2({**own, "register_tokens": torch.zeros(1, 4, 384)})
    ),
    "DeiT III": lambda own: {re.sub(r"\.ls(\d)\.gamma", r".gamma_\1", name): own[name] for name in own},
}


@pytest.mark.parametrize("family", SCALED_VITS)
def test_vits_with_layer_scale_and_patches_of_14_px(family: str, scaled_vit: nn.Module, tmp_path: Path) -> None:
    trunk, weights, report = loaded(tmp_path, SCALED_VITS[family](scaled_vit.state_dict()))
    assert (weights.arch, report.missing) == (SMALL_SCALED, [])
    assert trunk.patch_embed.proj.weight.shape == (384, 3, 16, 16)
    torch.manual_seed(1)
    image = torch.randn(2, 3, 42, 42)
    with torch.inference_mode():
        features = token_features(trunk, enlarged(image, 14))
        torch.testing.assert_close(features, token_features(scaled_vit, image), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(trunk.pos_embed, scaled_vit.pos_embed[:, 1:])


def test_uni_like_networks_differ_in_layer_scale_and_image_size_only(tmp_path: Path) -> None:
    model = source("vit_small_patch16_224", init_values=1.0, img_size=592, num_classes=0)
    trunk, weights, report = loaded(tmp_path, model.state_dict())
    assert (weights.arch, report.missing) == (SMALL_SCALED, [])
    check_vit(model, trunk)


@pytest.mark.filterwarnings("ignore:.*to a meta parameter")
@pytest.mark.parametrize(
    ("arch", "options", "name"),
    [
        ("vit_large_patch16_224", {"init_values": 1e-5}, "vit_large_patch14_dinov2"),  # UNI
        ("vit_large_patch14_reg4_dinov2", {}, "vit_large_patch14_dinov2"),
        ("vit_giant_patch14_reg4_dinov2", {"img_size": 224}, "vit_giant_patch14_dinov2"),  # H-optimus-0
        (
            "vit_giant_patch14_dinov2",
            {"depth": 24, "reg_tokens": 8, "img_size": 224},
            "vit_giant24_patch14_dinov2",
        ),
        ("vit_base_patch8_224", {}, "vit_base_patch16_224"),
    ],
)
def test_large_networks_fit_their_trunks(arch: str, options: dict[str, Any], name: str) -> None:
    """Names and shapes only: hundreds of millions of numbers would take long."""
    with torch.device("meta"):
        tensors = timm.create_model(arch, num_classes=0, **options).state_dict()
        trunk = create_vit(name)
    weights = Weights(Path("large.pth"), blank(find_trunk(tensors).tensors))
    assert weights.arch == name
    report = load_into(trunk, weights)
    assert report.missing == []
    assert len(report.used) == len(trunk.state_dict())


def test_gated_feed_forward_layers_keep_their_order() -> None:
    """Giants of DINOv2 have SwiGLU: official `w12`, `w3`; transformers' `weights_in`, `weights_out`."""
    options = {"embed_dim": 48, "num_heads": 3, "depth": 4, "img_size": 56, "num_classes": 0}
    model = source("vit_giant_patch14_dinov2", **options, init_values=1.0)
    image = torch.randn(1, 3, 56, 56)
    own = model.state_dict()
    official = {name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): own[name] for name in own}
    hub = {
        name.replace("mlp.fc1", "mlp.weights_in").replace("mlp.fc2", "mlp.weights_out"): tensor
        for name, tensor in huggingface_dinov2(own).items()
    }
    in_memory = dict(hub)
    for name in [name for name in hub if "weights_in" in name]:
        gate, up = in_memory.pop(name).chunk(2)
        in_memory |= {name.replace("weights_in", "gate_proj"): gate, name.replace("weights_in", "up_proj"): up}
    in_memory = {name.replace("weights_out", "down_proj"): tensor for name, tensor in in_memory.items()}
    for content in (official, hub, in_memory):
        other = timm.create_model("vit_giant_patch14_dinov2", **options).eval()
        other.load_state_dict(find_trunk(content).tensors)
        with torch.inference_mode():
            torch.testing.assert_close(other(image), model(image), atol=1e-5, rtol=1e-5)


def test_the_suffix_says_nothing_about_whose_names_are_in_it(vit: nn.Module, tmp_path: Path) -> None:
    save_file(under("vit.", huggingface_vit(vit.state_dict())), tmp_path / "dino_resnet.safetensors")
    weights = read(tmp_path / "dino_resnet.safetensors")
    assert weights.found == 'transformers names under "vit."'
    trunk = empty_trunk(weights.arch)
    load_into(trunk, weights)
    check_vit(vit, trunk)


def test_the_report_is_a_table_of_parts(resnet: nn.Module, tmp_path: Path) -> None:
    own = without(resnet.state_dict(), "layer4.2.bn3.bias")
    _, weights, report = loaded(tmp_path, RESNETS["MoCo v2"](own, blank(own)))
    assert weights.found == 'torchvision names under "module.encoder_q." in "state_dict"'
    used, dropped, missing = str(report).splitlines()
    stages = "layer1.* (60), layer2.* (78), layer3.* (114), layer4.* (59)"
    assert used == f"  used     317  bn1 (5), conv1, {stages}"
    assert dropped == "  dropped  323  fc.* (2), module.encoder_k (319), module.queue, module.queue_ptr"
    assert missing == "  missing    1  layer4.*"


def test_networks_that_only_look_alike_are_refused(scaled_vit: nn.Module, vit: nn.Module, tmp_path: Path) -> None:
    """Each fits every tensor of the trunk, or nearly so, and would give other features."""
    own = vit.state_dict()
    cases = {
        "is another network than the trunk .* blocks.0.ls1.gamma and 23 more": (
            "vit_small_patch16_224",
            scaled_vit.state_dict() | {"pos_embed": torch.zeros(1, 197, 384)},
        ),
        "is another network than the trunk .* norm_pre.weight": (
            TINY,
            {**own, "norm_pre.weight": torch.ones(192)},
        ),
        "is another network than the trunk .* blocks.12.norm1.bias": (
            TINY,
            {**own, "blocks.12.norm1.bias": torch.ones(192)},
        ),
        r"pos_embed in .*foreign\.pth \(none\) does not fit": (TINY, without(own, "pos_embed")),
        r"pos_embed in .*foreign\.pth \(1, 141, 192\) does not fit": (
            TINY,
            {**own, "pos_embed": torch.zeros(1, 141, 192)},
        ),
        r"patch_embed.proj.weight in .* \(192, 4, 16, 16\) does not fit": (
            TINY,
            {**own, "patch_embed.proj.weight": torch.zeros(192, 4, 16, 16)},
        ),
        "fits only 111 of 147 tensors": (TINY, without(own, "norm1.weight", "norm1.bias", "norm2.weight")),
    }
    for sentence, (arch, tensors) in cases.items():
        torch.save(tensors, tmp_path / "foreign.pth")
        with pytest.raises(UserError, match=sentence):
            load_into(empty_trunk(arch), read(tmp_path / "foreign.pth"))


def test_files_that_fit_nothing_end_in_a_sentence(vit: nn.Module, tmp_path: Path) -> None:
    itself: dict[str, Any] = {"a": torch.zeros(1)}
    itself["model"] = itself
    own = huggingface_vit(vit.state_dict())
    cases = {
        "swin": {
            "patch_embed.proj.weight": torch.zeros(96, 3, 4, 4),
            "layers.0.blocks.0.norm1.weight": torch.zeros(96),
        },
        "itself": itself,
        "numbers": {1: torch.zeros(1), "x": torch.zeros(1)},
        "scalar": {"patch_embed.proj.weight": torch.zeros(())},
        "keys of other sizes": own | {"encoder.layer.0.attention.attention.key.weight": torch.zeros(2)},
    }
    for name, content in cases.items():
        torch.save(content, tmp_path / "foreign.pth")
        with pytest.raises(UserError, match=r"foreign\.pth (is no ResNet-50 and no plain ViT|is another network)"):
            loaded_weights = read(tmp_path / "foreign.pth")
            load_into(empty_trunk(loaded_weights.arch), loaded_weights)
            pytest.fail(name)
