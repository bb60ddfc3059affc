"""P2PNet and DPA-P2PNet: an image in, classified points out (Shui et al., AAAI 2024).

    image -> backbone (C2..C5) -> feature pyramid (P2..P6) -> decoder (proposals -> points and logits)

Points are (x, y) in px of the image; (0, 0) is the outer corner of its first pixel. Classes are 0..C-1 and
background is C.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.errors import UserError
from shared.model.backbones import create_backbone, sees_whole_image
from shared.model.cells import CellDetector, Colour, DetectedCells, NetworkConfig
from shared.model.decoders import (
    GRID_STRIDE,
    PYRAMID_STRIDES,
    Detections,
    GridDecoder,
    PointDecoder,
    RefiningDecoder,
)
from shared.model.distinct import without_duplicates
from shared.model.fpn import FeaturePyramid, SummedPyramid
from shared.model.multi_fov import FieldOfViewFusion, Upsampling
from shared.model.proposals import Level, leading_padding, proposal_grid
from shared.weights.weights_file import IMAGENET_MEAN, IMAGENET_STD

# Smoothing a level under one point costs as much as smoothing this many of its cells (2.6-3.1 measured on
# a CPU, tests/benchmarks/smoothing.csv).
SAMPLING_COST = 3

__all__ = ["DPAP2PNet", "Detections", "DetectorConfig"]


@dataclass(frozen=True, kw_only=True)
class DetectorConfig(NetworkConfig):
    """Architecture of a detector; the defaults are DPA-P2PNet with ResNet-50."""

    arch: str = "resnet50"
    """Backbone: resnet50, a plain ViT of timm with 16 px patches, such as vit_base_patch16_224, or regnetx_002."""
    interval: int = 16
    """Pixels between proposals (paper: 8 for CoNSeP; 16 for BCData, PD-L1 and OCELOT)."""
    enlarge: int = 1
    """Times that images are enlarged before the trunk; interval and coordinates stay in px of the image."""
    multi_scale: bool = True
    """Decode from all levels of the pyramid (MSD); off: from the stride-16 map, as P2PNet does."""
    deformable: bool = True
    """Deform the proposals before decoding (DPP)."""
    summed: bool = False
    """Without multi-scale decoding: bring all levels to stride 16 and add them, as E2E does."""
    refinements: int = 0
    """Without deformation: number of further decodings, each from the points of the one before."""
    upsampling: Upsampling = "transposed"
    """Upsampling of the maps of wider views: `transposed` (learnt) or `bilinear` (paper, Table 4)."""
    channels: int = 256
    """Channels of the pyramid (authors' code; Lin et al. 2017)."""
    hidden: int = 256
    """Hidden width of the MLPs (authors' code; the paper's parameter counts need it)."""
    distinct: float = 0.0
    """Radius in px within which only the most probable proposal counts (`shared.model.distinct`); 0: all count."""
    dropout: float = 0.1
    """Dropout rate of the MLPs (authors' code; the paper gives none)."""
    drop_path: float = 0.0
    """Stochastic depth of the backbone (0.1 in ViT-Adapter's recipe for MAE weights)."""

    def __post_init__(self) -> None:
        if min(self.interval, self.classes, self.enlarge) < 1:
            raise UserError(
                f"a detector needs at least one class and one pixel between its proposals, and enlarges at least "
                f"once, not {self.classes}, {self.interval} and {self.enlarge}"
            )
        if self.deformable and not self.multi_scale:
            raise UserError(
                "deformable proposals need multi-scale decoding: P2PNet's grid decoder cannot follow "
                "proposals that move; switch both off, or only the deformation"
            )
        if self.refinements and (self.deformable or not self.multi_scale):
            raise UserError("refinements are for multi-scale decoding without deformation: add --no-deformable")
        if self.summed and self.multi_scale:
            raise UserError("levels are summed for single-level decoding: add --no-multi-scale --no-deformable")
        if self.views < 1 or self.refinements < 0:
            raise UserError(f"{self.views} views or {self.refinements} refinements are out of range")
        if not self.multi_scale and GRID_STRIDE % self.inner_interval:
            raise UserError(
                f"without multi-scale decoding the interval must divide {GRID_STRIDE}, "
                f"which {self.inner_interval} does not; use 8 or 16"
            )

    def with_trunk(self, arch: str, mean: Colour = IMAGENET_MEAN, std: Colour = IMAGENET_STD) -> Self:
        """See `NetworkConfig`."""
        return dataclasses.replace(self, arch=arch, mean=mean, std=std)

    @property
    def inner_interval(self) -> int:
        """Px between proposals in the enlarged image."""
        return self.interval * self.enlarge

    @property
    def step(self) -> int:
        """Px at which the grid of proposals and those of all levels coincide."""
        return math.lcm(super().step, self.interval)

    @property
    def sees_whole_image(self) -> bool:
        """See `NetworkConfig`."""
        return super().sees_whole_image or sees_whole_image(self.arch)


class FovBranch(nn.Module):
    """Trunk and neck of one field of view: an image in, its pyramid out."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.backbone = create_backbone(config.arch, config.drop_path)
        self.neck = _neck(config, self.backbone.channels)

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        """Standardised image with sides divisible by 64 -> levels of the pyramid."""
        levels: list[Tensor] = self.neck(self.backbone(image_BCHW))
        return levels


class DPAP2PNet(CellDetector):
    """The whole network (Fig. 1, and Fig. 3 with several views), for images of any size."""

    config: DetectorConfig
    mean: Tensor
    std: Tensor

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.samples_smoothing = True
        """In eval mode, smooth the finest levels only where they are sampled."""
        self.backbone = create_backbone(config.arch, config.drop_path)
        self.neck = _neck(config, self.backbone.channels)
        self.wider = nn.ModuleList(FovBranch(config) for _ in range(config.views - 1))
        if config.views > 1:
            self.fusion = FieldOfViewFusion(len(_strides(config)), config.channels, config.upsampling)
        self.decoder = _decoder(config)
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1), persistent=False)

    def forward(self, image_BCHW: Tensor) -> Detections:
        """RGB, uint8 or float in 0..1, of any size -> detections; proposals cover the image, not its padding.

        With K views the input is B x K x 3 x H x W, widest first; detections are those in the last.
        """
        height, width = (side * self.config.enlarge for side in image_BCHW.shape[-2:])
        top, left = (leading_padding(side, self.config.inner_interval) for side in (height, width))
        # Filled on the device: a copy from the host would wait for it.
        shift_2 = torch.stack([image_BCHW.new_full((), px, dtype=torch.float32) for px in (left, top)])
        grid_RS2 = proposal_grid(height, width, self.config.inner_interval, image_BCHW.device) + shift_2
        *wider, own_BCHW = image_BCHW.unbind(1) if self.wider else [image_BCHW]
        pyramid = self._pyramid(self._prepare(own_BCHW, left, top), grid_RS2)
        if wider:
            pyramids = [view(self._prepare(each, left, top)) for view, each in zip(self.wider, wider, strict=True)]
            # The views' common centre is where it is in larger images without leading padding.
            pyramid = self.fusion([*pyramids, pyramid], _strides(self.config), height + 2 * top, width + 2 * left)
        # 2 % of the work; in half precision coordinates would be wrong by up to half a pixel.
        with torch.autocast(image_BCHW.device.type, enabled=False):
            found: Detections = self.decoder([level.float() for level in pyramid], grid_RS2)
        found = found.translated(-shift_2).scaled(1 / self.config.enlarge)
        if self.training or not self.config.distinct:
            return found
        return without_duplicates(found, self.config.distinct)

    def detect(self, image_BCHW: Tensor, threshold: float | None = None) -> list[DetectedCells]:
        """See `CellDetector`."""
        found: Detections = self(image_BCHW)
        return found.cells(threshold)

    def trunks(self) -> list[nn.Module]:
        """List the timm trunks of all views, that of the annotated image first."""
        return [self.backbone.trunk, *(cast(FovBranch, view).backbone.trunk for view in self.wider)]

    def _pyramid(self, image_BCHW: Tensor, grid_RS2: Tensor) -> Sequence[Level]:
        maps = self.backbone(image_BCHW)
        if self.training or self.wider or not self.config.multi_scale or not self.samples_smoothing:
            levels: Sequence[Level] = self.neck(maps)
            return levels
        proposals = grid_RS2.shape[0] * grid_RS2.shape[1] * (self.config.refinements + 1)
        samplings = [1 + self.config.deformable] + [1] * (len(maps) - 1)
        pays = [pays_to_sample(times * proposals, feature) for times, feature in zip(samplings, maps, strict=True)]
        return cast(FeaturePyramid, self.neck).to_sample(maps, unsmoothed=[*pays, False].index(False))

    def _prepare(self, image_BCHW: Tensor, left: int, top: int) -> Tensor:
        """Enlarge, standardise, pad with zeros: `left` and `top` px, and behind until every level halves exactly.

        The result is channels-last: convolutions keep the layout of their input and are faster in this one.
        """
        if image_BCHW.dtype == torch.uint8:
            image_BCHW = image_BCHW.float() / 255
        if self.config.enlarge > 1:
            image_BCHW = F.interpolate(image_BCHW, scale_factor=self.config.enlarge, mode="bicubic")
        height, width = image_BCHW.shape[-2:]
        step = PYRAMID_STRIDES[-1]
        padding = (left, -(left + width) % step, top, -(top + height) % step)
        padded_BCHW = F.pad((image_BCHW - self.mean) / self.std, padding)
        return padded_BCHW.contiguous(memory_format=torch.channels_last)


def pays_to_sample(points: int, map_BCHW: Tensor) -> bool:
    """Compare the cost of smoothing a level under so many points with that of smoothing all of it."""
    return points * SAMPLING_COST <= map_BCHW.shape[-2] * map_BCHW.shape[-1]


def _strides(config: DetectorConfig) -> tuple[int, ...]:
    """Strides of the levels that the decoder gets."""
    return PYRAMID_STRIDES if config.multi_scale else (GRID_STRIDE,)


def _neck(config: DetectorConfig, channels: Sequence[int]) -> nn.Module:
    if config.multi_scale:
        return FeaturePyramid(channels, config.channels)
    if config.summed:
        return SummedPyramid(channels, config.channels)
    return FeaturePyramid(channels, config.channels, first=2, outputs=1, extra=False)


def _decoder(config: DetectorConfig) -> PointDecoder | RefiningDecoder | GridDecoder:
    if not config.multi_scale:
        return GridDecoder(config.classes, config.inner_interval, config.channels)
    widths = (config.channels, config.hidden, config.dropout)
    if config.refinements:
        return RefiningDecoder(config.classes, config.refinements, *widths)
    return PointDecoder(config.classes, config.deformable, *widths)
