"""Changes of colour and sharpness for a batch of images, each image with its own parameters.

Images are RGB in 0..1, float32, (B, 3, H, W); parameters are tensors (B,), so that nothing is copied between
the devices. Given equal parameters the results are those of torchvision's functions for float images. The
official codes of MoCo v2, SwAV and DINO work on 8-bit PIL images, which round after every operation; here
nothing is rounded, and values are only kept within 0..1.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Weights of red, green and blue in a pixel's brightness: ITU-R 601-2, as in PIL and torchvision.
LUMA = (0.2989, 0.587, 0.114)
# Operations of a colour jitter. The first three mix the image with something else.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


class Jitter(NamedTuple):
    """Parameters of a colour jitter."""

    factor_B3: Tensor
    """Factors of brightness, contrast and saturation; 1 changes nothing."""
    turn_B: Tensor
    """Change of hue, in turns of the colour circle."""
    order_B4: Tensor
    """Permutations of the four operations."""


def gray(image_BCHW: Tensor) -> Tensor:
    """Brightness of each pixel, (B, 1, H, W)."""
    red, green, blue = image_BCHW.split(1, dim=1)
    gray_BHW: Tensor = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    return gray_BHW


def mixed(image_BCHW: Tensor, operation_B: Tensor, factor_B: Tensor) -> Tensor:
    """Brightness, contrast or saturation changed by a factor: 1 leaves an image as it is.

    Each is a mixture of the image with something else, of which a factor of 0 leaves nothing but that:
    black, the mean brightness, or the image without its colours.
    """
    gray_B1HW = gray(image_BCHW)
    mean_B111 = gray_B1HW.mean(dim=(1, 2, 3), keepdim=True)
    operation_B111, factor_B111 = operation_B[:, None, None, None], factor_B[:, None, None, None]
    other_B1HW = torch.where(operation_B111 == SATURATION, gray_B1HW, mean_B111)
    other_B1HW = torch.where(operation_B111 == BRIGHTNESS, 0.0, other_B1HW)
    return torch.lerp(other_B1HW, image_BCHW, factor_B111).clamp(0, 1)


def turned_hue(image_BCHW: Tensor, turn_B: Tensor) -> Tensor:
    """Hue moved along the colour circle of HSV by `turn_B` of its length; value and saturation stay.

    The way back from HSV is the closed form: a channel is value - chroma * w, where w is 0 within a sixth of the
    circle from the channel's own hue, 1 from two sixths on, and rises between.
    """
    red_BHW, green_BHW, blue_BHW = image_BCHW.unbind(1)
    value_BHW = image_BCHW.amax(1)
    chroma_BHW = value_BHW - image_BCHW.amin(1)
    divisor_BHW = torch.where(chroma_BHW > 0, chroma_BHW, 1.0)
    from_red_BHW = (green_BHW - blue_BHW) / divisor_BHW
    from_green_BHW = (blue_BHW - red_BHW) / divisor_BHW + 2
    from_blue_BHW = (red_BHW - green_BHW) / divisor_BHW + 4
    sixths_BHW = torch.where(value_BHW == green_BHW, from_green_BHW, from_blue_BHW)
    sixths_BHW = torch.where(value_BHW == red_BHW, from_red_BHW, sixths_BHW) + 6 * turn_B[:, None, None]
    beyond_BCHW = torch.stack([sixths_BHW, sixths_BHW - 2, sixths_BHW - 4], dim=1)  # from each channel's own hue
    distance_BCHW = (beyond_BCHW - 6 * torch.round(beyond_BCHW / 6)).abs()
    return value_BHW[:, None] - chroma_BHW[:, None] * (distance_BCHW - 1).clamp(0, 1)


def jittered(image_BCHW: Tensor, jitter: Jitter) -> Tensor:
    """Apply the four operations of a colour jitter, in each image's own order.

    All 24 orders take six mixtures and one turn of the hue for the whole batch, instead of all four operations
    four times: what precedes the hue in an image's order is done before it, what follows after it, and where
    the place of a mixture is not this image's, its factor is 1.
    """
    hue_place_B = (jitter.order_B4 == HUE).int().argmax(1)
    factor_B4 = F.pad(jitter.factor_B3, (0, 1), value=1.0).gather(1, jitter.order_B4)  # by place
    for place in range(3):
        factor_B = torch.where(place < hue_place_B, factor_B4[:, place], 1.0)
        image_BCHW = mixed(image_BCHW, jitter.order_B4[:, place], factor_B)
    image_BCHW = turned_hue(image_BCHW, jitter.turn_B)
    for place in range(1, 4):
        factor_B = torch.where(place > hue_place_B, factor_B4[:, place], 1.0)
        image_BCHW = mixed(image_BCHW, jitter.order_B4[:, place], factor_B)
    return image_BCHW


def blurred(image_BCHW: Tensor, sigma_B: Tensor, reach: int) -> Tensor:
    """Apply a Gaussian blur of `sigma_B` px, cut off at a distance of `reach` px; edges are mirrored.

    All kernels have the same length, 2 * reach + 1, whatever the sigma; one of 0 leaves an image as it is.
    """
    batch, channels, height, width = image_BCHW.shape
    distance_K = torch.arange(-reach, reach + 1, device=image_BCHW.device)
    weight_BK = torch.exp(-0.5 * (distance_K / sigma_B[:, None].clamp(min=0.01)) ** 2)
    weight_BK = weight_BK / weight_BK.sum(1, keepdim=True)
    weight_NK = weight_BK[:, None].expand(-1, channels, -1).flatten(0, 1)
    # A convolution has one kernel for a channel, so each channel of each image becomes one of a single image.
    padded_BCHW = F.pad(image_BCHW, [reach] * 4, mode="reflect")
    padded_1NHW = padded_BCHW.reshape(1, batch * channels, height + 2 * reach, width + 2 * reach)
    along_x_1NHW = F.conv2d(padded_1NHW, weight_NK[:, None, None, :], groups=batch * channels)
    along_both_1NHW = F.conv2d(along_x_1NHW, weight_NK[:, None, :, None], groups=batch * channels)
    return along_both_1NHW.view(batch, channels, height, width)


def solarised(image_BCHW: Tensor, threshold_B: Tensor) -> Tensor:
    """Values from the threshold on are inverted; one above 1 leaves an image as it is."""
    return torch.where(image_BCHW >= threshold_B[:, None, None, None], 1 - image_BCHW, image_BCHW)
