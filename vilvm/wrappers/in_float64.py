"""A model that computes in float64, whatever the precision of its data.

A regression in raw coordinates (dollars on inches, say) has a posterior whose standard deviations
differ by many orders of magnitude. float32 has seven digits, fewer than its log-density needs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vilvm.data.tensors import map_tensors
from vilvm.lvm import Wrapped, rebuildable

__all__ = ["InFloat64", "double", "float64"]


@rebuildable
class InFloat64(Wrapped):
    """A pair that runs in float64: its parameters, its data, and the constants that it makes.

    While the pair runs, float64 is torch's default dtype, in all threads.

    Arguments:
        lvm: the inner pair, whose parameters become float64, in place.
        frozen: whether a new parameter of the inner pair is an error.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.wrappers import InFloat64
        >>> lvm = InFloat64(PPCA(data_dim=3, latent_dim=1))
        >>> vilvm.posterior(lvm, torch.zeros(4, 3), 2)["z"].dtype
        torch.float64
    """

    keeps_model = True

    def __init__(self, lvm: Any, frozen: bool = False):
        super().__init__(lvm, frozen)
        self.lvm.double()

    def model(self, batch: Any) -> Any:
        """p(x | z) p(z) of the inner model, in float64."""
        with float64():
            return self.inner_model(double(batch))

    def guide(self, batch: Any) -> Any:
        """q(z | x) of the inner model, in float64."""
        with float64():
            return self.inner_guide(double(batch))


@contextmanager
def float64() -> Iterator[None]:
    """A context in which float64 is torch's default dtype, in all threads.

    Examples:
        >>> import torch
        >>> from vilvm.wrappers import float64
        >>> with float64():
        ...     torch.zeros(2).dtype
        torch.float64
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def double(batch: Any) -> Any:
    """A batch with its floating-point tensors in float64.

    Arguments:
        batch: a nesting of tensors.

    Examples:
        >>> import torch
        >>> from vilvm.wrappers.in_float64 import double
        >>> [x.dtype for x in double((torch.zeros(2), torch.arange(2)))]
        [torch.float64, torch.int64]
    """
    return map_tensors(_double, batch)


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x
