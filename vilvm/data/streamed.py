"""Data that are not in memory: rows, read when they are asked for.

``StreamedTensor`` stand in a ``Data`` where a tensor would, and are asked for what a tensor is
asked for there: a shape, a device, some rows.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

__all__ = ["StreamedTensor"]


class StreamedTensor(ABC):
    """One datum a row, read by index. A subclass says how.

    Arguments:
        shape: (N, ...), of all of it.
        dtype: of the tensors that are handed out.
        device: where they are handed out.
    """

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device = torch.device("cpu")
    requires_grad = False

    def __len__(self) -> int:
        return self.shape[0]

    def dim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @abstractmethod
    def to(self, device: torch.device | str) -> "StreamedTensor":
        """The same rows, handed out on `device`."""

    @abstractmethod
    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """The rows that `index` picks, in its order.

        Raises:
            ValueError: a row holds NaN or infinity, or cannot be read any more; names the file and
                the row.
        """

    @abstractmethod
    def fingerprint(self) -> bytes:
        """A digest that tells these rows from others without reading them all, the same wherever
        they lie.
        """
