"""The order of samples and the random numbers that go with each.

Both depend on (seed, epoch, sample index) alone, so the number of workers, the number of devices and a restart change
no sample.
"""

import heapq
import math
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from torch.utils.data import DistributedSampler

from crossvit.errors import UserError


class SampleKey(NamedTuple):
    """What the sampler hands to the dataset: which sample, in which epoch."""

    epoch: int
    index: int


class Draw(IntEnum):
    """One independent stream of random numbers for each use, so switching one on or off leaves the others as they
    were.
    """

    ORDER = 0
    AUGMENTATION = 1
    CAPTION = 2
    NEGATIVES = 3
    REPLACEMENT = 4
    EXCHANGE = 5
    PACKING = 6
    FALSE_PAIRS = 7


def sample_rng(seed: int, key: SampleKey, draw: Draw) -> np.random.Generator:
    """The random numbers of one sample in one epoch for one use."""
    return np.random.default_rng((seed, draw, key.epoch, key.index))


class EpochSampler(DistributedSampler):
    """One global order for each epoch, dealt to the ranks in turns.

    The order is a permutation of (seed, epoch). It is cut into global batches of `batch_size`; rank r of W takes rows
    r, r + W, r + 2W, ... of each. In training (`drop_last`) the last incomplete global batch is left out, so all ranks
    take the same number of steps. In evaluation nothing is padded, repeated or dropped: ranks may differ by one row.

    It is a DistributedSampler in type so that Lightning leaves it as it is. Nothing of that class's behaviour is kept.

    Args:
        size: number of samples.
        batch_size: rows of a global batch; a multiple of `world_size`.
        seed: seed of the order.
        rank: this process.
        world_size: number of processes.
        shuffle: permute, or keep the dataset's order.
        drop_last: leave the last incomplete global batch out.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        drop_last: bool = True,
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(f"batch_size {batch_size} must be a positive multiple of world_size {world_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not one of {world_size}")
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch; a new epoch begins at its first batch."""
        if epoch != self.epoch:
            self.seek(epoch)

    def seek(self, epoch: int, start: int = 0) -> None:
        """Go to an epoch in which `start` global batches are done already."""
        self.epoch = epoch
        self.start = start

    @property
    def num_batches(self) -> int:
        """Global batches of a whole epoch."""
        return self.size // self.batch_size if self.drop_last else math.ceil(self.size / self.batch_size)

    def __len__(self) -> int:
        """Rows of this rank in a whole epoch, `start` not subtracted: progress counts the epoch, not what is left of
        it.
        """
        rows = self.num_batches * self.batch_size if self.drop_last else self.size
        return len(range(self.rank, rows, self.world_size))

    def __iter__(self) -> Iterator[SampleKey]:
        rows = self.num_batches * self.batch_size if self.drop_last else self.size
        mine = self._order()[self.start * self.batch_size + self.rank : rows : self.world_size]
        return self._keys(mine, self.epoch)

    def state_dict(self) -> dict[str, int]:
        """What fixes the order, for comparison on resume."""
        return {"size": self.size, "batch_size": self.batch_size, "seed": self.seed}

    @staticmethod
    def _keys(order: np.ndarray, epoch: int) -> Iterator[SampleKey]:
        return (SampleKey(epoch, int(index)) for index in order)

    def _order(self) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.size)
        return np.random.default_rng((self.seed, Draw.ORDER, self.epoch)).permutation(self.size)


class MixtureSampler(EpochSampler):
    """One global order over several sources, each with its own number of samples in an epoch, which need not be the number it has.

    A source is gone through in one permutation after another, over the borders of epochs: every sample of it comes once before any comes
    again. Keys carry the number of the pass through the source in place of the epoch, so a sample that an epoch holds twice is augmented
    in two ways. Indices count the sources' samples one source after the other.

    Args:
        sizes: number of samples of each source.
        shares: how many of them an epoch takes.
        The others: see EpochSampler.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        shares: Sequence[int],
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(sum(shares), batch_size, seed=seed, rank=rank, world_size=world_size)
        self.sizes = tuple(sizes)
        self.shares = tuple(shares)

    def state_dict(self) -> dict[str, int]:
        sources = zip(self.sizes, self.shares, strict=True)
        return super().state_dict() | {f"source {k}": f"{share} of {size}" for k, (size, share) in enumerate(sources)}

    @staticmethod
    def _keys(order: np.ndarray, epoch: int) -> Iterator[SampleKey]:
        return (SampleKey(int(turn), int(index)) for turn, index in order)

    def _order(self) -> np.ndarray:
        """int64 (size, 2): the pass and the index of each row."""
        starts = np.cumsum([0, *self.sizes])
        rows = [self._rows(k) + np.array([0, starts[k]]) for k in range(len(self.sizes))]
        return np.concatenate(rows)[super()._order()]

    def _rows(self, source: int) -> np.ndarray:
        """int64 (share, 2): the pass and the place in the source of the samples that this epoch takes."""
        size, share = self.sizes[source], self.shares[source]
        places = np.arange(self.epoch * share, (self.epoch + 1) * share)
        rows = np.stack([places // size, places % size], axis=1)
        for turn in np.unique(rows[:, 0]).tolist():
            # counted from 1: seeds that differ by zeros at their end give the same numbers
            permutation = np.random.default_rng((self.seed, Draw.ORDER, turn, source + 1)).permutation(size)
            chosen = rows[:, 0] == turn
            rows[chosen, 1] = permutation[rows[chosen, 1]]
        return rows


class ShardSampler(EpochSampler):
    """An order that goes shard by shard, for shards that come from elsewhere: each is needed for a while and then no more.

    The shards, in an order drawn by (seed, epoch), are dealt to ranks x workers, each to the one that has the fewest samples so far. Each
    goes through its shards one after the other, the samples of a shard in a drawn order, and every sample moves by less than `buffer`
    places. A batch is one worker's, as a DataLoader hands them out in turns. What some have more samples than others goes from the end
    of these to the end of those, so an epoch holds every sample once and all ranks take the same number of steps.

    Args:
        sizes: number of samples of each shard.
        workers: worker processes of each rank; 0 counts as 1.
        buffer: samples; 0: one shard strictly after the other.
        The others: see EpochSampler.

    Raises:
        UserError: fewer shards than ranks x workers.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        batch_size: int,
        *,
        workers: int,
        buffer: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(sum(sizes), batch_size, seed=seed, rank=rank, world_size=world_size)
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.workers = max(1, workers)
        self.buffer = buffer
        self.readers = world_size * self.workers
        if len(self.sizes) < self.readers:
            raise UserError(
                f"{len(self.sizes)} shards are too few for {world_size} devices x {self.workers} workers = {self.readers}: "
                "lower data.num_workers, or write smaller shards (crossvit data pack ... samples_per_shard=...)."
            )

    def state_dict(self) -> dict[str, int]:
        others = {"shards": len(self.sizes), "devices x workers": self.readers, "shuffle_buffer": self.buffer}
        return super().state_dict() | others

    def dealt(self, epoch: int) -> list[list[int]]:
        """The shards of each reader in turn; reader `rank * workers + worker`."""
        order = np.random.default_rng((self.seed, Draw.ORDER, epoch)).permutation(len(self.sizes))
        hands: list[list[int]] = [[] for _ in range(self.readers)]
        loads = [(0, reader) for reader in range(self.readers)]
        for shard in order.tolist():
            load, reader = heapq.heappop(loads)
            hands[reader].append(shard)
            heapq.heappush(loads, (load + int(self.sizes[shard]), reader))
        return hands

    def _order(self) -> np.ndarray:
        starts = np.cumsum(self.sizes) - self.sizes
        rows = [self._rows(reader, shards, starts) for reader, shards in enumerate(self.dealt(self.epoch))]
        local = self.batch_size // self.world_size
        order = np.empty((self.num_batches, local, self.world_size), dtype=np.int64)
        places = [(rank, worker) for rank in range(self.world_size) for worker in range(self.workers)]
        needed = [local * len(range(worker, self.num_batches, self.workers)) for _, worker in places]
        spare = np.concatenate([mine[count:] for mine, count in zip(rows, needed, strict=True)])
        for (rank, worker), mine, count in zip(places, rows, needed, strict=True):
            lacking = max(0, count - len(mine))
            mine, spare = np.concatenate([mine[:count], spare[:lacking]]), spare[lacking:]
            order[worker :: self.workers, :, rank] = mine.reshape(-1, local)
        return np.concatenate([order.reshape(-1), spare])

    def _rows(self, reader: int, shards: Sequence[int], starts: np.ndarray) -> np.ndarray:
        # counted from 1: seeds that differ by zeros at their end give the same numbers
        rng = np.random.default_rng((self.seed, Draw.ORDER, self.epoch, reader + 1))
        rows = np.concatenate([starts[shard] + rng.permutation(self.sizes[shard]) for shard in shards])
        return rows[np.argsort(np.arange(len(rows)) + self.buffer * rng.random(len(rows)), kind="stable")]
