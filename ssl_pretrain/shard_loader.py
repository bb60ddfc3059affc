"""From shards to batches of uint8 crops, in an order that is random, exact and can be resumed anywhere.

An epoch is a permutation of the shards drawn from (seed, epoch). Their images in that order form one
sequence, which is cut into equal runs, one for each rank, and each rank's into one for each of its workers.
A worker reads its run from the disk in order, shuffles raw bytes in a buffer, then decodes and crops.
Nothing is repeated: in an epoch no image is seen twice by anybody, every rank gets the same number of
batches, and less than one global batch is left out, a different part each time.

Every random number comes from (seed, epoch, place in the epoch), so the number of batches taken so far is
the whole state: a resumed loader reads on with the next unseen image and decodes none of the earlier ones.
"""

import itertools
import os
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from shared.command_line import UserError
from shared.distributed import World
from shared.stop_signal import ignore_signals_in_worker
from ssl_pretrain.crops import Crop, cut, decode
from ssl_pretrain.shards import Image, ShardSet, read_images

# First word of a generator's seed, so that no two uses share their random numbers.
SHARD_ORDER, BUFFER, CROPS = range(3)


@dataclass(frozen=True, kw_only=True)
class Config:
    """How the shards are read."""

    workers: int | None = None
    """Loader processes a rank; None: one CPU core of the rank's is kept for the training, at most 12."""
    buffer: int = 2000
    """Images whose raw bytes a worker holds to shuffle them (about 60 kB each)."""
    batches_ahead: int = 2
    """Batches that each worker prepares in advance."""

    def resolved_workers(self) -> int:
        """`workers`, or what this rank's CPU cores allow."""
        return _spare_cores() if self.workers is None else self.workers


@dataclass(frozen=True)
class Layout:
    """How an epoch is divided among processes; a position means something only within one layout."""

    batch: int
    """Images in a batch of one rank."""
    ranks: int
    workers: int
    """Runs that each rank's share is cut into."""
    buffer: int
    """Images in each run's shuffle buffer."""

    def batches(self, samples: int) -> int:
        """Batches that every rank gets in an epoch."""
        return samples // (self.batch * self.ranks)


@dataclass(frozen=True)
class Position:
    """What has been read: whole epochs, and batches (of each rank) of the epoch under way."""

    epoch: int = 0
    batch: int = 0

    @classmethod
    def after(cls, batches: int, an_epoch: int) -> "Position":
        """The position after `batches`, with `an_epoch` of them in an epoch."""
        return cls(*divmod(batches, an_epoch))


@dataclass(frozen=True)
class Segment:
    """Consecutive images of one shard."""

    shard: int
    first: int
    last: int


def epoch_segments(counts: list[int], seed: int, epoch: int, first: int, last: int) -> list[Segment]:
    """The part `first` to `last` (exclusive) of an epoch's sequence, as segments of shards.

    Args:
        counts: Images of each shard.
        seed: Of the run.
        epoch: From 0.
        first: Place in the sequence of all images.
        last: End of the part.
    """
    order = np.random.default_rng((SHARD_ORDER, seed, epoch)).permutation(len(counts))
    starts = np.concatenate([[0], np.cumsum([counts[shard] for shard in order])])
    segments = []
    at = bisect_right(starts, first) - 1
    while at < len(order) and starts[at] < last:
        low, high = max(first, starts[at]) - starts[at], min(last, starts[at + 1]) - starts[at]
        if low < high:
            segments.append(Segment(int(order[at]), int(low), int(high)))
        at += 1
    return segments


def buffered_order(length: int, buffer: int, random: np.random.Generator) -> list[int]:
    """The order in which a shuffle buffer emits 0..length-1 when they are read in turn."""
    held: list[int] = list(range(min(buffer, length)))
    order = []
    for position in range(len(held), length):
        slot = int(random.integers(len(held)))
        order.append(held[slot])
        held[slot] = position
    random.shuffle(held)
    return order + held


class ShardStream(IterableDataset):
    """The batches of one rank, without end, epoch after epoch; in a loader worker, this worker's part of them.

    Batch number n of a rank (counted from the beginning of training) comes from run n mod `workers`.
    A batch is a list of uint8 tensors (batch, 3, size, size), one for each crop. Where a shard is damaged
    the stream ends with the sentence for the user instead, because an exception would lose it on its way
    out of a worker.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        crops: tuple[Crop, ...],
        layout: Layout,
        rank: int,
        seed: int,
        start: Position,
    ) -> None:
        self.shard_set, self.crops, self.layout = shard_set, crops, layout
        self.rank, self.seed = rank, seed
        self.an_epoch = layout.batches(shard_set.samples)
        self.first = start.epoch * self.an_epoch + start.batch

    def __iter__(self) -> Iterator[list[Tensor] | str]:
        """Batches, without end."""
        worker = get_worker_info()
        run = (self.first + (worker.id if worker else 0)) % self.layout.workers
        runs = itertools.repeat(run) if worker else itertools.count(run)
        streams = {r: self._batches_of_run(r) for r in range(self.layout.workers)}
        try:
            for r in runs:
                yield next(streams[r % self.layout.workers])
        except UserError as error:
            yield str(error)

    def _batches_of_run(self, run: int) -> Iterator[list[Tensor]]:
        for epoch in itertools.count(self.first // self.an_epoch):
            images = self._crops_of_epoch(epoch, run)
            while batch := list(itertools.islice(images, self.layout.batch)):
                yield [torch.stack(views) for views in zip(*batch, strict=True)]

    def _crops_of_epoch(self, epoch: int, run: int) -> Iterator[list[Tensor]]:
        """The crops of each image of a run, after those that were seen before the start."""
        before = epoch * self.an_epoch
        numbers = [before + n for n in range(self.an_epoch)]
        length_of = [sum(n % self.layout.workers == r for n in numbers) for r in range(self.layout.workers)]
        seen = sum(n % self.layout.workers == run and n < self.first for n in numbers)
        size = self.layout.batch
        begin = self._begin_of_rank(epoch) + sum(length_of[:run]) * size
        segments = epoch_segments(self.shard_set.counts, self.seed, epoch, begin, begin + length_of[run] * size)
        random = np.random.default_rng((BUFFER, self.seed, epoch, begin))
        order = buffered_order(length_of[run] * size, self.layout.buffer, random)
        for place, shard, image in self._in_order(segments, order, seen * size):
            yield self._cut(epoch, begin + place, shard, image)

    def _begin_of_rank(self, epoch: int) -> int:
        """Where the rank's share of the sequence begins; what is left out lies before and behind all shares."""
        share = self.an_epoch * self.layout.batch
        left_out = self.shard_set.samples - share * self.layout.ranks
        offset = np.random.default_rng((SHARD_ORDER, self.seed, epoch, 1)).integers(left_out + 1)
        return int(offset) + self.rank * share

    def _in_order(self, segments: list[Segment], order: list[int], seen: int) -> Iterator[tuple[int, int, Image]]:
        """Place in the run, shard and image, in `order`, without the first `seen` of them."""
        reader = self._read(segments, set(order[:seen]))
        held: dict[int, tuple[int, Image]] = {}
        for place in order[seen:]:
            while place not in held:
                found, shard, image = next(reader)
                held[found] = shard, image
            yield place, *held.pop(place)

    def _read(self, segments: list[Segment], seen: set[int]) -> Iterator[tuple[int, int, Image]]:
        """Place in the run, shard and image, as they lie on the disk, without those in `seen`."""
        begin = 0
        for segment in segments:
            shift = begin - segment.first  # number in the shard -> place in the run
            passed = {place - shift for place in seen}
            path, samples = self.shard_set.path(segment.shard), self.shard_set.counts[segment.shard]
            for number, image in read_images(path, segment.first, segment.last, samples, passed):
                yield number + shift, segment.shard, image
            begin += segment.last - segment.first

    def _cut(self, epoch: int, place: int, shard: int, image: Image) -> list[Tensor]:
        try:
            image_CHW = decode(image.jpeg)
        except RuntimeError as error:
            path = self.shard_set.path(shard)
            raise UserError(f"{image.key} in the shard {path} is no JPEG that can be read ({error})") from error
        return cut(image_CHW, self.crops, np.random.default_rng((CROPS, self.seed, epoch, place)))


class ShardLoader:
    """Batches for one rank, from worker processes, in page-locked memory where there is a GPU."""

    def __init__(
        self,
        shard_set: ShardSet,
        crops: tuple[Crop, ...],
        config: Config,
        layout: Layout,
        world: World,
        seed: int,
        start: Position,
    ) -> None:
        """Start the workers.

        Raises:
            UserError: there are fewer images than one batch of all ranks needs.
        """
        if not layout.batches(shard_set.samples):
            raise UserError(
                f"{shard_set.folder} holds {shard_set.samples} patches, fewer than one batch of "
                f"{layout.batch * layout.ranks}; harvest more slides or lower --batch-size"
            )
        self.layout, self.an_epoch = layout, layout.batches(shard_set.samples)
        self._taken = start.epoch * self.an_epoch + start.batch
        stream = ShardStream(shard_set, crops, layout, world.rank, seed, start)
        self._batches = iter(_loader(stream, config, world.device))

    @property
    def position(self) -> Position:
        """Up to where batches have been taken."""
        return Position.after(self._taken, self.an_epoch)

    def take(self) -> list[Tensor]:
        """The next batch: one uint8 tensor (batch, 3, size, size) for each crop.

        Raises:
            UserError: a shard is damaged.
        """
        batch = next(self._batches)
        if isinstance(batch, str):
            raise UserError(batch)
        self._taken += 1
        return batch

    def __enter__(self) -> "ShardLoader":
        return self

    def __exit__(self, *_: object) -> None:
        """End the workers; left to the interpreter's exit they would not, as they ignore its TERM."""
        del self._batches


def _loader(stream: ShardStream, config: Config, device: torch.device) -> DataLoader[Any]:
    workers = config.resolved_workers()
    return DataLoader(
        stream,
        batch_size=None,
        num_workers=workers,
        worker_init_fn=ignore_signals_in_worker,
        prefetch_factor=config.batches_ahead if workers else None,
        pin_memory=device.type == "cuda",
    )


def _spare_cores() -> int:
    """This rank's CPU cores but one, 0 to 12: more than the 4-5 that MAE on an A100 needs (measured)."""
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(max(cores - 1, 0), 12)
