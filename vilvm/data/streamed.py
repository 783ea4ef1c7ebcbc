"""Tensors outside memory, whose rows are read when they are needed.

A ``StreamedTensor`` takes the place of a tensor in a ``Data``. It has the part of a tensor's
interface that ``Data`` uses: a shape, a type, a device, and indexing by rows.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

__all__ = ["StreamedTensor"]


class StreamedTensor(ABC):
    """The base class of a tensor with one datum per row, whose rows are read by index.

    A subclass sets the fields and reads the rows.

    Arguments:
        shape: of the whole tensor, (N, ...).
        dtype: of the rows.
        device: of the rows, once read.

    Examples:
        >>> import torch
        >>> from vilvm.data import Data, StreamedTensor
        >>> class Squares(StreamedTensor):
        ...     shape, dtype = torch.Size([100, 1]), torch.float32
        ...     def to(self, device):
        ...         return self
        ...     def __getitem__(self, index):
        ...         return torch.arange(100.0)[index, None] ** 2
        ...     def fingerprint(self):
        ...         return b"squares"
        >>> Data(Squares()).subset(torch.tensor([2, 3])).x
        tensor([[4.],
                [9.]])
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
        """The same rows, read to `device`."""

    @abstractmethod
    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """The rows that `index` picks, in its order.

        Raises:
            ValueError: a row holds NaN or infinity, or can no longer be read; the message names
                the file and the row.
        """

    @abstractmethod
    def fingerprint(self) -> bytes:
        """A digest that identifies these rows without reading all of them; independent of the
        file's location.
        """
