"""Backbones: an image in, four feature maps at strides 4, 8, 16 and 32 out."""

from collections.abc import Callable

import timm
from timm.layers import ConvNormAct
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from shared.errors import UserError
from shared.model.vit_adapter import ViTAdapter
from shared.weights.vit_families import DINOV3_VITS, LAYER_SCALED_VITS, VITS


class ResNet(nn.Module):
    """A residual network of timm with the outputs of its four stages (C2..C5)."""

    def __init__(self, arch: str, drop_path: float = 0.0) -> None:
        super().__init__()
        self.trunk = timm.create_model(
            arch, features_only=True, out_indices=(1, 2, 3, 4), drop_path_rate=drop_path
        )
        self.channels: tuple[int, ...] = tuple(self.trunk.feature_info.channels())

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        """Normalised image with sides divisible by 32 -> C2..C5."""
        return list(self.trunk(image_BCHW))


# Every backbone has `.trunk`, the timm module that pre-trained weights go into under timm's names
# (`shared.weights.weights_file.load_into`); `.channels` of its four outputs; forward(image_BCHW) -> four maps.
Backbone = ResNet | ViTAdapter

BACKBONES: dict[str, Callable[[str, float], Backbone]] = {
    "resnet50": ResNet,
    **dict.fromkeys([*VITS.values(), *LAYER_SCALED_VITS.values(), *DINOV3_VITS.values()], ViTAdapter),
    "regnetx_002": ResNet,  # 2.3 M parameters, for counting cells on a CPU
}


def fold_batch_norms(backbone: nn.Module) -> None:
    """Fold the batch norms of a regnet in eval mode into its convolutions: 10 % faster, equal but for rounding."""
    for layer in backbone.modules():
        if isinstance(layer, ConvNormAct):
            layer.conv = fuse_conv_bn_eval(layer.conv, layer.bn)
            layer.bn = layer.bn.act


def sees_whole_image(arch: str) -> bool:
    """Check whether every output of a backbone depends on the whole input; convolutions have a limited reach."""
    return BACKBONES[arch] is ViTAdapter


def create_backbone(arch: str, drop_path: float = 0.0) -> Backbone:
    """Create a randomly initialised backbone.

    Args:
        arch: A timm name: `resnet50`, `regnetx_002`, or a plain ViT with 16 px patches, which gets an adapter.
        drop_path: Stochastic depth rate.

    Raises:
        UserError: there is no such backbone.
    """
    if arch not in BACKBONES:
        raise UserError(f"there is no backbone {arch!r}; choose one of {', '.join(BACKBONES)}")
    return BACKBONES[arch](arch, drop_path)
