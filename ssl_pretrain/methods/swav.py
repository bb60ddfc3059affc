"""Swapped assignments: predict from one view of an image to which prototypes another view is assigned.

Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, NeurIPS 2020.
Numbers from the official code (facebookresearch/swav: main_swav.py, scripts/).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.distributed as dist
from lightly.loss.swav_loss import sinkhorn
from lightly.models.modules.heads import SwaVProjectionHead
from lightly.models.utils import concat_all_gather, normalize_weight
from torch import Tensor, nn
from torch.nn import functional as F

from shared.cli import Range, validate
from ssl_pretrain.data.crops import Crop
from ssl_pretrain.methods import Method, MethodConfig, Step
from ssl_pretrain.methods.queue import Queue
from ssl_pretrain.methods.trunks import LEAST_SIZE, Encoder, check_arch, check_scale, check_size, create_trunk

# Views whose assignments are predicted from all others.
ASSIGNED = 2
# The official batch without a queue.
BATCH_WITHOUT_QUEUE = 4096


@dataclass(frozen=True, kw_only=True)
class SwAVConfig(MethodConfig):
    """Settings of SwAV."""

    name: ClassVar[str] = "swav"
    fresh: ClassVar[str] = "head and prototypes"
    arch: str
    """Timm name of the trunk, a ResNet."""
    image_size: Annotated[int, Range(LEAST_SIZE)] = 224
    """Side of the two large crops in px."""
    large_scale: tuple[float, float] = (0.14, 1.0)
    """Smallest and largest share of a patch's area in a large crop."""
    small_size: Annotated[int, Range(LEAST_SIZE)] = 96
    """Side of the small crops in px."""
    small_scale: tuple[float, float] = (0.05, 0.14)
    """Smallest and largest share of a patch's area in a small crop."""
    small_crops: Annotated[int, Range(0)] = 6
    """Small crops of each patch, which predict and are not predicted."""
    blur: Annotated[float, Range(0, 1)] = 0.5
    """Probability that a view is blurred."""
    hidden_dim: Annotated[int, Range(1)] = 2048
    """Width of the head."""
    dim: Annotated[int, Range(1)] = 128
    """Length of the representations."""
    prototypes: Annotated[int, Range(1)] = 3000
    """Vectors that representations are assigned to."""
    temperature: Annotated[float, Range(1e-3)] = 0.1
    """Temperature of the softmax over prototypes."""
    epsilon: Annotated[float, Range(0.03)] = 0.05  # less underflows in float32
    """Smoothness of the assignments."""
    sinkhorn_iterations: Annotated[int, Range(1)] = 3
    """Rounds that make the prototypes share the batch evenly."""
    batch_norm_ranks: Annotated[int, Range(1)] = 8
    """Most ranks, neighbours, whose images a batch norm sees together (--syncbn_process_group_size)."""
    frozen_samples: Annotated[int, Range(0)] = 0
    """Images over which the prototypes stay as they were drawn."""
    queue_length: Annotated[int, Range(0)] = 0
    """Representations of earlier images, of all ranks together, that share in the assignment; 0: no queue."""
    queue_after: Annotated[int, Range(0)] = 0
    """Images after which the queue begins to fill; it is used once it is full."""

    @property
    def crops(self) -> tuple[Crop, ...]:
        """Two large and some small crops, all bilinear."""
        large = Crop(
            size=self.image_size, scale=self.large_scale, count=2, interpolation="bilinear", blur=self.blur
        )
        small = Crop(
            size=self.small_size,
            scale=self.small_scale,
            count=self.small_crops,
            interpolation="bilinear",
            blur=self.blur,
        )
        return (large, small)

    def _networks(self) -> "SwAV":
        return SwAV(self)

    def check(self) -> None:
        """Refuse networks that cannot be built and numbers that make no sense, with a UserError."""
        validate(self, "method.")
        check_arch("SwAV", self.arch, resnets=True)
        check_size("method.image-size", self.image_size, self.arch)
        check_size("method.small-size", self.small_size, self.arch)
        check_scale("method.large-scale", self.large_scale)
        check_scale("method.small-scale", self.small_scale)


class SwAV(Method):
    """One network, and prototypes of unit length that the views of a batch are evenly assigned to."""

    def __init__(self, config: SwAVConfig) -> None:
        """Build network, prototypes and, if there is to be one, a queue for each large view."""
        super().__init__()
        self.config = config
        trunk = create_trunk(config.arch, config.image_size)
        self.network = Encoder(trunk, SwaVProjectionHead(trunk.num_features, config.hidden_dim, config.dim))
        self.prototypes = nn.Linear(config.dim, config.prototypes, bias=False)
        normalize_weight(self.prototypes.weight)
        length = config.queue_length
        queues = [Queue(length, config.dim) for _ in range(ASSIGNED)] if length else []
        self.queues: Sequence[Queue] = nn.ModuleList(queues)  # type: ignore[assignment]  # it is one to its users
        self._measures: dict[str, Tensor] = {}

    def loss(self, views: list[Tensor], step: Step) -> Tensor:
        """Cross-entropy of each view's prediction with the assignments of each large view but itself."""
        represented = self.network(views)
        with torch.autocast(represented.device.type, enabled=False):
            represented_VBD = F.normalize(represented.float(), dim=1).unflatten(0, (len(views), -1))
            score_VBK = self.prototypes(represented_VBD)
            assigned_ABK = self._assignments(represented_VBD.detach(), score_VBK.detach(), step)
            self._measures = {"prototypes_used": _share_used(assigned_ABK)}
            return swapped_prediction(score_VBK, assigned_ABK, self.config.temperature)

    def before_update(self, step: Step) -> None:
        """Hold the prototypes in the beginning."""
        if step.samples < self.config.frozen_samples:
            self.prototypes.weight.grad = None

    def after_step(self, step: Step) -> None:
        """Give the prototypes unit length; the official code does it at the beginning of the next step."""
        normalize_weight(self.prototypes.weight)

    def measures(self) -> dict[str, Tensor]:
        """`prototypes_used`: share that is the first choice of a large view in the last pass of all ranks.

        It cannot exceed large views / prototypes.
        """
        return self._measures

    def checkpoint_activations(self) -> None:
        """Compute activations of the trained trunk again in the backward pass instead of keeping them."""
        self.network.checkpoint_activations()

    def backbone(self) -> nn.Module:
        """Return the network's trunk."""
        return self.network.trunk

    @torch.no_grad()
    def _assignments(self, represented_VBD: Tensor, score_VBK: Tensor, step: Step) -> Tensor:
        """Soft assignments (ASSIGNED, B, K) of the large views; their representations then join the queues."""
        assigned = []
        for view in range(ASSIGNED):
            score_NK = score_VBK[view]
            if self._queue_is_full(step):
                score_NK = torch.cat([self.prototypes(self._own_part(self.queues[view])), score_NK])
            # Cosines are at most 1: less 1, no exponential overflows, and constants cancel.
            assigned_NK = sinkhorn(
                score_NK - 1, self.config.sinkhorn_iterations, self.config.epsilon, gather_distributed=True
            )
            assigned.append(assigned_NK[-score_VBK.shape[1] :])
            if self.queues and step.samples >= self.config.queue_after:
                self.queues[view].add(_of_all_ranks(represented_VBD[view]))
        return torch.stack(assigned)

    def _queue_is_full(self, step: Step) -> bool:
        """Known without looking: every image after the first so many went in, whole steps at a time."""
        if not self.queues or not step.number:
            return False
        a_step = step.samples // step.number
        begun = -(-self.config.queue_after // a_step) * a_step
        return step.samples - begun >= self.config.queue_length

    @staticmethod
    def _own_part(queue: Queue) -> Tensor:
        """Select this rank's share of the rows; which they are changes nothing, as all are assigned together."""
        if not dist.is_initialized():
            return queue.rows_ND
        rank, ranks = dist.get_rank(), dist.get_world_size()
        return queue.rows_ND[rank::ranks][: len(queue.rows_ND) // ranks]  # as many on every rank


def swapped_prediction(score_VBK: Tensor, assigned_ABK: Tensor, temperature: float) -> Tensor:
    """Mean over assigned views, over the other views and over images, of the cross-entropy (scalar).

    Args:
        score_VBK: Cosines of every view with the prototypes.
        assigned_ABK: Assignments of the first A views; each row sums to 1.
        temperature: Of the softmax over prototypes.
    """
    prediction_VBK = F.log_softmax(score_VBK / temperature, dim=-1)
    pair_AV = -torch.einsum("abk,vbk->av", assigned_ABK, prediction_VBK) / score_VBK.shape[1]
    others_AV = 1 - torch.eye(*pair_AV.shape, device=pair_AV.device)
    return (pair_AV * others_AV).sum() / others_AV.sum()


def _share_used(assigned_ABK: Tensor) -> Tensor:
    """Count the prototypes that are the first choice of a view on any rank (scalar)."""
    used_K = torch.zeros(assigned_ABK.shape[-1], device=assigned_ABK.device)
    used_K.index_fill_(0, assigned_ABK.argmax(dim=-1).flatten(), 1.0)
    if dist.is_initialized():
        dist.all_reduce(used_K, dist.ReduceOp.MAX)
    return used_K.mean()


def _of_all_ranks(rows_BD: Tensor) -> Tensor:
    return concat_all_gather(rows_BD.contiguous()) if dist.is_initialized() else rows_BD
