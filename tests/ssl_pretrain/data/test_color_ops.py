"""Every operation, image by image, against torchvision's function for floats; the blur also against PIL's."""

import itertools

import numpy as np
import pytest
import torch
from PIL import ImageFilter
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from ssl_pretrain.data.color_ops import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    Jitter,
    blurred,
    gray,
    jittered,
    mixed,
    solarised,
    turned_hue,
)
from tests.ssl_pretrain.conftest import tissue

THEIRS = {BRIGHTNESS: TF.adjust_brightness, CONTRAST: TF.adjust_contrast, SATURATION: TF.adjust_saturation}


def images(count: int) -> Tensor:
    """Something like tissue, noise with black, white, gray and tied channels, in 0..1."""
    random = np.random.default_rng(0)
    pictures = [np.array(tissue(number).crop((0, 0, 48, 48))) for number in range(count)]
    for picture in pictures[::2]:
        picture[:24] = random.choice([0, 60, 61, 128, 200, 255], (24, 48, 3))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def close(ours_BCHW: Tensor, theirs: list[Tensor]) -> None:
    torch.testing.assert_close(ours_BCHW, torch.stack(theirs), atol=2e-6, rtol=0)


@pytest.mark.parametrize("operation", THEIRS)
def test_brightness_contrast_saturation(operation: int):
    factors = [0.0, 0.2, 0.7, 1.0, 1.3, 1.8]
    image_BCHW = images(len(factors))
    ours_BCHW = mixed(image_BCHW, torch.full((6,), operation), torch.tensor(factors))
    close(ours_BCHW, [THEIRS[operation](*pair) for pair in zip(image_BCHW, factors, strict=True)])
    assert torch.equal(ours_BCHW[3], image_BCHW[3])


def test_operations_of_one_batch_may_differ():
    image_BCHW = images(3)
    ours_BCHW = mixed(image_BCHW, torch.tensor([SATURATION, BRIGHTNESS, CONTRAST]), torch.tensor([0.5, 1.5, 0.6]))
    theirs = [TF.adjust_saturation(image_BCHW[0], 0.5), TF.adjust_brightness(image_BCHW[1], 1.5)]
    close(ours_BCHW, [*theirs, TF.adjust_contrast(image_BCHW[2], 0.6)])


def test_hue():
    turns = [-0.5, -0.2, -0.01, 0.0, 0.02, 0.1, 0.34, 0.5]
    image_BCHW = images(len(turns))
    ours_BCHW = turned_hue(image_BCHW, torch.tensor(turns))
    close(ours_BCHW, [TF.adjust_hue(*pair) for pair in zip(image_BCHW, turns, strict=True)])
    torch.testing.assert_close(ours_BCHW[3], image_BCHW[3], atol=1e-6, rtol=0)


def test_jitter_in_each_of_the_24_orders():
    orders = list(itertools.permutations(range(4)))
    image_BCHW = images(24)
    generator = torch.Generator().manual_seed(0)
    factor_B3 = 0.3 + 1.4 * torch.rand(24, 3, generator=generator)
    turn_B = torch.rand(24, generator=generator) - 0.5
    ours_BCHW = jittered(image_BCHW, Jitter(factor_B3, turn_B, torch.tensor(orders)))
    functions = {**THEIRS, HUE: TF.adjust_hue}
    theirs = []
    for image_CHW, order, factors, turn in zip(
        image_BCHW, orders, factor_B3.tolist(), turn_B.tolist(), strict=True
    ):
        for operation in order:
            image_CHW = functions[operation](image_CHW, [*factors, turn][operation])
        theirs.append(image_CHW)
    # Where all channels are nearly equal, the last digit decides between two hues; the values hardly differ.
    torch.testing.assert_close(ours_BCHW, torch.stack(theirs), atol=1e-5, rtol=0)
    assert (ours_BCHW[0] - ours_BCHW[1]).abs().max() > 0.1


def test_grayscale():
    image_BCHW = images(4)
    close(gray(image_BCHW), [TF.rgb_to_grayscale(image_CHW, num_output_channels=1) for image_CHW in image_BCHW])


def test_blur():
    sigmas = [0.1, 0.4, 1.0, 1.5, 2.0]
    image_BCHW = images(len(sigmas))
    ours_BCHW = blurred(image_BCHW, torch.tensor(sigmas), reach=6)
    close(
        ours_BCHW, [TF.gaussian_blur(image, [13, 13], [s, s]) for image, s in zip(image_BCHW, sigmas, strict=True)]
    )
    assert torch.equal(blurred(image_BCHW, torch.zeros(5), reach=6), image_BCHW)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_blur_is_as_wide_as_pils(sigma: float):
    """The official codes' blur: three box filters, each result rounded. Only edges differ by design."""
    picture = tissue(1)
    ours_BCHW = blurred(TF.to_image(picture)[None].float() / 255, torch.tensor([sigma]), reach=6)
    theirs_CHW = TF.to_image(picture.filter(ImageFilter.GaussianBlur(sigma)))
    inside = slice(8, -8)
    difference_CHW = (ours_BCHW[0] * 255 - theirs_CHW)[:, inside, inside].abs()
    assert difference_CHW.mean() < 0.7
    narrower_BCHW = blurred(TF.to_image(picture)[None].float() / 255, torch.tensor([sigma * 0.8]), reach=6)
    assert (narrower_BCHW[0] * 255 - theirs_CHW)[:, inside, inside].abs().mean() > 2 * difference_CHW.mean()


def test_solarise():
    image_BCHW = images(3)
    ours_BCHW = solarised(image_BCHW, torch.tensor([128 / 255, 2.0, 0.3]))
    close(ours_BCHW, [TF.solarize(image_BCHW[0], 128 / 255), image_BCHW[1], TF.solarize(image_BCHW[2], 0.3)])
