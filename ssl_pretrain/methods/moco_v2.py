"""Momentum contrast: find the other view of an image among those of earlier images.

He et al., Momentum Contrast for Unsupervised Visual Representation Learning, CVPR 2020, and Chen et al.,
Improved Baselines with Momentum Contrastive Learning, 2020. Numbers from the official code
(facebookresearch/moco: main_moco.py and moco/builder.py with --mlp --moco-t 0.2 --aug-plus --cos).
"""

import copy
import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.distributed as dist
from lightly.models.modules.heads import MoCoProjectionHead
from lightly.models.utils import batch_shuffle, batch_unshuffle, concat_all_gather, update_momentum
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from shared.cli import Range, validate
from ssl_pretrain.data.crops import Crop
from ssl_pretrain.methods import Method, MethodConfig, Step
from ssl_pretrain.methods.queue import Queue
from ssl_pretrain.methods.trunks import LEAST_SIZE, Encoder, check_arch, check_scale, check_size, create_trunk


@dataclass(frozen=True, kw_only=True)
class MoCoConfig(MethodConfig):
    """Settings of MoCo v2."""

    name: ClassVar[str] = "moco_v2"
    fresh: ClassVar[str] = "head and queue"
    arch: str
    """Timm name of the trunk, a ResNet."""
    image_size: Annotated[int, Range(LEAST_SIZE)] = 224
    """Side of the crops in px."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest share of a patch's area in a crop."""
    blur: Annotated[float, Range(0, 1)] = 0.5
    """Probability that a view is blurred."""
    hidden_dim: Annotated[int, Range(1)] = 2048
    """Width of the head."""
    dim: Annotated[int, Range(1)] = 128
    """Length of the representations that are compared."""
    queue_length: Annotated[int, Range(1)] = 65_536
    """Keys of earlier images, the negatives."""
    momentum: Annotated[float, Range(0, 1)] = 0.999
    """Share of the old weights in an update of the key network."""
    temperature: Annotated[float, Range(1e-3)] = 0.2
    """Temperature of the softmax over keys."""
    key_group: Annotated[int, Range(1)] = 32
    """Most keys that a batch norm sees at once, drawn from the images of all ranks, so that the statistics of its
    batch do not reveal to a query which key is its own; official: a GPU's share of 256 images on 8."""

    batch_norm_ranks: ClassVar[int] = 1
    """Each rank's batch norms see its own images."""

    @property
    def crops(self) -> tuple[Crop, ...]:
        """Two bilinear random resized crops of each patch: query and key."""
        both = Crop(size=self.image_size, scale=self.crop_scale, count=2, interpolation="bilinear", blur=self.blur)
        return (both,)

    def _networks(self) -> "MoCo":
        return MoCo(self)

    def check(self) -> None:
        """Refuse networks that cannot be built and numbers that make no sense, with a UserError."""
        validate(self, "method.")
        check_arch("MoCo v2", self.arch, resnets=True)
        check_size("method.image-size", self.image_size, self.arch)
        check_scale("method.crop-scale", self.crop_scale)

    def advice(self, images: int) -> str | None:
        """Advise a larger micro-batch where a group of keys would be the whole batch."""
        if images > self.key_group:
            return None
        return (
            f"queries and keys share their batch norms' statistics where only {images} images are handled at "
            f"once, which gives the right key away; raise --micro-batch above {self.key_group}, or lower "
            "--method.key-group"
        )


class MoCo(Method):
    """A trained query network and its moving average, which makes the keys."""

    def __init__(self, config: MoCoConfig) -> None:
        """Build both networks, equal at first, and a queue of random keys."""
        super().__init__()
        self.config = config
        trunk = create_trunk(config.arch, config.image_size)
        head = MoCoProjectionHead(trunk.num_features, config.hidden_dim, config.dim)
        self.query = Encoder(trunk, head)
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.queue = Queue(config.queue_length, config.dim)
        self._measures: dict[str, Tensor] = {}

    def loss(self, views: list[Tensor], step: Step) -> Tensor:
        """InfoNCE of each query with its key against the queue; then the keys of all ranks join the queue."""
        query_view_BCHW, key_view_BCHW = views
        query_BD = self.query([query_view_BCHW])
        key_BD = self._keys(key_view_BCHW)
        with torch.autocast(query_BD.device.type, enabled=False):
            query_BD, key_BD = F.normalize(query_BD.float(), dim=1), F.normalize(key_BD.float(), dim=1)
            # A copy, because the backward pass needs the rows that are now.
            logits_BK = similarities(query_BD, key_BD, self.queue.rows_ND.clone()) / self.config.temperature
            loss = info_nce(logits_BK)
        is_right_B = logits_BK[:, 0] > logits_BK[:, 1:].amax(dim=1)
        self._measures = {"queue_accuracy": is_right_B.float().mean()}
        self.queue.add(concat_all_gather(key_BD) if dist.is_initialized() else key_BD)
        return loss

    def after_step(self, step: Step) -> None:
        """Let the key network follow.

        The official code does it at the beginning of the next step, before the keys are made, which is the same.
        """
        update_momentum(self.query, self.key, self.config.momentum)

    def measures(self) -> dict[str, Tensor]:
        """`queue_accuracy`: share of the queries that are more like their own key than like any in the queue."""
        return self._measures

    def checkpoint_activations(self) -> None:
        """Compute activations of the trained trunk again in the backward pass instead of keeping them."""
        self.query.checkpoint_activations()

    def backbone(self) -> nn.Module:
        """Return the query network's trunk."""
        return self.query.trunk

    def trunks(self) -> list[nn.Module]:
        """Those of queries and keys."""
        return [self.query.trunk, self.key.trunk]

    @torch.no_grad()
    def _keys(self, view_BCHW: Tensor) -> Tensor:
        """Keys (B, D), made in groups of images that are drawn from those of all ranks (shuffled batch norm)."""
        several = dist.is_initialized()
        shuffled_BCHW, order = batch_shuffle(view_BCHW, distributed=several)
        groups = shuffled_BCHW.tensor_split(math.ceil(len(shuffled_BCHW) / self.config.key_group))
        weights = _as_autocast(self.key)  # which keeps casts of trained weights alone from one group to the next
        key_BD = torch.cat([functional_call(self.key, weights, ([group_BCHW],)) for group_BCHW in groups])
        unshuffled_BD: Tensor = batch_unshuffle(key_BD, order, distributed=several)
        return unshuffled_BD


def _as_autocast(network: nn.Module) -> dict[str, Tensor]:
    """Weights of products in the dtype that autocast computes them in, by name; none where it is off."""
    device = next(network.parameters()).device.type
    if not torch.is_autocast_enabled(device):
        return {}
    dtype = torch.get_autocast_dtype(device)
    return {name: weight.to(dtype) for name, weight in network.named_parameters() if weight.ndim > 1}


def similarities(query_BD: Tensor, key_BD: Tensor, others_ND: Tensor) -> Tensor:
    """Cosines (B, 1 + N) of each query with its own key, first, and with the others; all have unit length."""
    own_B1 = (query_BD * key_BD).sum(dim=1, keepdim=True)
    return torch.cat([own_B1, query_BD @ others_ND.T], dim=1)


def info_nce(logits_BK: Tensor) -> Tensor:
    """Mean cross-entropy of choosing the first of each row."""
    first_B = torch.zeros(len(logits_BK), dtype=torch.long, device=logits_BK.device)
    return F.cross_entropy(logits_BK, first_B)
