"""Which data each step sees: every epoch all of them once, in an order that follows from the seed and the epoch alone."""

import math
from typing import Any

import torch

from vilvm.data import Data

__all__ = ["Batches"]


class Batches:
    """The batches of a run. None depends on those before it, so a run can be taken up at any step.

    Arguments:
        data: on the device already.
        size: data a batch; the last of an epoch may be smaller. All data, in their own order, if there are no more.
        seed: of the orders.
    """

    def __init__(self, data: Data, size: int, seed: int):
        self.data, self.size, self.seed = data, size, seed
        self.epoch_steps = math.ceil(len(data) / size)
        self._order: tuple[int, torch.Tensor] | None = None

    def __call__(self, step: int) -> Any:
        """The batch of a step, transformed with torch's generator as it is."""
        epoch, position = divmod(step, self.epoch_steps)
        picked = self.data
        if self.epoch_steps > 1:
            if self._order is None or self._order[0] != epoch:
                generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
                self._order = epoch, torch.randperm(len(self.data), generator=generator).to(self.data.device)
            picked = self.data.subset(self._order[1][position * self.size : (position + 1) * self.size])
        return picked.look()
