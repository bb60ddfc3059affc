"""An endless, seeded stream of augmented tiles: the n-th sample of a run is the same whoever loads it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from finetune.datasets.dataset import Tile
from finetune.training.augment import AugmentConfig, ReachingAugment, augment, mix
from finetune.training.objective import Targets
from shared.model.image_tensors import to_image
from shared.training.batch_workers import BatchWorkers
from shared.training.distributed import World


class Batch(NamedTuple):
    """Images as uint8 (B, 3, H, W), or (B, K, 3, H, W) with K > 1 views of each, with the cells of each."""

    image_BCHW: Tensor
    targets: list[Targets]

    def parts(self, count: int) -> list["Batch"]:
        """Divide the batch into `count` equal parts."""
        size = len(self.targets) // count
        images = self.image_BCHW.split(size)
        return [Batch(image, self.targets[i * size : (i + 1) * size]) for i, image in enumerate(images)]

    def to(self, device: torch.device) -> "Batch":
        """Move the batch to a device."""
        targets = [Targets(*(tensor.to(device, non_blocking=True) for tensor in each)) for each in self.targets]
        return Batch(self.image_BCHW.to(device, non_blocking=True), targets)


class TileStream(Dataset[tuple[np.ndarray, np.ndarray, np.ndarray]]):
    """Position n of the stream: tile n of a sequence of permutations, augmented by a generator of (seed, n).

    A sample is K images (K, H, W, 3), the annotated one last, with the points and labels of its cells.
    """

    def __init__(
        self, tiles: Sequence[Tile], config: AugmentConfig, seed: int, views: int = 1, reach: float = 0.0
    ) -> None:
        self.tiles = tiles
        self.config = ReachingAugment(**vars(config), reach=reach) if reach else config
        self.seed = seed
        self.views = views

    def __getitem__(self, position: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        epoch, place = divmod(position, len(self.tiles))
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.tiles))
        random = np.random.default_rng([self.seed, 1, position])
        sample = self._augmented(self.tiles[order[place]], random)
        if self.views == 1 and self.config.mix and random.random() < self.config.mix:
            sample = mix(
                sample, self._augmented(self.tiles[int(random.integers(len(self.tiles)))], random), random
            )
        return sample

    def _augmented(self, tile: Tile, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return augment(self.config, tile.read_views(self.views), tile.points_N2, tile.labels_N, random)


def tile_batches(stream: TileStream, batch_size: int, steps: range, world: World, workers: int) -> BatchWorkers:
    """Load a `Batch` a step; the global batch is dealt out to the ranks, so any number of them sees the same.

    Args:
        stream: The samples.
        batch_size: Global batch, a multiple of the number of ranks.
        steps: The steps to load; step s holds positions s * batch_size and following.
        world: This process among the ranks.
        workers: Loader processes of this rank.
    """
    positions = range(steps.start * batch_size + world.rank, steps.stop * batch_size, world.size)
    share = batch_size // world.size
    return BatchWorkers(
        stream,
        workers,
        world.device,
        share * stream.views * 3 * stream.config.crop**2,
        "--workers",
        batch_size=share,
        sampler=positions,
        collate_fn=_collate,
    )


def _collate(samples: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Batch:
    image_BCHW = torch.stack([to_image(views_KHWC) for views_KHWC, _, _ in samples])
    return Batch(
        image_BCHW, [Targets(torch.from_numpy(xy), torch.from_numpy(labels)) for _, xy, labels in samples]
    )
