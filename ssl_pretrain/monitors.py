"""Pictures that show whether a run works."""

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from shared.runs import Run
from ssl_pretrain.crops import decode
from ssl_pretrain.methods import Method
from ssl_pretrain.shards import ShardSet, read_images
from ssl_pretrain.state import seed_batch
from ssl_pretrain.views import Views

SAMPLES = 8


class Monitor:
    """Draws a method's pictures of the same patches, with the same random numbers, every time."""

    def __init__(self, run: Run, shard_set: ShardSet, views: Views, size: int) -> None:
        """Choose the patches, resized to `size` px; only the first rank draws."""
        self.run, self.views = run, views
        if run.writes:
            patches_BCHW = sample_patches(shard_set, size, SAMPLES).to(views.mean.device)
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


def sample_patches(shard_set: ShardSet, size: int, count: int) -> Tensor:
    """Whole patches (count, 3, size, size) in uint8 from evenly spaced places of the shards."""
    places = [number * shard_set.samples // count for number in range(count)]
    mode = InterpolationMode.BICUBIC
    patches = [decode(_jpeg_at(shard_set, place)) for place in places]
    return torch.stack([TF.resize(p, [size, size], interpolation=mode, antialias=True) for p in patches])


def _jpeg_at(shard_set: ShardSet, place: int) -> bytes:
    """The image at a place in the sequence of all shards."""
    shard = 0
    while place >= shard_set.counts[shard]:
        place -= shard_set.counts[shard]
        shard += 1
    images = read_images(shard_set.path(shard), place, place + 1, shard_set.counts[shard])
    return next(images)[1].jpeg
