"""The trunks that methods train, under timm's names, and what they have in common."""

import itertools
from typing import Any

import timm
import torch
from torch import Tensor, nn

from shared.errors import UserError
from shared.weights.vit_families import LAYER_SCALED_VITS, PATCH, VITS, timm_options

RESNETS = ("resnet50",)
# ResNets halve the image five times.
LEAST_SIZE = 32


class Encoder(nn.Module):
    """A trunk, and the head that only the training needs."""

    def __init__(self, trunk: Any, head: Any) -> None:
        super().__init__()
        self.trunk: nn.Module = trunk
        self.head = head

    def forward(self, views: list[Tensor]) -> Tensor:
        """All views (B, 3, H, W) -> (views * B, D), in their order.

        Neighbouring views of one size go through the trunk together, as in the official SwAV and DINO: batch
        norms see them as one batch.
        """
        by_size = itertools.groupby(views, key=lambda view_BCHW: view_BCHW.shape[-1])
        represented: Tensor = self.head(torch.cat([self.trunk(torch.cat(list(same))) for _, same in by_size]))
        return represented

    def checkpoint_activations(self) -> None:
        """Compute the trunk's activations again in the backward pass instead of keeping them."""
        self.trunk.set_grad_checkpointing()  # type: ignore[operator]  # of timm


def create_trunk(arch: str, image_size: int, drop_path: float = 0.0) -> nn.Module:
    """Create a trunk with weights drawn as the official codes draw them: image (B, 3, H, W) -> features (B, D).

    A ViT takes every size that divides into tokens; its position embeddings, made for `image_size`, are
    resampled (by timm: bicubic with antialiasing; the official DINO resamples without).
    """
    if arch in RESNETS:
        # torchvision's initialisation: timm's own begins with blocks that pass their input through.
        resnet: nn.Module = timm.create_model(arch, num_classes=0, zero_init_last=False)
        return resnet.to(memory_format=torch.channels_last)  # convolutions follow the layout of their weights
    vit = create_vit(arch, image_size, dynamic_img_size=True, drop_path_rate=drop_path)
    nn.init.trunc_normal_(vit.cls_token, std=0.02)  # as all else, in the official DINO; timm: almost 0
    trunk: nn.Module = vit
    return trunk


def create_vit(arch: str, image_size: int, **options: Any) -> Any:
    """Create a plain ViT of timm with class token, and patches of 16 px whatever its name says."""
    name, own = timm_options(arch)
    return timm.create_model(name, num_classes=0, **{**own, **options, "img_size": image_size})


def is_vit(arch: str) -> bool:
    """Test for a plain ViT of a known size."""
    return arch in (*VITS.values(), *LAYER_SCALED_VITS.values())


def compile_trunk(trunk: nn.Module) -> None:
    """Compile a ViT block by block (they are all alike), a ResNet as a whole; tensors keep their names."""
    for part in getattr(trunk, "blocks", [trunk]):
        part.compile()


def check_arch(method: str, arch: str, resnets: bool = False, vits: bool = False) -> None:
    """Refuse a trunk that a method cannot train, with a UserError."""
    known = [*(RESNETS if resnets else ()), *((*VITS.values(), *LAYER_SCALED_VITS.values()) if vits else ())]
    if arch not in known:
        raise UserError(f"{method} cannot train {arch}; choose --method.arch from {', '.join(known)}")


def check_size(option: str, size: int, arch: str) -> None:
    """Refuse a crop size that a trunk cannot take, with a UserError."""
    if is_vit(arch) and size % PATCH:
        raise UserError(f"crops of {size} px do not divide into {PATCH} px tokens; change --{option}")


def check_scale(option: str, scale: tuple[float, float]) -> None:
    """Refuse shares of an image that make no sense, with a UserError."""
    low, high = scale
    if not 0 < low <= high <= 1:
        raise UserError(f"--{option} {low} {high} are no shares from small to large; give two up to 1")
