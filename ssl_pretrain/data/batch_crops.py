"""Crops of a whole batch in a few large operations, for a GPU: a launch for each would keep Python busy.

Resampling along an axis is a product with a matrix of the filter's weights, here for all results of an image.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_pretrain.data.crops import Crop, each_crop


class BatchCropper:
    """Cuts and resizes the crops of a batch, within 1 grey level of torchvision's."""

    def __init__(self, crops: Sequence[Crop], device: torch.device) -> None:
        """Crops of several sizes, all with one interpolation."""
        (self._interpolation,) = {crop.interpolation for crop in crops}
        self._sizes = [crop.size for crop in each_crop(crops)]
        place_T = torch.cat([(torch.arange(size) + 0.5) / size for size in self._sizes])
        share_T = torch.cat([torch.full((size,), 1 / size) for size in self._sizes])
        self._place_T, self._share_T = place_T.to(device), share_T.to(device)  # of the results in a box
        # Half precision holds 8-bit values exactly; results are off by 0.1 grey levels at most.
        self._dtype = torch.float16 if device.type == "cuda" else torch.float32

    def __call__(self, images: Sequence[Tensor], box_BK4: Tensor) -> list[Tensor]:
        """Return a uint8 tensor (batch, 3, size, size) for each of K crops.

        Args:
            images: uint8 (3, H, W) each, on the device; different sizes cost a launch each.
            box_BK4: Top, left, height, width in px, on the device.
        """
        image_B3LL = _squares(images).to(self._dtype)
        y_BTL, x_BTL = self._weights(box_BK4, image_B3LL.shape[-1])
        rows_B3LT = (image_B3LL.flatten(1, 2) @ x_BTL.transpose(1, 2)).unflatten(1, (3, -1))
        views: list[Tensor] = []
        first = 0
        for size, same in itertools.groupby(self._sizes):
            count = len(list(same))
            part = slice(first, first := first + count * size)
            views += _along_columns(rows_B3LT[..., part], y_BTL[:, part], count)
        return views

    def _weights(self, box_BK4: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """Weights (B, T, side) of pixels along y and x in the T rows or columns of all results of an image.

        They are PIL's (torch: antialias). Where an image shrinks, the filter is as wide as the distance between
        results. It reads nothing beyond the box.
        """
        box_BS4 = [
            box_B4[:, None].expand(-1, size, -1)
            for box_B4, size in zip(box_BK4.unbind(1), self._sizes, strict=True)
        ]
        start_2BT, length_2BT = torch.cat(box_BS4, dim=1).float().unflatten(-1, (2, 2)).permute(2, 3, 0, 1)
        centre_2BT = torch.addcmul(start_2BT, length_2BT, self._place_T)
        reach_2BT = (length_2BT * self._share_T).clamp_(min=1)
        pixel_L = torch.arange(0.5, side, device=box_BK4.device)
        distance_2BTL = (pixel_L - centre_2BT[..., None]).abs_().div_(reach_2BT[..., None])
        weight_2BTL = _bilinear(distance_2BTL) if self._interpolation == "bilinear" else _bicubic(distance_2BTL)
        end_2BT = start_2BT + length_2BT
        weight_2BTL *= (pixel_L > start_2BT[..., None]) & (pixel_L < end_2BT[..., None])
        weight_2BTL /= weight_2BTL.sum(-1, keepdim=True)
        y_BTL, x_BTL = weight_2BTL.to(self._dtype)
        return y_BTL, x_BTL


def _squares(images: Sequence[Tensor]) -> Tensor:
    """Place the images in the top left corner of squares of one size."""
    sides = {side for image_CHW in images for side in image_CHW.shape[1:]}
    if len(sides) > 1:
        most = max(sides)
        images = [F.pad(each, (0, most - each.shape[2], 0, most - each.shape[1])) for each in images]
    return torch.stack(list(images))


def _along_columns(rows_B3LT: Tensor, y_BTL: Tensor, count: int) -> tuple[Tensor, ...]:
    """`count` crops (B, 3, size, size) in uint8 of images that are resampled along their rows."""
    rows_BKL3S = rows_B3LT.unflatten(-1, (count, -1)).permute(0, 3, 2, 1, 4)
    rows_NLX = rows_BKL3S.flatten(3, 4).flatten(0, 1)  # N: B K, X: 3 S
    crop_NSX = y_BTL.reshape(len(rows_NLX), -1, y_BTL.shape[-1]) @ rows_NLX
    level_NSX = crop_NSX.add_(0.5).clamp_(0, 255).to(torch.uint8)
    columns: tuple[Tensor, ...] = (
        level_NSX.unflatten(0, (-1, count)).unflatten(-1, (3, -1)).permute(1, 0, 3, 2, 4).unbind(0)
    )
    return columns


def _bilinear(distance: Tensor) -> Tensor:
    return distance.neg_().add_(1).clamp_(min=0)


def _bicubic(distance: Tensor) -> Tensor:
    """Keys' filter with a = -0.5: 0.5 (q - 1) q^2 + (1 - 2p) p^2 with p = 1 - d, q = 2 - d, both at least 0."""
    q = distance.neg_().add_(2).clamp_(min=0)
    p = (q - 1).clamp_(min=0)
    inner = torch.rsub(p, 1, alpha=2).mul_(p).mul_(p)
    return inner.addcmul_(q - 1, q.mul_(q), value=0.5)
