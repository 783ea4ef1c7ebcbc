"""The batches of a run. Each epoch visits all data once, in an order set by seed and epoch.

``Batches`` serves one source of data; ``Turns`` takes the batches of several sources in turn.
torch's DataLoader is not used. It would collate single rows in worker processes, while one
index_select on the device makes a whole batch. Its random stream cannot start at an arbitrary
step, as exact resumption requires.
"""

import math
from typing import Any

import torch
from torch import Tensor

from vilvm._runtime.distributed import ProcessGroup
from vilvm.data.data import Data
from vilvm.data.interleaved import Interleaved
from vilvm.data.tensors import map_tensors, tensors_of
from vilvm.training._prefetch import Prefetched

__all__ = ["Batches", "Turns", "batches_of"]


def batches_of(
    data: Data | Interleaved,
    size: int | None,
    seed: int,
    ranks: ProcessGroup,
    drop_single: bool,
    *,
    shuffle: bool = True,
) -> "Batches | Turns":
    """The batches of one or several sources of data.

    Arguments:
        data: on their device already, or on disk.
        size: the most data in a batch; None for all.
        seed: of the order of the data.
        ranks: the processes that share every batch.
        drop_single: whether a last batch of one datum is left out.
        shuffle: whether the order is new every epoch.
    """
    if isinstance(data, Data):
        size = min(size or len(data), len(data))
        return Batches(data, size, seed, ranks, drop_single, shuffle=shuffle)
    # Each source has its own order, so that sources of equal length are not always paired alike.
    each = [
        batches_of(s, size, seed + i * 2**32, ranks, drop_single, shuffle=shuffle)
        for i, s in enumerate(data.sources)
    ]
    return Turns(data, [b for b in each if isinstance(b, Batches)])


class Batches:
    """The batches of one source. A batch depends on its step only, so a run can start at any step.

    Data on disk are read a few batches ahead and then copied to their device; their batches equal
    those of the same data in memory.

    Arguments:
        data: on their device already, or on disk.
        size: data a batch; the last batch of an epoch may be smaller. If `size` is at least the
            number of data, every batch holds all data, in their own order.
        seed: of the order of the data.
        ranks: the processes that share every batch.
        drop_single: whether a last batch of one datum is left out, as batch normalisation needs
            two.
        shuffle: whether the order is new every epoch; else it is that of the data.
    """

    def __init__(
        self,
        data: Data,
        size: int,
        seed: int,
        ranks: ProcessGroup | None = None,
        drop_single: bool = False,
        *,
        shuffle: bool = True,
    ):
        self.whole = size >= len(data)
        self.leaves_out = drop_single and not self.whole and len(data) % size == 1
        self.epoch_steps = math.ceil(len(data) / size) - self.leaves_out
        self.data = data.loaded() if self.whole else data
        self.size = size
        self.seed = seed
        self.shuffle = shuffle
        self.ranks = ranks or ProcessGroup()
        self._order: tuple[int, Tensor] | None = None
        self._ahead: Prefetched | None = None
        if self.data.streamed:
            # The thread uses the host only: work on a GPU would disturb the capture of a graph.
            self._host = data.to("cpu")
            self._ahead = Prefetched(lambda step: self._picked(self._host, step))

    def __call__(self, step: int) -> Any:
        """This rank's share of the batch of a step, transformed with torch's current generator.

        An empty share is replaced by one datum of weight 0.
        """
        if self._ahead is None:
            return self._picked(self.data, step).model_input()
        return self._sent(self._ahead(step)).model_input()

    def stacked(self, step: int, count: int) -> tuple[list[Tensor], list[int]] | None:
        """The batches of several steps of one epoch, one after the other in memory.

        Arguments:
            step: the first.
            count: of steps, each with a whole batch.

        Returns:
            The tensors of the first batch, and by tensor how many bytes further that of the next
            step lies; None if the batches are not plain tensors in memory.
        """
        fresh = self.data.transform is not None and not self.data.transformed
        if fresh or self.data.streamed or self.ranks.size > 1:
            return None
        if self.whole:
            tensors = tensors_of(self.data.x)
            return tensors, [0] * len(tensors)
        start = step % self.epoch_steps * self.size
        rows = self._order_at(step, self.data.device)[start : start + count * self.size]
        tensors = tensors_of(self.data.take(rows).x)
        if not all(t.is_contiguous() for t in tensors):
            return None
        return tensors, [t[: self.size].nbytes for t in tensors]

    @property
    def sources(self) -> "list[Batches]":
        """The batches of every source of data."""
        return [self]

    def record_batch(self, step: int) -> int:
        """The step whose batch a record after `step` evaluates."""
        return step

    def close(self) -> None:
        """Ends reading ahead."""
        if self._ahead is not None:
            self._ahead.close()

    def _picked(self, data: Data, step: int) -> Data:
        """The data of a step, in the order of its epoch."""
        share = self.ranks.shard(self.count(step))
        mine = share if share.start < share.stop else slice(0, 1)
        if self.whole:
            return data if self.ranks.size == 1 else data.subset(mine)
        start = step % self.epoch_steps * self.size
        order = self._order_at(step, data.device)
        return data.take(order[start + mine.start : start + mine.stop])

    def _order_at(self, step: int, device: torch.device) -> Tensor:
        """The numbers of all data in the order of the epoch of a step."""
        epoch = step // self.epoch_steps
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self._order_of(epoch).to(device)
        return self._order[1]

    def _order_of(self, epoch: int) -> Tensor:
        """The numbers of all data in the order of an epoch."""
        if not self.shuffle:
            return torch.arange(len(self.data))
        seed = (self.seed * 1_000_003 + epoch) % 2**63
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(len(self.data), generator=generator)

    def _sent(self, picked: Data) -> Data:
        """Copies data that the host has read to the device, asynchronously on a GPU."""
        device = self.data.device
        if device.type != "cuda":
            return picked.to(device)
        return Data(
            map_tensors(
                lambda t: t.pin_memory().to(device, non_blocking=True), picked.x
            ),
            transform=picked.transform,
            transformed=picked.transformed,
        )

    def count(self, step: int) -> int:
        """How many data all ranks together have at a step."""
        return min(self.size, len(self.data) - step % self.epoch_steps * self.size)

    def weight(self, step: int) -> float:
        """The fraction of these data that is in this rank's share."""
        share = self.ranks.shard(self.count(step))
        return (share.stop - share.start) / self.count(step)


class Turns:
    """The batches of several sources in turn, in a fixed order that spreads each over an epoch.

    Arguments:
        data: the sources.
        sources: the batches of each.
    """

    def __init__(self, data: Interleaved, sources: list[Batches]):
        self.data = data
        self.sources = sources
        self.size = max(b.size for b in sources)
        self.whole = all(b.whole for b in sources)
        self.leaves_out = any(b.leaves_out for b in sources)
        self.shuffle = all(b.shuffle for b in sources)
        places = [
            ((j + 0.5) / b.epoch_steps, i, j)
            for i, b in enumerate(sources)
            for j in range(b.epoch_steps)
        ]
        self._turns = [(i, j) for _, i, j in sorted(places)]
        self.epoch_steps = len(self._turns)

    def __call__(self, step: int) -> Any:
        """This rank's share of the batch of a step; see ``Batches``."""
        source, own = self._own(step)
        return source(own)

    def _own(self, step: int) -> tuple[Batches, int]:
        """The source whose turn it is, and the number of this step among its own."""
        epoch, position = divmod(step, self.epoch_steps)
        i, j = self._turns[position]
        return self.sources[i], epoch * self.sources[i].epoch_steps + j

    def record_batch(self, step: int) -> int:
        """The step whose batch a record after `step` evaluates.

        This is the latest step with a batch of the first source; if there is none yet, the next.
        """
        back = range(step, max(-1, step - self.epoch_steps), -1)
        for other in (*back, *range(step, step + self.epoch_steps)):
            if self._own(other)[0] is self.sources[0]:
                return other
        raise AssertionError("every epoch has a batch of every source")

    def close(self) -> None:
        """Ends reading ahead."""
        for source in self.sources:
            source.close()

    def count(self, step: int) -> int:
        """How many data all ranks together have at a step."""
        source, own = self._own(step)
        return source.count(own)

    def weight(self, step: int) -> float:
        """The fraction of these data that is in this rank's share."""
        source, own = self._own(step)
        return source.weight(own)
