"""Trunks in other projects' checkpoints, recognised by the names of their tensors, under timm's names.

A checkpoint is opened in three steps, none of which looks at the file's name:

1. its dictionaries are unwrapped (`{"state_dict": ...}`, DINO's `{"teacher": ...}`, VISSL's four levels);
2. a tensor that every network of a kind has tells the kind, and what stands before its name is the trunk's
   prefix (MoCo's `module.encoder_q.`, lightly's `backbone.`); a teacher goes before other trunks in the file;
3. the names below the prefix are changed to timm's.

A ResNet's strides do not show in its tensors: torchvision's first version (stride in the 1x1 convolution) and
the usual one (in the 3x3) have the same names and shapes.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Rules = tuple[tuple[str, str], ...]

# Names of dictionaries around the tensors, what is wanted first: VISSL (classy_state_dict, base_model, model,
# trunk), DINO and DINOv2 (teacher, student), MoCo, SwAV, Lightning (state_dict), MAE and DeiT (model).
WRAPPERS = ("classy_state_dict", "base_model", "teacher", "student", "state_dict", "model", "trunk")
DEEPEST = 8  # wrappers around wrappers; VISSL has four
# torch.compile and FSDP put these into the names, at any depth.
INFIXES = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module)\.")
# Words in the prefix of a trunk that is a copy of the one wanted: student of a teacher, key of a query.
COPIES = {"student", "momentum", "k", "key", "ema", "target"}

# Each rule is a regular expression and its replacement, used one after another.
TIMM: Rules = (
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # DINOv2 in training: blocks in chunks, numbered through
    (r"^register_tokens$", "reg_token"),  # DINOv2
    (r"^storage_tokens$", "reg_token"),  # DINOv3
    (r"\.mlp\.w12\.", ".mlp.fc1."),  # DINOv2: gate and value in one layer, in timm's order
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),  # DINOv3: gate and value in two layers
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
    (r"\.gamma_([12])$", r".ls\1.gamma"),  # DeiT III
)
# ViT, ViTMAE, Dinov2 and Dinov2WithRegisters of transformers: in its files, and (`layers`, `_proj`) in the
# memory of its version 5.
HUGGING_FACE: Rules = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.", ""),
    (r"^layernorm\.", "norm."),
    (r"^(?:encoder\.layer|layers)\.", "blocks."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.(?:weights_out|down_proj)\.", ".mlp.fc2."),
)
# DINOv3ViT of transformers.
HUGGING_FACE_DINOV3: Rules = (
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.", ""),
    (r"^(?:model\.)?layer\.", "blocks."),
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.gate_proj\.", ".mlp.fc1_g."),
    (r"\.mlp\.up_proj\.", ".mlp.fc1_x."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
)
# Biases of DINOv3's attention, which its training has left at zero and timm's networks lack.
UNUSED_BIAS = re.compile(r"\.attn\.(?:qkv|query|key|value)\.bias(?:_mask)?$")
# Layers of transformers that are one layer in timm, row after row.
JOINED = {
    "attn.qkv": ("attn.query", "attn.key", "attn.value"),
    "mlp.fc1": ("mlp.gate_proj", "mlp.up_proj"),
}
TORCHVISION_VIT: Rules = (
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_", "blocks."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_(weight|bias)$", r".attn.qkv.\1"),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
)
# The children of a torchvision ResNet in a Sequential, as lightly's examples cut off the classifier:
# convolution, norm, ReLU, pooling, four stages, pooling.
RESNET_CHILDREN: Rules = (
    (r"^0\.", "conv1."),
    (r"^1\.", "bn1."),
    *((rf"^{stage + 3}\.", f"layer{stage}.") for stage in (1, 2, 3, 4)),
)


@dataclass(frozen=True)
class Layout:
    """Naming scheme of a trunk's tensors."""

    name: str
    signs: tuple[str, ...]
    """Tensors that every such trunk has, and together no other; the first one finds the prefix."""
    rules: Rules
    merge: Callable[[Tensors], Tensors] = field(default=lambda tensors: tensors)
    """Conversion of tensors after renaming."""


@dataclass(frozen=True)
class Trunk:
    """The tensors of a trunk under timm's names, and the rest of the file."""

    tensors: Tensors
    set_aside: tuple[str, ...] = ()
    """Names, as in the file, of the tensors that are not the trunk's."""
    found: str = "unknown names"
    """Description of the names' origin and their place in the file."""


def find_trunk(content: Mapping[str, Any]) -> Trunk:
    """Find the trunk in what a checkpoint holds; unknown names stay unchanged."""
    content, wrappers = _unwrapped(content)
    tensors = {
        INFIXES.sub("", name): value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    places = [(layout, prefix) for layout in LAYOUTS for prefix in _prefixes(tensors, layout.signs)]
    if not places:
        return Trunk(tensors)
    layout, prefix = min(places, key=lambda place: (_rank(place[1]), len(place[1]), place[1]))
    inside = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    where = " in ".join(f'"{place}"' for place in (prefix, *reversed(wrappers)) if place)
    return Trunk(
        layout.merge({_renamed(name, layout.rules): value for name, value in inside.items()}),
        tuple(name for name in tensors if not name.startswith(prefix)),
        layout.name + (f" under {where}" if where else ""),
    )


def _unwrapped(content: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    """Find the innermost dictionary, and the names of those around it."""
    wrappers: list[str] = []
    while len(wrappers) < DEEPEST:  # a dictionary may hold itself
        wrapper = next((name for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if wrapper is None:
            break
        wrappers.append(wrapper)
        content = content[wrapper]
    return content, wrappers


def _prefixes(tensors: Tensors, signs: tuple[str, ...]) -> list[str]:
    """Find the prefixes under which all signs exist."""
    first = signs[0]
    prefixes = [name.removesuffix(first) for name in tensors if name == first or name.endswith(f".{first}")]
    return [prefix for prefix in prefixes if all(prefix + sign in tensors for sign in signs)]


def _rank(prefix: str) -> int:
    words = set(re.split(r"[._]", prefix.lower()))
    if "teacher" in words:
        return 0
    return 2 if words & COPIES else 1


def _renamed(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _joined(tensors: Tensors) -> Tensors:
    """Layers of transformers that timm has in one: rows of the first, then of the others."""
    joined = dict(tensors)
    for name in tensors:
        for whole, parts in JOINED.items():
            start, found, kind = name.partition(f".{parts[0]}.")
            names = [f"{start}.{part}.{kind}" for part in parts]
            if found and _stackable(rows := [tensors[part] for part in names if part in tensors], len(parts)):
                joined = {part: tensor for part, tensor in joined.items() if part not in names}
                joined[f"{start}.{whole}.{kind}"] = torch.cat(rows)
    return joined


def _with_rotary_positions(tensors: Tensors) -> Tensors:
    """DINOv3's under timm's names of it, if there are registers and no positions; others stay unchanged."""
    if "pos_embed" in tensors or "reg_token" not in tensors:
        return tensors
    gated = any(name.endswith(".mlp.fc1_g.weight") for name in tensors)
    renamed = {}
    for name, tensor in tensors.items():
        if UNUSED_BIAS.search(name) and (name.endswith("_mask") or not tensor.any()):
            continue
        name = re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name)
        renamed[name if gated else name.replace(".mlp.fc1_x.", ".mlp.fc1.")] = tensor
    return renamed


def _stackable(rows: list[Tensor], wanted: int) -> bool:
    return len(rows) == wanted and rows[0].ndim > 0 and len({tensor.shape for tensor in rows}) == 1


LAYOUTS = (
    Layout("timm names", ("patch_embed.proj.weight",), TIMM, _with_rotary_positions),
    Layout("torchvision names", ("layer1.0.conv1.weight", "conv1.weight"), ()),
    Layout("names of a Sequential", ("4.0.conv1.weight", "0.weight"), RESNET_CHILDREN),
    Layout(
        "transformers names",
        ("embeddings.patch_embeddings.projection.weight",),
        HUGGING_FACE,
        _joined,
    ),
    Layout(
        "transformers names",
        ("embeddings.patch_embeddings.weight", "embeddings.register_tokens"),
        HUGGING_FACE_DINOV3,
        lambda tensors: _with_rotary_positions(_joined(tensors)),
    ),
    Layout("torchvision names", ("conv_proj.weight", "encoder.pos_embedding"), TORCHVISION_VIT),
)
