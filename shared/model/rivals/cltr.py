"""CLTR (Liang et al. 2022): Conditional DETR (Meng et al. 2021) on ResNet-50, whose queries are points."""

import math
from itertools import pairwise
from typing import ClassVar

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.model.rivals.outputs import Queries

WIDTH, HEADS, HIDDEN, LAYERS, DROPOUT = 256, 8, 2048, 6, 0.1
STRIDE = 32  # of C5
TEMPERATURE = 10_000
# Of a decoder layer: for the attention of the queries to each other, and to the image.
PROJECTIONS = (
    *("own_content", "own_place", "own_key", "own_key_place", "own_value"),
    *("content", "key", "value", "key_place", "sine"),
)
PRIOR = 0.01  # probability of a class before the first step (focal loss, Lin et al. 2017)


class CLTR(nn.Module):
    """Image -> points and class logits of a fixed number of queries, after each decoder layer.

    Args:
        classes: Cell classes.
        queries: Most cells that it can find in an image (the paper's multiply-adds need 1000).
    """

    stride: ClassVar = 1
    divisor: ClassVar = STRIDE
    trunk: ClassVar = "resnet50"
    decoders: ClassVar = ("queries",)
    sees_whole_image: ClassVar = True

    def __init__(self, classes: int, queries: int) -> None:
        super().__init__()
        self.front = timm.create_model("resnet50", features_only=True, out_indices=(4,))
        self.input = nn.Conv2d(2048, WIDTH, 1)
        self.encoder = nn.ModuleList(_EncoderLayer() for _ in range(LAYERS))
        self.queries = nn.Embedding(queries, WIDTH)
        self.reference = _mlp(WIDTH, WIDTH, 2)
        self.scale = _mlp(WIDTH, WIDTH, WIDTH)
        self.decoder = nn.ModuleList(_DecoderLayer(first=number == 0) for number in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.classify = nn.Linear(WIDTH, classes)
        self.locate = _mlp(WIDTH, WIDTH, WIDTH, 2)
        nn.init.constant_(self.classify.bias, -math.log((1 - PRIOR) / PRIOR))
        for parameter in self.locate[-1].parameters():
            nn.init.zeros_(parameter)

    def trunks(self) -> list[nn.Module]:
        """ResNet-50."""
        return [self.front]

    def forward(self, image_BCHW: Tensor) -> Queries:
        """Standardised image with sides divisible by 32 -> points in px and logits."""
        (features_BCHW,) = self.front(image_BCHW)
        map_BCHW = self.input(features_BCHW)
        place_1NW = _grid_embedding(map_BCHW)[None]
        memory_BNW = map_BCHW.flatten(2).transpose(1, 2)
        for layer in self.encoder:
            memory_BNW = layer(memory_BNW, place_1NW)
        query_BQW = self.queries.weight.repeat(len(image_BCHW), 1, 1)
        with torch.autocast(image_BCHW.device.type, enabled=False):  # as coordinates, half precision is off by px
            reference_BQ2 = self.reference(query_BQW)
        sine_BQW = _sine_embedding(reference_BQ2.sigmoid())
        content_BQW, outputs = torch.zeros_like(query_BQW), []
        for number, layer in enumerate(self.decoder):
            scaled_BQW = sine_BQW * self.scale(content_BQW) if number else sine_BQW
            content_BQW = layer(content_BQW, memory_BNW, query_BQW, place_1NW, scaled_BQW)
            outputs.append(self.norm(content_BQW))
        output_LBQW = torch.stack(outputs)
        size_2 = image_BCHW.new_tensor([image_BCHW.shape[-1], image_BCHW.shape[-2]], dtype=torch.float32)
        with torch.autocast(image_BCHW.device.type, enabled=False):
            points_LBQ2 = (self.locate(output_LBQW.float()) + reference_BQ2).sigmoid() * size_2
        return Queries(points_LBQ2, self.classify(output_LBQW).float(), size_2.expand(*points_LBQ2.shape[:2], -1))


class _EncoderLayer(nn.Module):
    """Self-attention with positions added to queries and keys, then two linear layers; norms come last."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, DROPOUT, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, WIDTH)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.drop = nn.Dropout(DROPOUT)

    def forward(self, memory_BNW: Tensor, place_1NW: Tensor) -> Tensor:
        asked_BNW = memory_BNW + place_1NW
        added_BNW, _ = self.attention(asked_BNW, asked_BNW, memory_BNW, need_weights=False)
        memory_BNW = self.norms[0](memory_BNW + self.drop(added_BNW))
        done_BNW: Tensor = self.norms[1](memory_BNW + self.drop(self.mlp(memory_BNW)))
        return done_BNW


class ProjectedAttention(nn.Module):
    """Attention of queries and keys that are put together head by head, and the projection of its output."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, asked: tuple[Tensor, ...], keys: tuple[Tensor, ...], value_BNW: Tensor) -> Tensor:
        """Parts of queries and of keys, and values -> what the queries found."""
        query, key = (torch.cat([_by_head(each) for each in parts], -1) for parts in (asked, keys))
        dropout = DROPOUT if self.training else 0.0
        found_BHQW = F.scaled_dot_product_attention(query, key, _by_head(value_BNW), dropout_p=dropout)
        found_BQW: Tensor = self.out(found_BHQW.transpose(1, 2).flatten(2))
        return found_BQW


class _DecoderLayer(nn.Module):
    """Self-attention of the queries, attention to the image by content and by place, two linear layers."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.project = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH) for name in PROJECTIONS})
        self.query_place = nn.Linear(WIDTH, WIDTH) if first else None
        self.attention = nn.ModuleList(ProjectedAttention() for _ in range(2))
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, WIDTH)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.drop = nn.Dropout(DROPOUT)

    def forward(
        self, content_BQW: Tensor, memory_BNW: Tensor, query_BQW: Tensor, place_1NW: Tensor, sine_BQW: Tensor
    ) -> Tensor:
        project = self.project
        asked_BQW = project["own_content"](content_BQW) + project["own_place"](query_BQW)
        key_BQW = project["own_key"](content_BQW) + project["own_key_place"](query_BQW)
        added_BQW = self.attention[0]((asked_BQW,), (key_BQW,), project["own_value"](content_BQW))
        content_BQW = self.norms[0](content_BQW + self.drop(added_BQW))

        key_BNW, key_place_1NW = project["key"](memory_BNW), project["key_place"](place_1NW)
        asked_BQW = project["content"](content_BQW)
        if self.query_place is not None:
            asked_BQW, key_BNW = asked_BQW + self.query_place(query_BQW), key_BNW + key_place_1NW
        places = key_place_1NW.expand_as(key_BNW)
        asked = (asked_BQW, project["sine"](sine_BQW))
        added_BQW = self.attention[1](asked, (key_BNW, places), project["value"](memory_BNW))
        content_BQW = self.norms[1](content_BQW + self.drop(added_BQW))
        done_BQW: Tensor = self.norms[2](content_BQW + self.drop(self.mlp(content_BQW)))
        return done_BQW


def _by_head(values_BNW: Tensor) -> Tensor:
    by_head_BHNW: Tensor = values_BNW.unflatten(2, (HEADS, -1)).transpose(1, 2)
    return by_head_BHNW


def _mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _grid_embedding(map_BCHW: Tensor) -> Tensor:
    """Embeddings of the centres of a map's cells, row by row, x width."""
    y_R, x_C = ((torch.arange(side, device=map_BCHW.device) + 0.5) / side for side in map_BCHW.shape[-2:])
    return _sine_embedding(torch.stack(torch.meshgrid(x_C, y_R, indexing="xy"), -1).flatten(0, 1))


def _sine_embedding(points_N2: Tensor) -> Tensor:
    """Sines and cosines of places in 0..1, y before x: ... x width."""
    half = WIDTH // 2
    frequency_F = TEMPERATURE ** -(torch.arange(0, half, 2, device=points_N2.device) / half)
    angle_N2F = 2 * math.pi * points_N2.flip(-1)[..., None] * frequency_F
    return torch.stack([angle_N2F.sin(), angle_N2F.cos()], -1).flatten(-3)
