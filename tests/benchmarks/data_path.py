"""`python -m tests.benchmarks.data_path [SHARDS]`: what a loader worker does, beside PIL and lightly's transforms.

Both begin with the same JPEG bytes in memory and end with batches of all views of a recipe. lightly's transforms,
with the official numbers, do everything in the worker; ours leaves all but decoding, cropping and resizing to the
training device. What that would cost on a CPU stands beside it. All on one thread, in seconds of processor time,
so that a busy machine matters little; the best of several rounds, in which all take turns.
"""

import io
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lightly.transforms import DINOTransform, MAETransform, MoCoV2Transform, SwaVTransform
from PIL import Image as Picture
from torch import Tensor

from shared.shards.tar_reader import EncodedImage, read_images
from ssl_pretrain.data.crops import cut, decode
from ssl_pretrain.data.shard_set import open_shards
from ssl_pretrain.data.views import Views
from ssl_pretrain.recipes import RECIPES
from tests.benchmarks.measuring import write

OUT = Path(__file__).with_suffix(".csv")
BATCH, ROUNDS = 32, 7
# Of lightly's, what differs from the official recipe is set right. The ratio is our goal.
THEIRS: dict[str, tuple[Callable, float]] = {
    "mae_vitb": (MAETransform(), 2),
    "moco_v2_resnet50": (MoCoV2Transform(), 5),
    "swav_resnet50": (SwaVTransform(), 5),
    "dino_resnet50": (
        DINOTransform(n_local_views=8, global_crop_scale=(0.14, 1.0), local_crop_scale=(0.05, 0.14)),
        6,
    ),
    "dino_vitb": (DINOTransform(n_local_views=8), 6),
}


def main() -> None:
    """Time every recipe with a batch of patches from all over the shards."""
    torch.set_num_threads(1)
    images = patches(Path(sys.argv[1] if len(sys.argv) > 1 else "demo/shards"))
    write(OUT, [compare(name, images) for name in THEIRS])


def compare(name: str, images: list[EncodedImage]) -> dict[str, object]:
    """One recipe."""
    recipe = RECIPES[name]
    crops = recipe.method.crops
    transform, goal = THEIRS[name]
    random = np.random.default_rng(0)
    views = Views(recipe.views, crops, (0.5,) * 3, (0.25,) * 3)

    def ours() -> list[Tensor]:
        return stacked([cut(decode(image), crops, random) for image in images])

    def theirs() -> list[Tensor]:
        return stacked([transform(Picture.open(io.BytesIO(image.content)).convert("RGB")) for image in images])

    batch = ours()
    assert [view.shape for view in batch] == [view.shape for view in theirs()]
    seconds = in_turn([ours, theirs, lambda: views(batch)])
    per_image = [each / len(images) for each in seconds]
    return {
        "recipe": name,
        "views": len(batch),
        "jpeg_kB": round(np.mean([len(image.content) for image in images]) / 1000),
        "ours_images_per_s": round(1 / per_image[0]),
        "lightly_images_per_s": round(1 / per_image[1]),
        "ratio": round(per_image[1] / per_image[0], 1),
        "goal": goal,
        "device_part_on_this_cpu_ms_per_view": round(1000 * per_image[2] / len(batch), 2),
        "ratio_with_it": round(per_image[1] / (per_image[0] + per_image[2]), 2),
    }


def in_turn(works: list[Callable[[], object]]) -> list[float]:
    """Fewest seconds of processor time of each."""
    rounds = [[processor_seconds(work) for work in works] for _ in range(ROUNDS)]
    return [min(each) for each in zip(*rounds, strict=True)]


def processor_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def patches(folder: Path) -> list[EncodedImage]:
    """Patches from all over the shards, as many as a batch has."""
    shard_set = open_shards(folder)
    step = max(shard_set.samples // BATCH, 1)
    everything = (
        image
        for shard, count in enumerate(shard_set.counts)
        for _, image in read_images(shard_set.path(shard), 0, count, count)
    )
    return list(itertools.islice(everything, 0, step * BATCH, step))


def stacked(samples: list[list[Tensor]]) -> list[Tensor]:
    """Return the batch of each view."""
    return [torch.stack(views) for views in zip(*samples, strict=True)]


if __name__ == "__main__":
    main()
