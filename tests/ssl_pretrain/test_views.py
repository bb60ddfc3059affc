"""Flips and normalisation, image by image."""

import torch
from torchvision.transforms.v2 import functional as TF

from ssl_pretrain.crops import Crop
from ssl_pretrain.views import Config, Views

CROPS = (Crop(size=8, scale=(0.2, 1.0)),)
MEAN, STD = (0.7, 0.5, 0.6), (0.2, 0.25, 0.3)


def images(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_normalisation_equals_torchvisions_and_can_be_undone():
    crops_BCHW = images(5)
    (view_BCHW,) = Views(Config(horizontal_flip=0), CROPS, MEAN, STD)([crops_BCHW])
    expected = TF.normalize(TF.to_dtype(crops_BCHW, torch.float32, scale=True), MEAN, STD)
    torch.testing.assert_close(view_BCHW, expected)
    assert torch.equal(Views(Config(), CROPS, MEAN, STD).restore(view_BCHW), crops_BCHW)


def test_each_image_is_flipped_by_its_own_lot():
    crops_BCHW = images(400)
    views = Views(Config(horizontal_flip=0.25, vertical_flip=0.5), CROPS, (0, 0, 0), (1 / 255,) * 3)
    torch.manual_seed(1)
    first, second = views([crops_BCHW, crops_BCHW])
    flips = {"none": [], "horizontal": [-1], "vertical": [-2], "both": [-1, -2]}
    counts = dict.fromkeys(flips, 0)
    for image_CHW, view_CHW in zip(crops_BCHW, first, strict=True):
        matches = [name for name, dims in flips.items() if image_CHW.flip(dims).float().allclose(view_CHW)]
        assert len(matches) == 1
        counts[matches[0]] += 1
    expected = {"none": 150, "horizontal": 50, "vertical": 150, "both": 50}
    assert all(abs(counts[name] - expected[name]) < 45 for name in flips)
    assert not torch.equal(first, second)  # the two views of an image draw separately
