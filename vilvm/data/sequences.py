"""Sequences of unequal length, padded to one tensor."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vilvm._runtime.argument_checks import check_positive
from vilvm.data.data import as_data

__all__ = ["padded"]


def padded(
    sequences: Iterable[Any], value: float = 0.0, *, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Sequences of unequal length as a padded tensor and their lengths.

    ``vilvm.models.deep_markov`` takes this tuple. A model must leave the padding out of its
    likelihood: by ``.mask(steps < lengths)`` of a distribution, for example.

    Arguments:
        sequences: tensors, arrays, frames or series, shape (length, ...) each; what follows the
            length is the same for all.
        value: of the padding, a finite number.
        dtype: of floats that are not tensors; torch's default by default.

    Returns:
        The padded tensor, shape (num_data, greatest length, ...), and the lengths, int64, shape
        (num_data,).

    Raises:
        ValueError: there is no sequence, one is empty or not finite, or their shapes differ.

    Examples:
        >>> import numpy
        >>> from vilvm.data import padded
        >>> x, lengths = padded([numpy.ones((2, 1)), numpy.ones((3, 1))])
        >>> x.shape, lengths
        (torch.Size([2, 3, 1]), tensor([2, 3]))
    """
    check_positive("padded: value", abs(value), "finite number", zero=True)
    tensors = [
        _one(sequence, f"padded: sequence {i}", dtype)
        for i, sequence in enumerate(sequences)
    ]
    if not tensors:
        raise ValueError("padded: got no sequence; pass at least one.")
    for i, tensor in enumerate(tensors):
        if (tensor.shape[1:], tensor.dtype) != (tensors[0].shape[1:], tensors[0].dtype):
            raise ValueError(
                f"padded: sequence {i} has steps of shape {tuple(tensor.shape[1:])} and type "
                f"{tensor.dtype}, the first {tuple(tensors[0].shape[1:])} and {tensors[0].dtype}; "
                "give all the same."
            )
    lengths = torch.tensor([len(tensor) for tensor in tensors])
    return pad_sequence(tensors, batch_first=True, padding_value=value), lengths


def _one(sequence: Any, what: str, dtype: torch.dtype | None) -> Tensor:
    x = as_data(sequence, what, dtype=dtype).x
    if not isinstance(x, Tensor) or not x.dim():
        raise ValueError(f"{what}: is no sequence of numbers; pass one tensor.")
    return x
