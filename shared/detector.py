"""P2PNet and DPA-P2PNet: an image in, classified points out (Shui et al., AAAI 2024).

    image -> backbone (C2..C5) -> feature pyramid (P2..P6) -> decoder (proposals -> points and logits)

Points are (x, y) in px of the image; (0, 0) is the outer corner of its first pixel. Classes are 0..C-1 and
background is C.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.backbones import create_backbone
from shared.command_line import UserError, as_plain
from shared.decoders import GRID_STRIDE, PYRAMID_STRIDES, Detections, GridDecoder, PointDecoder
from shared.fpn import FeaturePyramid
from shared.proposals import proposal_grid
from shared.weights import IMAGENET_MEAN, IMAGENET_STD, Weights, read, write

__all__ = ["Cells", "Config", "Detections", "Detector", "load_detector", "save_detector", "select_cells"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which member of the family; the defaults are DPA-P2PNet with ResNet-50."""

    arch: str = "resnet50"
    """Backbone: resnet50, or a plain ViT of timm with 16 px patches, such as vit_base_patch16_224."""
    classes: int = 1
    """Cell classes, background not counted."""
    interval: int = 16
    """Pixels between proposals (paper: 8 for CoNSeP; 16 for BCData, PD-L1 and OCELOT)."""
    multi_scale: bool = True
    """Decode from all levels of the pyramid (MSD); off: from the stride-16 map, as P2PNet does."""
    deformable: bool = True
    """Deform the proposals before decoding (DPP)."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Channel means (RGB in 0..1) that the backbone was pre-trained with."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Channel standard deviations that the backbone was pre-trained with."""
    channels: int = 256
    """Channels of the pyramid (authors' code; Lin et al. 2017)."""
    hidden: int = 256
    """Hidden width of the MLPs (authors' code; the paper's parameter counts need it)."""
    dropout: float = 0.1
    """Dropout rate of the MLPs (authors' code; the paper gives none)."""
    drop_path: float = 0.0
    """Stochastic depth of the backbone (0.1 in ViT-Adapter's recipe for MAE weights)."""

    def __post_init__(self) -> None:
        if self.interval < 1 or self.classes < 1:
            raise UserError(
                f"a detector needs at least one class and one pixel between its proposals, "
                f"not {self.classes} and {self.interval}"
            )
        if self.deformable and not self.multi_scale:
            raise UserError(
                "deformable proposals need multi-scale decoding: P2PNet's grid decoder cannot follow "
                "proposals that move; switch both off, or only the deformation"
            )
        if not self.multi_scale and GRID_STRIDE % self.interval:
            raise UserError(
                f"without multi-scale decoding the interval must divide {GRID_STRIDE}, "
                f"which {self.interval} does not; use 8 or 16"
            )


class Detector(nn.Module):
    """The whole network (Fig. 1), for images of any size."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.backbone = create_backbone(config.arch, config.drop_path)
        inputs, channels = self.backbone.channels, config.channels
        self.decoder: PointDecoder | GridDecoder
        if config.multi_scale:
            self.neck = FeaturePyramid(inputs, channels)
            self.decoder = PointDecoder(config.classes, config.deformable, channels, config.hidden, config.dropout)
        else:
            self.neck = FeaturePyramid(inputs[2:], channels, outputs=1, extra=False)
            self.decoder = GridDecoder(config.classes, config.interval, channels)
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1), persistent=False)

    def forward(self, image_BCHW: Tensor) -> Detections:
        """RGB in 0..1, any height and width -> detections; proposals cover the image, not its padding."""
        height, width = image_BCHW.shape[-2:]
        grid_RS2 = proposal_grid(height, width, self.config.interval, image_BCHW.device)
        maps = self.backbone(self._prepare(image_BCHW))
        pyramid = self.neck(maps if self.config.multi_scale else maps[2:])
        # 2 % of the work; in half precision coordinates would be wrong by up to half a pixel.
        with torch.autocast(image_BCHW.device.type, enabled=False):
            return self.decoder([level.float() for level in pyramid], grid_RS2)

    def _prepare(self, image_BCHW: Tensor) -> Tensor:
        """Standardise, then pad with zeros, right and bottom, so that every level halves exactly."""
        height, width = image_BCHW.shape[-2:]
        step = PYRAMID_STRIDES[-1]
        return F.pad((image_BCHW - self.mean) / self.std, (0, -width % step, 0, -height % step))


@dataclass
class Cells:
    """The cells detected in one image."""

    points_N2: Tensor
    """(x, y) in px."""
    labels_N: Tensor
    """Class, 0..C-1."""
    scores_N: Tensor
    """Probability of that class."""


def select_cells(detections: Detections, height: int, width: int) -> list[Cells]:
    """Per image, the proposals that are most probably a cell and whose point lies inside the image.

    No score threshold and no suppression of neighbours: one-to-one matching makes both unnecessary.
    """
    scores_BN, labels_BN = detections.logits_BNC.softmax(-1).max(-1)
    background = detections.logits_BNC.shape[-1] - 1
    x_BN, y_BN = detections.points_BN2.unbind(-1)
    inside_BN = (x_BN >= 0) & (x_BN < width) & (y_BN >= 0) & (y_BN < height)
    keep_BN = inside_BN & (labels_BN != background)
    images = zip(detections.points_BN2, labels_BN, scores_BN, keep_BN, strict=True)
    return [Cells(points[keep], labels[keep], scores[keep]) for points, labels, scores, keep in images]


def save_detector(path: Path, detector: Detector, metadata: Mapping[str, Any]) -> None:
    """Write a detector atomically; the file holds its config, so that it can be built again.

    `metadata` is what else is known: `classes` (names), `mpp` it was trained at, `recipe`, `metrics`,
    `run_id`, `git_commit`.
    """
    write(path, detector.state_dict(), {**metadata, "kind": "detector", "config": as_plain(detector.config)})


def load_detector(path: Path) -> tuple[Detector, dict[str, Any]]:
    """A detector (on the CPU, in eval mode) and its metadata.

    Raises:
        UserError: the file is missing, damaged, or something else.
    """
    weights = read(path)
    if weights.metadata.get("kind") != "detector":
        raise UserError(
            f"{path} holds {_contents(weights)}, not a detector; give the detector.pth that "
            "python -m finetune writes"
        )
    detector = Detector(_config(weights.metadata["config"]))
    detector.load_state_dict(weights.tensors)
    return detector.eval(), weights.metadata


def _config(fields: Mapping[str, Any]) -> Config:
    """The config as JSON kept it: without tuples."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return Config(**values)


def _contents(weights: Weights) -> str:
    try:
        return f"a {weights.arch} backbone (python -m finetune --init takes that)"
    except UserError:
        return f"weights of something else ({', '.join(sorted(weights.tensors)[:3])})"
