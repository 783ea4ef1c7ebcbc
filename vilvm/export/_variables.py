"""The variables of a tree, by group, before their dimensions have names."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["SAMPLED", "Groups", "Variable", "as_variable", "join", "named_tensors"]

# the groups whose variables have draws
SAMPLED = (
    "posterior",
    "log_likelihood",
    "sample_stats",
    "posterior_predictive",
    "prior",
    "prior_predictive",
)


class Variable(NamedTuple):
    """One variable of one group.

    Arguments:
        values: draws along the first axis, in the groups that have draws.
        data_axis: the axis of the data, if there is one.
    """

    values: np.ndarray
    data_axis: int | None = None

    @property
    def num_data(self) -> int | None:
        """The size of the axis of the data."""
        if self.data_axis is None:
            return None
        return self.values.shape[self.data_axis]


Groups = dict[str, dict[str, Variable]]


def as_variable(value: Tensor, data_axis: int | None) -> Variable:
    """A tensor as a variable; half precision becomes single precision."""
    value = value.detach().cpu()
    if value.dtype in (torch.bfloat16, torch.float16):
        value = value.float()
    return Variable(value.numpy(), data_axis)


def join(parts: list[Groups]) -> Groups:
    """The groups of all batches, concatenated along the axis of the data."""
    return {
        group: {
            name: _joined([part[group][name] for part in parts]) for name in variables
        }
        for group, variables in parts[0].items()
        if variables
    }


def _joined(parts: list[Variable]) -> Variable:
    first = parts[0]
    if first.data_axis is None:
        return first
    values = np.concatenate([part.values for part in parts], first.data_axis)
    return Variable(values, first.data_axis)


def named_tensors(batch: Any, name: str = "batch") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a batch, named by key, field or position."""
    if isinstance(batch, Tensor):
        yield name, batch
    for key, value in _members(batch, name):
        yield from named_tensors(value, key)


def _members(batch: Any, name: str) -> Iterable[tuple[str, Any]]:
    """Names and values of a container; nothing for anything else."""
    if isinstance(batch, Mapping):
        return [(str(key), value) for key, value in batch.items()]
    if isinstance(batch, list | tuple):
        positions = [f"{name}_{i}" for i in range(len(batch))]
        return zip(getattr(batch, "_fields", positions), batch, strict=True)
    return []
