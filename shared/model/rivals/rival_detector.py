"""One detector for all rivals: a network makes maps or queries, a decoder finds the cells in them."""

from dataclasses import dataclass, replace
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.errors import UserError
from shared.model.cells import CellDetector, Colour, DetectedCells, NetworkConfig, candidates
from shared.model.rivals.cltr import CLTR
from shared.model.rivals.deeplabv3plus import DeepLabV3Plus
from shared.model.rivals.hrnet import HRNet
from shared.model.rivals.map_decoders import DECODERS, Scale
from shared.model.rivals.mcspatnet import MCSpatNet
from shared.model.rivals.ucsrnet import UCSRNet
from shared.model.rivals.unet import UNet
from shared.model.rivals.vgg import VGGDensity
from shared.weights.weights_file import IMAGENET_MEAN, IMAGENET_STD

# Each has the class variables `stride` of its output, `divisor` of the sides of its input, the timm name of its
# `trunk` (empty: none) and the names of its `decoders`; some have others.
NETWORKS: dict[str, Any] = {
    "unet": UNet,
    "deeplabv3plus": DeepLabV3Plus,
    "ucsrnet": UCSRNet,
    "mcspatnet": MCSpatNet,
    "hrnet": HRNet,
    "vgg": VGGDensity,
    "cltr": CLTR,
}


@dataclass(frozen=True, kw_only=True)
class RivalConfig(NetworkConfig):
    """Architecture of a rival, and the decoder of its maps."""

    network: str
    """Name in `NETWORKS`."""
    decoder: str
    """Name in `DECODERS`."""
    mpp: float
    """um/px of the images, by which the decoder's lengths are converted to px."""
    queries: int = 1000
    """Cells that CLTR can find in an image."""

    def __post_init__(self) -> None:
        most = getattr(NETWORKS[self.network], "most_views", 1)
        if not 1 <= self.views <= most:
            raise UserError(f"{self.network} takes up to {most} field(s) of view, not --views {self.views}")
        if self.decoder not in (known := NETWORKS[self.network].decoders):
            raise UserError(f"{self.network} has no decoder {self.decoder!r}; choose from: {', '.join(known)}")

    @property
    def trunk(self) -> str:
        """See `NetworkConfig`."""
        return str(NETWORKS[self.network].trunk)

    def with_trunk(self, arch: str, mean: Colour = IMAGENET_MEAN, std: Colour = IMAGENET_STD) -> Self:
        """See `NetworkConfig`; MCSpatNet takes images as they are."""
        if not getattr(NETWORKS[self.network], "standardised", True):
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        return replace(self, mean=mean, std=std)

    @property
    def sees_whole_image(self) -> bool:
        """See `NetworkConfig`."""
        return getattr(NETWORKS[self.network], "sees_whole_image", False)


class RivalDetector(CellDetector):
    """Network and decoder, for images of any size."""

    config: RivalConfig
    mean: Tensor
    std: Tensor

    def __init__(self, config: RivalConfig) -> None:
        super().__init__()
        self.config = config
        own = {"deeplabv3plus": {"views": config.views}, "cltr": {"queries": config.queries}}
        self.network = NETWORKS[config.network](config.classes, **own.get(config.network, {}))
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1), persistent=False)

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, ...]:
        """RGB, uint8 or float in 0..1 -> what the network makes of it; maps without the padding of the image."""
        height, width = image_BCHW.shape[-2:]
        if image_BCHW.dtype == torch.uint8:
            image_BCHW = image_BCHW.float() / 255
        padding = (0, -width % self.network.divisor, 0, -height % self.network.divisor)
        image_BCHW = F.pad((image_BCHW - self.mean) / self.std, padding)
        if image_BCHW.ndim == 4:
            image_BCHW = image_BCHW.contiguous(memory_format=torch.channels_last)
        found: tuple[Tensor, ...] = self.network(image_BCHW)
        if isinstance(self.network, CLTR):
            return found
        rows, columns = (-(-side // self.network.stride) for side in (height, width))
        kind: Any = type(found)
        cut: tuple[Tensor, ...] = kind(*(map_BCHW[..., :rows, :columns].float() for map_BCHW in found))
        return cut

    def detect(self, image_BCHW: Tensor, threshold: float | None = None) -> list[DetectedCells]:
        """See `CellDetector`; points are their own proposals."""
        found, decode = self(image_BCHW), DECODERS[self.config.decoder]
        scale = Scale(self.network.stride, self.config.mpp)
        cells = []
        for number in range(len(image_BCHW)):
            one = (each[:, number] if isinstance(self.network, CLTR) else each[number] for each in found)
            with torch.autocast(image_BCHW.device.type, enabled=False):
                points_N2, probabilities_NC = decode(tuple(one), scale)
            cells.append(candidates(points_N2, points_N2, probabilities_NC, threshold))
        return cells

    def trunks(self) -> list[nn.Module]:
        """See `CellDetector`."""
        return cast(list[nn.Module], self.network.trunks())
