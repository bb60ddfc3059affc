"""Random resized crops against torchvision's and PIL's."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Picture
from torchvision.transforms import RandomResizedCrop

from ssl_pretrain.crops import Crop, cut, decode, random_box
from ssl_pretrain.tar_images import Image
from tests.ssl_pretrain.conftest import jpeg, tissue


def test_boxes_are_distributed_as_torchvisions():
    """Quartiles of area, aspect ratio and place over 4,000 draws, also where the fallback is frequent."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    for height, width, scale in [(512, 512, (0.2, 1.0)), (100, 300, (0.5, 1.0))]:
        image = torch.empty(3, height, width)
        ours = np.array([random_box(height, width, scale, random) for _ in range(4000)])
        theirs = np.array([RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(4000)])
        for measure in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 3] / b[:, 2], lambda b: b[:, 0]):
            a, b = (np.quantile(measure(boxes), [0.1, 0.25, 0.5, 0.75, 0.9]) for boxes in (ours, theirs))
            spread = np.ptp(measure(theirs)) or 1
            assert np.abs(a - b).max() < 0.04 * spread
        assert (ours[:, 0] + ours[:, 2] <= height).all() and (ours[:, 1] + ours[:, 3] <= width).all()


def test_whole_image_is_resized_as_pil_does():
    """Scale 1 of a square leaves only the whole image: bicubic with antialiasing."""
    image = tissue(1).resize((512, 512), Picture.Resampling.BILINEAR)
    image_CHW = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    (ours,) = cut(image_CHW, (Crop(size=224, scale=(1.0, 1.0)),), np.random.default_rng(0))
    theirs = torch.from_numpy(np.array(image.resize((224, 224), Picture.Resampling.BICUBIC))).permute(2, 0, 1)
    assert ours.dtype == torch.uint8
    assert (ours.int() - theirs.int()).abs().max() <= 1


def test_decoding_equals_pil():
    data = jpeg(tissue(3))
    theirs = np.array(Picture.open(io.BytesIO(data)))
    image_CHW = decode(Image("key", data), Path("shard.tar"))
    assert np.abs(image_CHW.permute(1, 2, 0).numpy().astype(int) - theirs).max() <= 2


def test_crops_of_several_kinds():
    image_CHW = torch.zeros(3, 64, 48, dtype=torch.uint8)
    crops = (Crop(size=32, scale=(0.2, 1.0), count=2), Crop(size=16, scale=(0.05, 0.2), count=3))
    sizes = [tuple(view.shape) for view in cut(image_CHW, crops, np.random.default_rng(0))]
    assert sizes == [(3, 32, 32)] * 2 + [(3, 16, 16)] * 3
