"""Pictures that show whether a run works."""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from shared.pictures import contact_sheet
from shared.runs import Run
from shared.seeds import seed_batch
from ssl_pretrain.crops import Crop, cut, decode
from ssl_pretrain.methods import Method
from ssl_pretrain.shards import ShardSet
from ssl_pretrain.tar_images import read_images
from ssl_pretrain.views import Views

SAMPLES = 8
# Side of an image in the sheet of augmentations.
SHEET_SIDE = 160


class Monitor:
    """Draws a method's pictures of the same patches, with the same random numbers, every time."""

    def __init__(self, run: Run, shard_set: ShardSet, views: Views, crop: Crop) -> None:
        """Choose the patches, shown as `crop` would; only the first rank draws."""
        self.run, self.shard_set, self.views = run, shard_set, views
        if run.writes:
            patches_BCHW = sample_patches(shard_set, crop, SAMPLES).to(views.mean.device)
            self.view_BCHW = views.normalise(patches_BCHW)

    def draw(self, method: Method, step: int) -> None:
        """Write `pictures/NAME-STEP.png` for every picture the method has to show; first of all, of its views."""
        if not self.run.writes:
            return
        seed_batch(0, 0, 0)
        if step == 0:
            self.run.picture(f"augmented-{step:09d}", augmentation_sheet(self.shard_set, self.views, SAMPLES))
        method.eval()
        for name, image in method.show([self.view_BCHW], self.views.restore).items():
            self.run.picture(f"{name}-{step:09d}", image)
        method.train()


def augmentation_sheet(shard_set: ShardSet, views: Views, count: int) -> Image.Image:
    """Rows of a patch and all its views, as a step would see them; `count` patches from all over the shards."""
    patches = _spread(shard_set, count)
    random = np.random.default_rng(0)
    samples = [cut(patch_CHW, views.crops, random) for patch_CHW in patches]
    crops = [torch.stack(same).to(views.mean.device) for same in zip(*samples, strict=True)]
    shown = [views.restore(view_BCHW).cpu() for view_BCHW in views(crops)]
    rows = [[patch_CHW, *(view_BCHW[row] for view_BCHW in shown)] for row, patch_CHW in enumerate(patches)]
    sides = [view_BCHW.shape[-1] for view_BCHW in shown]
    captions = ["patch", *(f"view {number}: {side} px" for number, side in enumerate(sides, start=1))]
    images = [Image.fromarray(image_CHW.permute(1, 2, 0).numpy()) for row in rows for image_CHW in row]
    title = "patches and their views, as the networks see them"
    return contact_sheet(images, len(captions), captions * count, SHEET_SIDE, title)


def sample_patches(shard_set: ShardSet, crop: Crop, count: int) -> Tensor:
    """Centres (count, 3, size, size) in uint8, as large as a crop can be, of patches from all over the shards."""
    return torch.stack([_centre(image_CHW, crop) for image_CHW in _spread(shard_set, count)])


def _spread(shard_set: ShardSet, count: int) -> list[Tensor]:
    """Images (3, H, W) in uint8 from all over the shards."""
    return [_image_at(shard_set, number * shard_set.samples // count) for number in range(count)]


def _centre(image_CHW: Tensor, crop: Crop) -> Tensor:
    side = round(math.sqrt(crop.scale[1]) * min(image_CHW.shape[-2:]))
    mode = InterpolationMode(crop.interpolation)
    centre_CHW = TF.center_crop(image_CHW, [side, side])
    return TF.resize(centre_CHW, [crop.size, crop.size], interpolation=mode, antialias=True)


def _image_at(shard_set: ShardSet, place: int) -> Tensor:
    """The image at a place in the sequence of all shards."""
    shard = 0
    while place >= shard_set.counts[shard]:
        place -= shard_set.counts[shard]
        shard += 1
    path = shard_set.path(shard)
    _, image = next(read_images(path, place, place + 1, shard_set.counts[shard]))
    return decode(image, path)
