"""Order and partition of an epoch: a permutation of the shards, cut into streams, each shuffled in a buffer."""

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

# First word of a generator's seed, so that no two uses share their random numbers.
SHARD_ORDER, BUFFER, CROPS = range(3)


@dataclass(frozen=True)
class EpochPartition:
    """Division of an epoch among processes; a position is valid only within one division."""

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
    """Position in the data: completed epochs, and batches (of each rank) of the current epoch."""

    epoch: int = 0
    batch: int = 0

    @classmethod
    def after(cls, batches: int, an_epoch: int) -> "Position":
        """Return the position after `batches`, with `an_epoch` of them in an epoch."""
        return cls(*divmod(batches, an_epoch))


@dataclass(frozen=True)
class ShardSlice:
    """Consecutive images of one shard."""

    shard: int
    first: int
    last: int


def epoch_segments(counts: list[int], seed: int, epoch: int, first: int, last: int) -> list[ShardSlice]:
    """Divide the part `first` to `last` (exclusive) of an epoch's sequence into segments of shards.

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
            segments.append(ShardSlice(int(order[at]), int(low), int(high)))
        at += 1
    return segments


def buffered_order(length: int, buffer: int, random: np.random.Generator) -> list[int]:
    """Compute the order in which a shuffle buffer emits 0..length-1 when they are read in turn."""
    held: list[int] = list(range(min(buffer, length)))
    order = []
    for position in range(len(held), length):
        slot = int(random.integers(len(held)))
        order.append(held[slot])
        held[slot] = position
    random.shuffle(held)
    return order + held
