"""Tensors of a ViT for another image size, patch size or other tokens, resampled to fit ours."""

from collections.abc import Mapping

import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor


def fit(name: str, target: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """Resample a file's tensor to the shape of the trunk's `target` where that is possible."""
    tensor = tensors[name]
    if tensor.shape == target.shape or tensor.ndim != target.ndim:
        return tensor
    if name == "patch_embed.proj.weight" and tensor.shape[:2] == target.shape[:2]:
        # Beyer et al. 2023 (FlexiViT): the new kernel gives on an enlarged patch what the old one gave before.
        fitted: Tensor = resample_patch_embed(tensor.float(), list(target.shape[-2:]))
        return fitted
    if name == "pos_embed" and tensor.shape[::2] == target.shape[::2]:
        return _fit_positions(tensor.float(), target.shape[1], _further_tokens(tensors))
    return tensor


def _fit_positions(positions_1ND: Tensor, wanted: int, further: int) -> Tensor:
    """Position embeddings of another image size, or of class and register tokens that the trunk lacks."""
    prefix = _prefix_tokens(positions_1ND.shape[1], further)
    wanted_prefix = _prefix_tokens(wanted)
    if prefix is None or wanted_prefix is None or (wanted_prefix > prefix > 0):
        return positions_1ND
    side = round((wanted - wanted_prefix) ** 0.5)
    grid = resample_abs_pos_embed(positions_1ND[:, prefix:], [side, side], num_prefix_tokens=0)
    if not prefix:  # a class token without a position, as in UNI2-h
        return torch.cat([grid.new_zeros(1, wanted_prefix, grid.shape[2]), grid], dim=1)
    return torch.cat([positions_1ND[:, :wanted_prefix], grid], dim=1)


def _further_tokens(tensors: Mapping[str, Tensor]) -> int:
    """Count the tokens beside class token and patches: registers, DeiT's distillation token."""
    return sum(tensors[name].shape[1] for name in ("reg_token", "dist_token") if name in tensors)


def _prefix_tokens(tokens: int, further: int = 0) -> int | None:
    """Count the tokens before a square grid: none, one class token, or the further ones too."""
    return next((n for n in (0, 1, 1 + further) if round((tokens - n) ** 0.5) ** 2 == tokens - n), None)
