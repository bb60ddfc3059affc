"""ViT-Adapter (Chen et al. 2022): a plain ViT, with a convolutional branch that makes a pyramid of it.

The branch's features flow into the ViT (`Injector`) and back (`Extractor`) four times on the way through
its blocks. The configuration is the one that its authors use with MAE weights, which is also the one that
gives the parameter counts of the DPA-P2PNet paper: no extra extractors, no layer scale, value ratio 0.5.
"""

import math
from collections.abc import Sequence

import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath, apply_rot_embed_cat, resample_abs_pos_embed
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

from shared.errors import UserError
from shared.model.deformable_attention import DeformableAttention, Size
from shared.weights.vit_families import DINOV3_VITS, timm_options

INTERACTIONS = 4  # the blocks are cut into four equal runs, each followed by an extractor
WINDOW = 14  # tokens; the last block of each run attends globally, the others within windows
STEM_WIDTH = 64  # channels of the convolutional branch at stride 4
FEEDFORWARD_RATIO = 0.25  # hidden width of the extractors' feed-forward part


class ViTAdapter(nn.Module):
    """A plain ViT of timm with 16 px patches and its adapter; outputs as wide as the ViT.

    `trunk` is the ViT without class token, registers, head and final norm.
    """

    def __init__(self, arch: str, drop_path: float = 0.0) -> None:
        super().__init__()
        self.trunk = create_vit(arch, drop_path)
        width, heads = self.trunk.embed_dim, self.trunk.blocks[0].attn.num_heads
        self.channels: tuple[int, ...] = (width,) * 4
        self.prior = SpatialPrior(width)
        self.level_embed = nn.Parameter(torch.empty(3, width))
        self.injectors = nn.ModuleList(Injector(width, heads) for _ in range(INTERACTIONS))
        self.extractors = nn.ModuleList(Extractor(width, heads, drop_path) for _ in range(INTERACTIONS))
        self.up = nn.ConvTranspose2d(width, width, 2, 2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(4))
        for part in (self.prior, self.injectors, self.extractors, self.up):
            part.apply(_initialise)
        nn.init.normal_(self.level_embed)

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        """Normalised image with sides divisible by 32 -> maps at strides 4, 8, 16, 32."""
        sizes = [(image_BCHW.shape[-2] // stride, image_BCHW.shape[-1] // stride) for stride in (8, 16, 32)]
        fine_BDHW, levels = self.prior(image_BCHW)
        prior_BKD = torch.cat(
            [_tokens(level) + embed for level, embed in zip(levels, self.level_embed, strict=True)], dim=1
        )
        tokens_BND, rope_NR = self._embed(image_BCHW)
        everywhere = {} if rope_NR is None else {"rope": rope_NR}
        for index, blocks in enumerate(self._runs()):
            tokens_BND = self.injectors[index](tokens_BND, prior_BKD, sizes)
            for block in blocks[:-1]:
                tokens_BND = windowed_block(block, tokens_BND, sizes[1], rope_NR)
            tokens_BND = blocks[-1](tokens_BND, **everywhere)
            prior_BKD = self.extractors[index](prior_BKD, tokens_BND, sizes)
        return self._pyramid(fine_BDHW, prior_BKD, tokens_BND, sizes)

    def _embed(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Patch tokens with positions, which are resampled to the image's grid, or without, and rotations."""
        patches_BDHW = self.trunk.patch_embed.proj(image_BCHW)
        if self.trunk.pos_embed is None:
            rope_NR = self.trunk.rope.get_embed(shape=list(patches_BDHW.shape[-2:]))
            return self.trunk.pos_drop(_tokens(patches_BDHW)), rope_NR
        # As ViT-Adapter and MAE's fine-tuning do it: bicubic, half-pixel centres, no antialiasing.
        position_1ND = resample_abs_pos_embed(
            self.trunk.pos_embed,
            list(patches_BDHW.shape[-2:]),
            num_prefix_tokens=0,
            antialias=False,
            align_corners=False,
        )
        tokens_BND: Tensor = self.trunk.pos_drop(_tokens(patches_BDHW) + position_1ND)
        return tokens_BND, None

    def _runs(self) -> list[list[Block]]:
        blocks = list(self.trunk.blocks)
        length = len(blocks) // INTERACTIONS
        return [blocks[start : start + length] for start in range(0, len(blocks), length)]

    def _pyramid(
        self, fine_BDHW: Tensor, prior_BKD: Tensor, tokens_BND: Tensor, sizes: Sequence[Size]
    ) -> list[Tensor]:
        """Sum of both branches at each stride, the ViT's map being resized to it."""
        levels = _maps(prior_BKD, sizes)
        levels = [fine_BDHW + self.up(levels[0]), *levels]
        (vit_BDHW,) = _maps(tokens_BND, sizes[1:2])
        for index, scale in enumerate((4.0, 2.0, 1.0, 0.5)):
            resized = F.interpolate(vit_BDHW, scale_factor=scale, mode="bilinear", align_corners=False)
            levels[index] = self.norms[index](levels[index] + resized)
        return levels


def create_vit(arch: str, drop_path: float = 0.0) -> VisionTransformer | Eva:
    """Create the trunk of an adapter, with patches of 16 px whatever its name says.

    Args:
        arch: Name in `shared.weights.vit_families`.
        drop_path: Stochastic depth rate.

    Raises:
        UserError: this release of timm does not have it.
    """
    name, options = timm_options(arch)
    if not timm.is_model(name):
        raise UserError(f"timm {timm.__version__} has no {name}; install a newer one: pip install --upgrade timm")
    if arch in DINOV3_VITS.values():
        trunk = timm.create_model(
            name, class_token=False, num_reg_tokens=0, global_pool="", num_classes=0, drop_path_rate=drop_path
        )
        trunk.norm = nn.Identity()
        return trunk
    return timm.create_model(
        name,
        class_token=False,
        global_pool="",
        num_classes=0,
        final_norm=False,
        drop_path_rate=drop_path,
        **options,
    )


class SpatialPrior(nn.Module):
    """The convolutional branch's own look at the image: maps at stride 4, and at strides 8, 16, 32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        stem = STEM_WIDTH
        self.stem = nn.Sequential(
            *_conv(3, stem, 2), *_conv(stem, stem), *_conv(stem, stem), nn.MaxPool2d(3, 2, 1)
        )
        inner = (stem, 2 * stem, 4 * stem, 4 * stem)
        self.down = nn.ModuleList(nn.Sequential(*_conv(inner[i], inner[i + 1], 2)) for i in range(3))
        self.project = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in inner)

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Image -> the map at stride 4, the maps at strides 8, 16 and 32; all as wide as the ViT."""
        maps = [self.stem(image_BCHW)]
        for down in self.down:
            maps.append(down(maps[-1]))
        fine, *coarse = [project(feature) for project, feature in zip(self.project, maps, strict=True)]
        return fine, coarse


class Injector(nn.Module):
    """ViT tokens take up what the convolutional branch has; `gamma` = 0 leaves them alone at the start."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(width, eps=1e-6)
        self.feature_norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = DeformableAttention(width, heads, levels=3)
        self.gamma = nn.Parameter(torch.zeros(width))

    def forward(self, tokens_BND: Tensor, prior_BKD: Tensor, sizes: Sequence[Size]) -> Tensor:
        """ViT tokens (stride 16) -> the same, informed by the branch's three levels of `sizes`."""
        places_N2 = cell_centres(sizes[1:2], tokens_BND.device)
        query, feature = self.query_norm(tokens_BND), self.feature_norm(prior_BKD)
        out: Tensor = tokens_BND + self.gamma * self.attention(query, places_N2, feature, sizes)
        return out


class Extractor(nn.Module):
    """The convolutional branch takes up what the ViT has made, then mixes neighbouring cells."""

    def __init__(self, width: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(width, eps=1e-6)
        self.feature_norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = DeformableAttention(width, heads, levels=1)
        self.feedforward_norm = nn.LayerNorm(width, eps=1e-6)
        self.feedforward = ConvFeedForward(width)
        self.drop_path = DropPath(drop_path)

    def forward(self, prior_BKD: Tensor, tokens_BND: Tensor, sizes: Sequence[Size]) -> Tensor:
        """Inform the branch's cells (three levels of `sizes`) by the ViT tokens."""
        places_K2 = cell_centres(sizes, tokens_BND.device)
        query, feature = self.query_norm(prior_BKD), self.feature_norm(tokens_BND)
        prior_BKD = prior_BKD + self.attention(query, places_K2, feature, sizes[1:2])
        out: Tensor = prior_BKD + self.drop_path(self.feedforward(self.feedforward_norm(prior_BKD), sizes))
        return out


class ConvFeedForward(nn.Module):
    """Linear, depthwise 3x3 convolution (one for all three levels), GELU, linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = int(width * FEEDFORWARD_RATIO)
        self.expand = nn.Linear(width, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.contract = nn.Linear(hidden, width)

    def forward(self, prior_BKD: Tensor, sizes: Sequence[Size]) -> Tensor:
        """Cells of three levels -> as many."""
        maps = _maps(self.expand(prior_BKD), sizes)
        mixed_BKd = torch.cat([_tokens(self.depthwise(feature)) for feature in maps], dim=1)
        out: Tensor = self.contract(F.gelu(mixed_BKd))
        return out


def windowed_block(
    block: Block | EvaBlock, tokens_BND: Tensor, size: Size, rope_NR: Tensor | None = None
) -> Tensor:
    """Compute a ViT block of timm whose attention stays within windows of 14 x 14 tokens."""
    attended = windowed_attention(block.attn, block.norm1(tokens_BND), size, rope_NR=rope_NR)
    if isinstance(block, EvaBlock):
        tokens_BND = tokens_BND + block.drop_path1(block.gamma_1 * attended)
        rotary_BND: Tensor = tokens_BND + block.drop_path2(block.gamma_2 * block.mlp(block.norm2(tokens_BND)))
        return rotary_BND
    tokens_BND = tokens_BND + block.drop_path1(block.ls1(attended))
    out_BND: Tensor = tokens_BND + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens_BND))))
    return out_BND


def windowed_attention(
    attention: Attention | EvaAttention,
    tokens_BND: Tensor,
    size: Size,
    window: int = WINDOW,
    rope_NR: Tensor | None = None,
) -> Tensor:
    """Self-attention of timm within windows, the last ones filled up with zeros (right and bottom).

    The filling comes after the projection, as in ViT-Adapter: a filled place is a key and a value of
    zeros, which takes its share of the softmax.
    """
    height, width = size
    qkv_BNE = attention.qkv(tokens_BND)
    if rope_NR is not None:
        qkv_BNE = _rotated(qkv_BNE, attention, rope_NR)
    qkv_BHWE = qkv_BNE.unflatten(1, size)
    qkv_BHWE = F.pad(qkv_BHWE, (0, 0, 0, -width % window, 0, -height % window))
    rows, columns = qkv_BHWE.shape[1] // window, qkv_BHWE.shape[2] // window
    windows = qkv_BHWE.reshape(-1, rows, window, columns, window, 3, attention.num_heads, attention.head_dim)
    query, key, value = windows.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(5, 6).flatten(1, 3)
    mixed = F.scaled_dot_product_attention(query, key, value)  # (B rows columns) heads window^2 d
    mixed = mixed.transpose(1, 2).reshape(-1, rows, columns, window, window, tokens_BND.shape[-1])
    mixed = mixed.transpose(2, 3).reshape(-1, rows * window, columns * window, tokens_BND.shape[-1])
    out_BND: Tensor = attention.proj_drop(attention.proj(mixed[:, :height, :width].flatten(1, 2)))
    return out_BND


def _rotated(qkv_BNE: Tensor, attention: EvaAttention, rope_NR: Tensor) -> Tensor:
    """Rotate queries and keys by their places in the whole image; scores then depend on differences alone."""
    query, key, value = qkv_BNE.unflatten(-1, (3, attention.num_heads, attention.head_dim)).unbind(2)
    rotated = [
        apply_rot_embed_cat(part_BNhd.transpose(1, 2), rope_NR, half=attention.rotate_half).transpose(1, 2)
        for part_BNhd in (query, key)
    ]
    return torch.stack([*(part.type_as(value) for part in rotated), value], dim=2).flatten(2)


def cell_centres(sizes: Sequence[Size], device: torch.device) -> Tensor:
    """Centres (x, y) in 0..1 of the cells of all levels, row by row, K x 2 (float32)."""
    grids = []
    for height, width in sizes:
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
        grids.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1))
    return torch.cat(grids)


def _tokens(map_BDHW: Tensor) -> Tensor:
    return map_BDHW.flatten(2).transpose(1, 2)


def _maps(tokens_BKD: Tensor, sizes: Sequence[Size]) -> list[Tensor]:
    levels = tokens_BKD.split([height * width for height, width in sizes], dim=1)
    return [level.transpose(1, 2).unflatten(2, size) for level, size in zip(levels, sizes, strict=True)]


def _conv(channels: int, width: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]


def _initialise(module: nn.Module) -> None:
    """ViT-Adapter's initial values; norms keep PyTorch's (1 and 0)."""
    if isinstance(module, DeformableAttention):
        module.reset()
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
