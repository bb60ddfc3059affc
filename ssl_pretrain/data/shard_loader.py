"""Load batches of uint8 crops from shards, in an order that is random, exact and resumable anywhere.

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
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from tqdm import tqdm

from shared.cli import Range
from shared.errors import UserError
from shared.shards.tar_reader import EncodedImage, read_images
from shared.signals import StopSignal
from shared.training.batch_workers import BatchWorkers
from shared.training.distributed import World
from shared.training.rank_errors import AllRanksError, texts_of_ranks
from ssl_pretrain.data.crops import Crop, CropBatch, cut_batch, decode_all
from ssl_pretrain.data.epoch_order import (
    BUFFER,
    CROPS,
    SHARD_ORDER,
    EpochPartition,
    Position,
    ShardSlice,
    buffered_order,
    epoch_segments,
)
from ssl_pretrain.data.gpu_decoding import Drawn, GpuDecoder, Packed, pack
from ssl_pretrain.data.shard_set import ShardSet

# Default maximum of a rank: more than the 4-5 that MAE on an A100 needs (estimated).
MOST_WORKERS = 12
# Share of the patches that may be replaced because they cannot be decoded.
MOST_UNDECODABLE = 0.01
# Of a rank between two checkpoints: longer lists of names are exchanged in pieces.
MOST_NAMES = 1000


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """Options of loading shards."""

    workers: Annotated[int | None, Range(0)] = None
    """Loader processes a rank; None: one CPU core of the rank's is kept for the training, at most 12."""
    buffer: Annotated[int, Range(1)] = 2000
    """Images whose raw bytes a worker holds to shuffle them (about 60 kB each)."""
    batches_ahead: Annotated[int, Range(1)] = 2
    """Batches that each worker prepares in advance."""
    decode: Literal["cpu", "gpu"] = "cpu"
    """Decode and crop in the loader workers (cpu) or on the training GPU, for nodes with few cores. Pixels
    differ by a grey level here and there."""

    def resolved_workers(self) -> int:
        """`workers`, or what this rank's CPU cores allow."""
        return _spare_cores() if self.workers is None else self.workers

    def processes(self, layout: EpochPartition) -> int:
        """Loader processes: one for each run of the layout, or none, when this process reads them in turn."""
        return layout.workers if self.resolved_workers() else 0


class ShardStream(IterableDataset[Any]):
    """The batches of one rank, without end, epoch after epoch; in a loader worker, this worker's part of them.

    Batch number n of a rank (counted from the beginning of training) comes from run n mod `workers`.
    Where a shard is damaged, the stream ends with the sentence for the user, because an exception would lose it on
    its way out of a worker.
    """

    def __init__(  # noqa: PLR0913
        self,
        shard_set: ShardSet,
        crops: tuple[Crop, ...],
        layout: EpochPartition,
        rank: int,
        seed: int,
        start: Position,
        decode_later: bool = False,
    ) -> None:
        self.shard_set, self.crops, self.layout = shard_set, crops, layout
        self.decode_later = decode_later
        self.rank, self.seed = rank, seed
        self.an_epoch = layout.batches(shard_set.samples)
        self.first = start.epoch * self.an_epoch + start.batch

    def __iter__(self) -> Iterator[CropBatch | Packed | str]:
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

    def _batches_of_run(self, run: int) -> Iterator[CropBatch | Packed]:
        for epoch in itertools.count(self.first // self.an_epoch):
            images = self._images_of_epoch(epoch, run)
            while batch := list(itertools.islice(images, self.layout.batch)):
                yield pack(batch, self.crops) if self.decode_later else self._crops_of(batch)

    def _crops_of(self, batch: list[Drawn]) -> CropBatch:
        undecodable: list[str] = []
        images = decode_all((drawn.image for drawn in batch), (drawn.shard for drawn in batch), undecodable)
        return CropBatch(cut_batch(images, [drawn.seed for drawn in batch], self.crops), undecodable)

    def _images_of_epoch(self, epoch: int, run: int) -> Iterator[Drawn]:
        """Yield the images of a run, after those that were seen before the start."""
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
            yield Drawn(image, self.shard_set.path(shard), (CROPS, self.seed, epoch, begin + place))

    def _begin_of_rank(self, epoch: int) -> int:
        """Begin of the rank's share of the sequence; the samples left out are before and after all shares."""
        share = self.an_epoch * self.layout.batch
        left_out = self.shard_set.samples - share * self.layout.ranks
        offset = np.random.default_rng((SHARD_ORDER, self.seed, epoch, 1)).integers(left_out + 1)
        return int(offset) + self.rank * share

    def _in_order(
        self, segments: list[ShardSlice], order: list[int], seen: int
    ) -> Iterator[tuple[int, int, EncodedImage]]:
        """Place in the run, shard and image, in `order`, without the first `seen` of them."""
        reader = self._read(segments, set(order[:seen]))
        held: dict[int, tuple[int, EncodedImage]] = {}
        for place in order[seen:]:
            while place not in held:
                found, shard, image = next(reader)
                held[found] = shard, image
            yield place, *held.pop(place)

    def _read(self, segments: list[ShardSlice], seen: set[int]) -> Iterator[tuple[int, int, EncodedImage]]:
        """Place in the run, shard and image, as they lie on the disk, without those in `seen`."""
        begin = 0
        for segment in segments:
            shift = begin - segment.first  # number in the shard -> place in the run
            passed = {place - shift for place in seen}
            path, samples = self.shard_set.path(segment.shard), self.shard_set.counts[segment.shard]
            for number, image in read_images(path, segment.first, segment.last, samples, passed):
                yield number + shift, segment.shard, image
            begin += segment.last - segment.first


class ShardLoader:
    """Batches for one rank, from worker processes, in page-locked memory where there is a GPU."""

    def __init__(  # noqa: PLR0913
        self,
        shard_set: ShardSet,
        crops: tuple[Crop, ...],
        config: LoaderConfig,
        layout: EpochPartition,
        world: World,
        seed: int,
        start: Position,
        undecodable: frozenset[str] = frozenset(),
    ) -> None:
        """Start the workers.

        Args:
            shard_set: The shards.
            crops: What is cut from each image.
            config: How the shards are read.
            layout: How an epoch is divided.
            world: This process among the ranks.
            seed: Random seed of the run.
            start: Where to go on.
            undecodable: Names of the images that earlier attempts replaced.

        Raises:
            UserError: there are fewer images than one batch of all ranks needs.
        """
        check_batch(shard_set, layout.batch * layout.ranks)
        self.layout, self.an_epoch = layout, layout.batches(shard_set.samples)
        self.undecodable = undecodable
        self._found: set[str] = set()  # on this rank, since they were last exchanged
        self._taken = start.epoch * self.an_epoch + start.batch
        self._shard_set = shard_set
        later = config.decode == "gpu"
        self._decode = GpuDecoder(crops, world.device) if later else None
        self._batches = BatchWorkers(
            ShardStream(shard_set, crops, layout, world.rank, seed, start, later),
            config.processes(layout),
            world.device,
            layout.batch * (shard_set.mean_bytes if later else sum(3 * c.count * c.size**2 for c in crops)),
            "--loader.workers or --loader.buffer",
            prefetch_factor=config.batches_ahead,
            batch_size=None,
        )

    @property
    def position(self) -> Position:
        """Position after the batches that have been taken."""
        return Position.after(self._taken, self.an_epoch)

    def take(self, stop: StopSignal | None = None) -> list[Tensor] | None:
        """Take the next batch: one uint8 tensor (batch, 3, size, size) for each crop.

        None if a signal tells to stop while the workers deliver none.

        Raises:
            UserError: a shard is damaged, or too many images cannot be decoded.
        """
        batch = self._batches.take(stop)
        if batch is None:
            return None
        if isinstance(batch, str):
            raise UserError(batch)
        self._taken += 1
        if self._decode:
            batch = self._decode(batch)
        for name in batch.undecodable:
            self._report(name)
        crops: list[Tensor] = batch.crops
        return crops

    def exchange_undecodable(self, world: World) -> None:
        """Add the images that any rank could not decode to `undecodable`; called on every rank.

        Raises:
            AllRanksError: they are too many.
        """
        mine = sorted(self._found)[:MOST_NAMES]
        self._found.difference_update(mine)
        lists = texts_of_ranks("\n".join(mine), world)
        self.undecodable |= {name for text in lists for name in text.splitlines()}
        if sentence := self._too_many(self.undecodable):
            raise AllRanksError(sentence)

    def _report(self, name: str) -> None:
        """Log an image that was replaced, once."""
        if name not in self.undecodable and name not in self._found:
            tqdm.write(f"warning: {name} cannot be decoded; its neighbour is taken in its place", file=sys.stderr)
            self._found.add(name)
            if sentence := self._too_many(self.undecodable | self._found):
                raise UserError(sentence)

    def _too_many(self, names: frozenset[str]) -> str:
        """Return the error message for so many undecodable images; empty if they are few enough."""
        if len(names) <= max(1, MOST_UNDECODABLE * self._shard_set.samples):
            return ""
        return (
            f"{len(names)} images in {self._shard_set.folder} cannot be decoded, more than "
            f"{MOST_UNDECODABLE:.0%} of all (e.g. {min(names)}); repair or replace these shards"
        )

    def __enter__(self) -> "ShardLoader":
        return self

    def __exit__(self, *error: object) -> None:
        """End the workers.

        Raises:
            UserError: the error that ends the block is torch's for a worker that was killed or gave nothing.
        """
        self._batches.__exit__(*error)


def check_batch(shard_set: ShardSet, batch: int) -> None:
    """Refuse shards with less than one batch of all ranks, with a UserError."""
    if shard_set.samples < batch:
        raise UserError(
            f"{shard_set.folder} holds {shard_set.samples} patches, fewer than one batch of {batch}; "
            "harvest more slides or lower --batch-size"
        )


def _spare_cores() -> int:
    """Count this rank's CPU cores but one, 0 to `MOST_WORKERS`."""
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(max(cores - 1, 0), MOST_WORKERS)
