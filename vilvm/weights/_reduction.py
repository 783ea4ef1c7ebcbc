"""Log-densities of a pair, summed to one number for every sample and datum."""

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from vilvm.lvm import ContractError
from vilvm.weights._sites import Sites, log_prob

__all__ = ["PlateDims", "log_densities", "reduce", "total"]


class PlateDims(Protocol):
    """The dimensions of the plates of a pair, as a ``Layout`` has them."""

    @property
    def nesting(self) -> int: ...

    @property
    def data_dim(self) -> int | None: ...

    def is_in_data(self, site: Any) -> bool: ...


def total(terms: Iterable[Tensor]) -> Tensor:
    """The float64 sum of terms of shapes (S, N) and (S,): (S, N) if all are, else (S,).

    Empty without terms.
    """
    kept = [term.double() for term in terms]
    if not kept:
        return torch.empty(0)
    if any(term.dim() == 1 for term in kept):
        kept = [term.reshape(len(term), -1).sum(-1) for term in kept]
    return sum(kept[1:], kept[0])


def log_densities(
    part: str, sites: Sites, num_samples: int | None, layout: PlateDims
) -> dict[str, Tensor]:
    """The log-density of every site, shape (S, N), or (S,) outside the data plate."""
    return {
        name: reduce(log_prob(part, site), layout.is_in_data(site), num_samples, layout)
        for name, site in sites.items()
    }


def reduce(
    value: Tensor, in_data: bool, num_samples: int | None, layout: PlateDims
) -> Tensor:
    """A log-density of shape (S, *plates) summed over every plate but the one over the data.

    Arguments:
        value: the log-density.
        in_data: whether it stands in the data plate.
        num_samples: size of the plate over samples; None for a single-sample run.
        layout: the plates of the batch.

    Returns:
        Shape (S, N), or (S,) outside the data plate.
    """
    dims, size = layout.nesting + 1, num_samples or 1
    if value.dim() > dims:
        raise ContractError(
            f"A log-density has shape {tuple(value.shape)} under {size} samples, and only "
            f"{dims} dimensions are declared (samples and plates): leave leading dimensions "
            "unchanged, and sum over the dimensions of one datum, counted from the right."
        )
    value = value.reshape((1,) * (dims - value.dim()) + value.shape)
    if value.shape[0] != size:
        value = value.expand(size, *value.shape[1:])
    summed = set(range(1, dims))
    if in_data and layout.data_dim is not None:
        summed.discard(dims + layout.data_dim)
    if not summed:
        return value
    # a float32 sum of many terms would lose the last digits
    return value.sum(sorted(summed), dtype=torch.float64)
