"""Which data each step sees: every epoch all of them once, in an order that follows from the seed and the epoch alone."""

import math
from typing import Any

import torch
from torch import Tensor

from vilvm.data import Data, map_tensors
from vilvm.training.prefetch import Prefetched
from vilvm.world import World

__all__ = ["Batches"]


class Batches:
    """The batches of a run. None depends on those before it, so a run can be taken up at any step.

    Data on disk are read a few batches ahead and then copied to their device; their batches are those of the same data in memory.

    Arguments:
        data: on the device already, or on disk.
        size: data a batch; the last of an epoch may be smaller. All data, in their own order, if there are no more.
        seed: of the orders.
        ranks: each of which has its share of every batch.
    """

    def __init__(self, data: Data, size: int, seed: int, ranks: World | None = None):
        self.epoch_steps = math.ceil(len(data) / size)
        self.data = data.loaded() if self.epoch_steps == 1 else data
        self.size, self.seed, self.ranks = size, seed, ranks or World()
        self._order: tuple[int, Tensor] | None = None
        self._ahead: Prefetched | None = None
        if self.data.streamed:
            # The thread touches the host only: whatever it did on a GPU would break into the capture of a graph.
            self._host, self._ahead = data.to("cpu"), Prefetched(lambda step: self._picked(self._host, step))

    def __call__(self, step: int) -> Any:
        """This rank's share of the batch of a step, transformed with torch's generator as it is; where it has none, one datum for show."""
        picked = self._picked(self.data, step) if self._ahead is None else self._sent(self._ahead(step))
        return picked.look()

    def close(self) -> None:
        """Ends reading ahead."""
        if self._ahead is not None:
            self._ahead.close()

    def _picked(self, data: Data, step: int) -> Data:
        """The data of a step, in the order of its epoch."""
        epoch, position = divmod(step, self.epoch_steps)
        share = self.ranks.share(self.count(step))
        mine = share if share.start < share.stop else slice(0, 1)
        if self.epoch_steps == 1:
            return data if self.ranks.size == 1 else data.subset(mine)
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
            self._order = epoch, torch.randperm(len(data), generator=generator).to(data.device)
        start = position * self.size
        return data.at(self._order[1][start + mine.start : start + mine.stop])

    def _sent(self, picked: Data) -> Data:
        """What the host has read, on the device; a GPU copies it while the host goes on."""
        device = self.data.device
        if device.type != "cuda":
            return picked.to(device)
        return Data(
            map_tensors(lambda t: t.pin_memory().to(device, non_blocking=True), picked.x),
            transform=picked.transform,
            transformed=picked.transformed,
        )

    def count(self, step: int) -> int:
        """How many data all ranks together see at a step."""
        return min(self.size, len(self.data) - step % self.epoch_steps * self.size)

    def weight(self, step: int) -> float:
        """The part of them that is this rank's."""
        share = self.ranks.share(self.count(step))
        return (share.stop - share.start) / self.count(step)
