"""Crops of a whole batch against torchvision's of one image after another, and the launches they take."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from ssl_pretrain.data.batch_crops import BatchCropper
from ssl_pretrain.data.crops import Crop, each_crop, random_boxes
from ssl_pretrain.recipes import PUBLISHED
from tests.pretended_gpu import GPU, pretended_gpu

CROPS = (
    Crop(size=64, scale=(0.2, 1.0), count=2),
    Crop(size=24, scale=(0.01, 0.2), count=2),
    Crop(size=64, scale=(0.05, 0.4)),
)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("sizes", [((96, 96), (96, 96)), ((200, 150), (100, 170))])
def test_crops_are_torchvisions(sizes: tuple[tuple[int, int], ...], interpolation: str):
    """Enlarged and reduced, of squares and others; by torchvision in float32."""
    random = np.random.default_rng(0)
    crops = [replace(crop, interpolation=interpolation) for crop in CROPS]
    kinds = each_crop(crops)
    images = [torch.from_numpy(random.integers(0, 256, (3, *size), dtype=np.uint8)) for size in sizes]
    boxes = [random_boxes(*size, kinds, random) for size in sizes]
    views = BatchCropper(crops, torch.device("cpu"))(images, torch.tensor(boxes))
    assert len(views) == len(kinds)
    for place, kind in enumerate(kinds):
        mode = InterpolationMode(kind.interpolation)
        for sample, image in enumerate(images):
            box, size = boxes[sample][place], [kind.size, kind.size]
            expected = TF.resized_crop(image.float(), *box, size, interpolation=mode).clamp(0, 255)
            found = views[place][sample]
            assert found.dtype == torch.uint8
            assert (found - expected).abs().max() < 0.501  # rounded, once


@pytest.mark.parametrize("recipe", PUBLISHED, ids=lambda recipe: recipe.name)
def test_a_micro_batch_takes_few_launches(recipe):
    """One crop after another took four or five each: 8,192 for a micro-batch of SwAV."""
    count = sum(crop.count for crop in recipe.method.crops)
    with pretended_gpu() as gpu:
        images = [torch.empty(3, 512, 512, dtype=torch.uint8, device=GPU) for _ in range(recipe.micro_batch)]
        box_BK4 = torch.empty(recipe.micro_batch, count, 4, dtype=torch.long, device=GPU)
        cut = BatchCropper(recipe.method.crops, GPU)
        gpu.launches, gpu.waits = 0, []
        views = cut(images, box_BK4)
    assert [view.shape[-1] for view in views] == [crop.size for crop in each_crop(recipe.method.crops)]
    assert gpu.launches <= 50
    assert not gpu.waits
