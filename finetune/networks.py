"""Choice of the network in a recipe: its options, and the config that follows from them and the data."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated

import tyro

from finetune.datasets.dataset import AnnotatedData
from finetune.training.augment import AugmentConfig
from finetune.training.proposal_count import check_interval, check_queries
from shared.cli import Range, check_range
from shared.errors import UserError
from shared.model.dpa_p2pnet import DetectorConfig
from shared.model.multi_fov import Upsampling
from shared.model.rivals.rival_detector import NETWORKS, RivalConfig


@dataclass(frozen=True, kw_only=True)
class PointNetwork:
    """DPA-P2PNet and its family (`shared.model.dpa_p2pnet.DetectorConfig`)."""

    interval: Annotated[int | None, Range(1)] = None
    """Px between proposals; default 8 at 0.4 um/px and coarser, else 16 (paper: 8 on CoNSeP, 16 at 40x)."""
    enlarge: Annotated[int, Range(1, 4)] = 1
    """Times that images are enlarged before the trunk: 2 where cells touch each other at 20x (ours: +3 F1 on
    CoNSeP's validation tiles for equal work, with `augment.crop` halved; four times the work per tile)."""
    multi_scale: bool = True
    """Decode every proposal from all levels P2..P6 (paper, equation 1); off: P2PNet's single-level heads."""
    deformable: bool = True
    """Deform the proposals before decoding (paper, Figure 1)."""
    summed: bool = False
    """With `no-multi-scale`: add all levels at stride 16 before decoding, as E2E does (paper, Table 3)."""
    refinements: Annotated[int, Range(0)] = 0
    """With `no-deformable`: number of further decodings, each from the points before (paper's ablation)."""
    views: Annotated[int, Range(1)] = 1
    """Concentric fields of view (the paper's K); 2 needs an image of twice the width beside each tile."""
    upsampling: Upsampling = "transposed"
    """Upsampling of the maps of wider views: transposed (learnt) or bilinear (paper, Table 4)."""
    distinct_um: Annotated[float, Range(0, 20)] = 0.0
    """Train and report only the most probable of points that end this close (DDQ, Zhang et al. 2023); 0: all, or
    as the detector of `--init` does."""
    channels: Annotated[int, Range(1)] = 256
    """Channels of the feature pyramid (authors' public code)."""
    hidden: Annotated[int, Range(1)] = 256
    """Hidden width of the MLPs (authors' public code; the paper's parameter counts need it)."""

    @property
    def leaves_some_unused(self) -> bool:
        """Check for parameters without gradient: P2PNet's single level skips a ViT-Adapter's finest map."""
        return not self.multi_scale

    @property
    def least_batch(self) -> int:
        """Least number of tiles in a pass."""
        return 1

    def config(self, data: AnnotatedData, augment: AugmentConfig) -> DetectorConfig:
        """Config of the network for these data; its trunk follows from the initial weights.

        Raises:
            UserError: its switches exclude each other, or the data have too many cells for it.
        """
        interval = self.interval or (8 if data.mpp >= 0.4 else 16)
        check_interval(data, interval, augment)
        return DetectorConfig(
            classes=len(data.classes),
            interval=interval,
            enlarge=self.enlarge,
            multi_scale=self.multi_scale,
            deformable=self.deformable,
            summed=self.summed,
            refinements=self.refinements,
            views=self.views,
            upsampling=self.upsampling,
            channels=self.channels,
            hidden=self.hidden,
            distinct=self.distinct_um / data.mpp,
        )


@dataclass(frozen=True, kw_only=True)
class RivalNetwork:
    """A network that DPA-P2PNet is compared with (`shared.model.rivals`)."""

    rival: Annotated[str, tyro.conf.Fixed]
    """Network (`shared.model.rivals.rival_detector.NETWORKS`)."""
    decoder: Annotated[str, tyro.conf.Fixed]
    """Decoder of its output (`shared.model.rivals.map_decoders.DECODERS`)."""
    views: Annotated[int, Range(1)] = 1
    """Concentric fields of view; DeepLabV3+ takes two, fused in a way of ours."""
    queries: Annotated[int, Range(1)] = 1000
    """CLTR's queries: most cells in a crop and in a window of a slide (the paper's multiply-adds need 1000)."""

    @property
    def trunk(self) -> str:
        """timm name of its trunk; empty if it has none."""
        return str(NETWORKS[self.rival].trunk)

    @property
    def leaves_some_unused(self) -> bool:
        """Check for parameters without gradient: MCSpatNet has no sub-classes in its first epoch."""
        return self.rival == "mcspatnet"

    @property
    def least_batch(self) -> int:
        """Least number of tiles in a pass."""
        return getattr(NETWORKS[self.rival], "least_batch", 1)

    def check(self) -> None:
        """Check the ranges of all numbers.

        Raises:
            UserError: names the option and its range.
        """
        check_range("views", self.views, 1, getattr(NETWORKS[self.rival], "most_views", 1))

    def config(self, data: AnnotatedData, augment: AugmentConfig) -> RivalConfig:
        """Config of the network for these data.

        Raises:
            UserError: it does not take as many views, or the data have too many cells for its queries.
        """
        if self.rival == "cltr":
            check_queries(data, self.queries, augment)
        return self.architecture(len(data.classes), data.mpp)

    def architecture(self, classes: int, mpp: float) -> RivalConfig:
        """Config of the network for images of `mpp` um/px."""
        return RivalConfig(
            network=self.rival,
            decoder=self.decoder,
            views=self.views,
            queries=self.queries,
            classes=classes,
            mpp=mpp,
        )


def refuse_other_options(name: str, network: "PointNetwork | RivalNetwork", words: Sequence[str]) -> None:
    """Refuse options of DPA-P2PNet with another network.

    Raises:
        UserError: names the option.
    """
    others = {field.name for field in fields(PointNetwork)} - {field.name for field in fields(network)}
    for word in words:
        option = word.split("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_")
        if word.startswith("--") and option in others:
            raise UserError(f"{word} is an option of DPA-P2PNet, and {name} is another network; leave it out")
