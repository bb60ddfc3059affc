"""Pictures that show whether a run works."""

import math

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from shared.runs import Run
from shared.seeds import seed_batch
from ssl_pretrain.crops import Crop, decode
from ssl_pretrain.methods import Method
from ssl_pretrain.shards import ShardSet
from ssl_pretrain.tar_images import read_images
from ssl_pretrain.views import Views

SAMPLES = 8


class Monitor:
    """Draws a method's pictures of the same patches, with the same random numbers, every time."""

    def __init__(self, run: Run, shard_set: ShardSet, views: Views, crop: Crop) -> None:
        """Choose the patches, shown as `crop` would; only the first rank draws."""
        self.run, self.views = run, views
        if run.writes:
            patches_BCHW = sample_patches(shard_set, crop, SAMPLES).to(views.mean.device)
            self.view_BCHW = views.normalise(patches_BCHW)

    def draw(self, method: Method, step: int) -> None:
        """Write `pictures/NAME-STEP.png` for every picture the method has to show."""
        if not self.run.writes:
            return
        seed_batch(0, 0, 0)
        method.eval()
        for name, image in method.show([self.view_BCHW], self.views.restore).items():
            self.run.picture(f"{name}-{step:09d}", image)
        method.train()


def sample_patches(shard_set: ShardSet, crop: Crop, count: int) -> Tensor:
    """Centres (count, 3, size, size) in uint8, as large as a crop can be, of patches from all over the shards."""
    places = [number * shard_set.samples // count for number in range(count)]
    return torch.stack([_centre(_image_at(shard_set, place), crop) for place in places])


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
