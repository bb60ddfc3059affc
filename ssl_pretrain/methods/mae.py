"""Masked autoencoder: hide three quarters of the patches, encode the rest, predict the hidden pixels.

He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022. Numbers from the official code
(facebookresearch/mae: models_mae.py, PRETRAIN.md).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from lightly.models.modules.masked_vision_transformer_decoder_timm import MaskedVisionTransformerDecoderTIMM
from lightly.models.modules.masked_vision_transformer_timm import MaskedVisionTransformerTIMM, init_weights
from lightly.models.utils import (
    get_at_index,
    patchify,
    random_token_mask,
    repeat_token,
    set_at_index,
    unpatchify,
)
from PIL import Image
from torch import Tensor, nn

from shared.cli import Range, validate
from shared.errors import UserError
from shared.reporting.pictures import contact_sheet
from shared.weights.vit_families import PATCH
from ssl_pretrain.data.crops import Crop
from ssl_pretrain.methods import Method, MethodConfig, Step
from ssl_pretrain.methods.trunks import LEAST_SIZE, check_arch, check_scale, check_size, create_vit

METHOD = "mae"
# Added to a patch's variance before the square root (models_mae.py, forward_loss).
EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class MAEConfig(MethodConfig):
    """Settings of a masked autoencoder."""

    name: ClassVar[str] = METHOD
    fresh: ClassVar[str] = "decoder"
    is_mean_over_images: ClassVar[bool] = True
    arch: str
    """Timm name of the encoder, a plain ViT."""
    image_size: Annotated[int, Range(LEAST_SIZE)] = 224
    """Side of the crops in px."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest share of a patch's area in a crop."""
    mask_ratio: float = 0.75
    """Share of the tokens that are hidden."""
    norm_pix_loss: bool = True
    """Normalise target pixels by mean and variance of their own token."""
    decoder_dim: Annotated[int, Range(1)] = 512
    """Width of the decoder."""
    decoder_depth: Annotated[int, Range(1)] = 8
    """Blocks of the decoder."""
    decoder_heads: Annotated[int, Range(1)] = 16
    """Attention heads of the decoder."""

    batch_norm_ranks: ClassVar[int] = 1
    """Each rank's batch norms see its own images."""

    @property
    def crops(self) -> tuple[Crop, ...]:
        """One bicubic random resized crop of each patch."""
        return (Crop(size=self.image_size, scale=self.crop_scale),)

    def _networks(self) -> "MAE":
        return MAE(self)

    def check(self) -> None:
        """Refuse networks that cannot be built and numbers that make no sense.

        Raises:
            UserError: names the option and what it takes.
        """
        validate(self, "method.")
        check_arch("MAE", self.arch, vits=True)
        check_size("method.image-size", self.image_size, self.arch)
        check_scale("method.crop-scale", self.crop_scale)
        tokens = (self.image_size // PATCH) ** 2
        if not (0 < self.mask_ratio < 1 and 0 < int(tokens * (1 - self.mask_ratio)) < tokens):
            raise UserError(
                f"--method.mask-ratio {self.mask_ratio} hides all or none of the {tokens} tokens of a crop; "
                "give a number between 0 and 1"
            )
        self._check_decoder()

    def _check_decoder(self) -> None:
        if self.decoder_dim % 4 or self.decoder_dim % self.decoder_heads:
            raise UserError(
                f"--method.decoder-dim {self.decoder_dim} does not divide into {self.decoder_heads} heads or "
                "into sines and cosines of two coordinates; give a multiple of 4 and of --method.decoder-heads"
            )


class MAE(Method):
    """Encoder over the visible tokens, narrow decoder over all, pixels of the hidden ones.

    Features have a large part in common, of which nothing follows: after a good run they differ by a few percent.
    """

    may_collapse = False

    def __init__(self, config: MAEConfig) -> None:
        """Build encoder and decoder; Xavier-uniform weights and fixed sine-cosine positions in both."""
        super().__init__()
        self.config = config
        vit = create_vit(config.arch, config.image_size)
        self.encoder = MaskedVisionTransformerTIMM(vit)
        # Only methods that feed masked tokens to the encoder use it; DDP waits for gradients of the others.
        self.encoder.mask_token.requires_grad_(False)
        self.patch_size: int = vit.patch_embed.patch_size[0]
        self.tokens: int = self.encoder.sequence_length
        self.embed = nn.Linear(vit.embed_dim, config.decoder_dim)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            self.tokens - 1, config.decoder_dim, config.decoder_depth, config.decoder_heads
        )
        self.predict = nn.Linear(config.decoder_dim, self.patch_size**2 * 3)
        self.embed.apply(init_weights)
        self.predict.apply(init_weights)

    def loss(self, views: list[Tensor], step: Step) -> Tensor:
        """Mean squared error of the hidden tokens' pixels, each token weighing the same."""
        (image_BCHW,) = views
        size = (len(image_BCHW), self.tokens)
        keep_BK, hidden_BM = random_token_mask(size, self.config.mask_ratio, device=image_BCHW.device)
        prediction_BMP = self.reconstruct(image_BCHW, keep_BK, hidden_BM)
        with torch.autocast(image_BCHW.device.type, enabled=False):
            target_BMP = self._target(self._hidden_pixels(image_BCHW.float(), hidden_BM))
            return (prediction_BMP.float() - target_BMP).square().mean()

    def reconstruct(self, image_BCHW: Tensor, keep_BK: Tensor, hidden_BM: Tensor) -> Tensor:
        """Predicted pixels (B, M, patch*patch*3) of the hidden tokens.

        Args:
            image_BCHW: Normalised images.
            keep_BK: Tokens the encoder sees; token 0 is the class token, which is always kept.
            hidden_BM: The other tokens.
        """
        seen_BKD = self.embed(self.encoder.encode(image_BCHW, idx_keep=keep_BK))
        all_BND = repeat_token(self.decoder.mask_token, (len(image_BCHW), self.tokens))
        all_BND = set_at_index(all_BND, keep_BK, seen_BKD.type_as(all_BND))
        predicted_BMP: Tensor = self.predict(get_at_index(self.decoder(all_BND), hidden_BM))
        return predicted_BMP

    def backbone(self) -> nn.Module:
        """Return the encoder's ViT."""
        vit: nn.Module = self.encoder.vit
        return vit

    def checkpoint_activations(self) -> None:
        """Compute the encoder's activations again in the backward pass instead of keeping them."""
        self.encoder.set_grad_checkpointing()

    @torch.no_grad()
    def show(self, views: list[Tensor], restore: Callable[[Tensor], Tensor]) -> dict[str, Image.Image]:
        """Draw the sheet `reconstruction`: masked | reconstructed | original."""
        (image_BCHW,) = views
        size = (len(image_BCHW), self.tokens)
        keep_BK, hidden_BM = random_token_mask(size, self.config.mask_ratio, device=image_BCHW.device)
        prediction_BMP = self.reconstruct(image_BCHW, keep_BK, hidden_BM).float()
        pixels_BMP = self._from_target(prediction_BMP, self._hidden_pixels(image_BCHW, hidden_BM))
        # 0 is the mean colour of the patches once it is restored.
        panels = [
            self._with_hidden(image_BCHW, hidden_BM, torch.zeros_like(pixels_BMP)),
            self._with_hidden(image_BCHW, hidden_BM, pixels_BMP),
            image_BCHW,
        ]
        return {"reconstruction": _sheet([restore(panel_BCHW) for panel_BCHW in panels])}

    def _hidden_pixels(self, image_BCHW: Tensor, hidden_BM: Tensor) -> Tensor:
        pixels_BMP: Tensor = get_at_index(
            patchify(image_BCHW, self.patch_size), hidden_BM - 1
        )  # without the class token
        return pixels_BMP

    def _target(self, pixels_BMP: Tensor) -> Tensor:
        if not self.config.norm_pix_loss:
            return pixels_BMP
        mean_BM1, deviation_BM1 = _moments(pixels_BMP)
        return (pixels_BMP - mean_BM1) / deviation_BM1

    def _from_target(self, target_BMP: Tensor, pixels_BMP: Tensor) -> Tensor:
        """Invert `_target`, with the mean and deviation of the true pixels."""
        if not self.config.norm_pix_loss:
            return target_BMP
        mean_BM1, deviation_BM1 = _moments(pixels_BMP)
        return target_BMP * deviation_BM1 + mean_BM1

    def _with_hidden(self, image_BCHW: Tensor, hidden_BM: Tensor, pixels_BMP: Tensor) -> Tensor:
        """Replace the pixels of the hidden tokens of images."""
        patches_BNP = set_at_index(patchify(image_BCHW, self.patch_size), hidden_BM - 1, pixels_BMP)
        shown_BCHW: Tensor = unpatchify(patches_BNP, self.patch_size)
        return shown_BCHW


def _moments(pixels_BMP: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (unbiased) standard deviation of each token's pixels, as the official loss has them."""
    mean_BM1 = pixels_BMP.mean(dim=-1, keepdim=True)
    return mean_BM1, (pixels_BMP.var(dim=-1, keepdim=True) + EPSILON).sqrt()


def _sheet(panels: list[Tensor]) -> Image.Image:
    """Rows of two samples, each as masked | reconstructed | original."""
    images = [
        Image.fromarray(panel_BCHW[sample].permute(1, 2, 0).cpu().numpy())
        for sample in range(len(panels[0]))
        for panel_BCHW in panels
    ]
    captions = ["masked", "reconstructed", "original"] * len(panels[0])
    return contact_sheet(images, columns=6, captions=captions, side=224)
