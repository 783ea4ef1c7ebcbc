"""The shape of a tail, k̂, of many columns of numbers at once.

The largest M = 3√S of S values x ≥ 0, less the value below them, are taken for draws of the
generalised Pareto distribution, whose shape k says which moments exist: those of order up to 1/k.
For θ on a grid about the data's own scale, k(θ) = (1/M) Σ log(1 − θ xᵢ) has profile likelihood

    L(θ) = M (log(−θ / k(θ)) − k(θ) − 1);

k̂ is taken at the mean of θ under weights proportional to exp L, and drawn towards ½ by the weight
of ten values.

It is the fit that ``psis`` has ArviZ make of weights, here of products of weights and functions,
of which there are too many to be fitted one by one.

References: A New and Efficient Estimation Method for the Generalized Pareto Distribution, Zhang
and Stephens, 2009; Pareto Smoothed Importance Sampling, Vehtari, Simpson, Gelman, Yao and Gabry,
2024 (the prior; the k̂ of an expectation).
"""

import math

import torch
from torch import Tensor

__all__ = ["tail_error", "tail_length", "tail_shape"]

_PRIOR_K, _PRIOR_WEIGHT = 0.5, 10
_FLAT = 0.01  # a tail whose logarithms differ by less is that of equal values and rounding
_LUMP = 0.1  # of S: effective number of values whose tail is one lump, above which they do no harm
_FITTED = 4_000_000  # values of the grid at a time


def tail_length(num_samples: int) -> int:
    """How many of the largest values are the tail: 3√S, or a fifth of a few."""
    return math.floor(3 * math.sqrt(num_samples)) if num_samples > 225 else num_samples // 5


def tail_error(num_samples: int, k: float = 0.5) -> float:
    """The standard error of k̂, which is drawn towards ½ by the weight of ten values, at `k`."""
    tail = tail_length(num_samples)
    return (1 + k) / math.sqrt(tail) * tail / (tail + _PRIOR_WEIGHT)


def tail_shape(x: Tensor) -> Tensor:
    """k̂ of the upper tail of every column.

    Arguments:
        x: values, none negative or NaN, shape (S, C), S at least 25.

    Returns:
        k̂, float64, shape (C,). 0 where the largest values are equal; where they are one lump, 0
        if the values are many in effect, ∞ if few carry all.

    Example:
        >>> import torch
        >>> from vilvm.diagnostics._tail import tail_shape
        >>> u = (torch.arange(10_000).double() + 0.5) / 10_000
        >>> [round(k, 1) for k in tail_shape(torch.stack([u**-0.7, -u.log()], 1)).tolist()]
        [0.7, 0.0]
    """
    rows, length = x.T.double().contiguous(), tail_length(len(x))
    top = rows.topk(length + 1, dim=1).values.flip(1)
    flat = top[:, -1] <= top[:, 0] * math.exp(_FLAT)
    tails = top[:, 1:] - top[:, :1]
    width = 30 + math.isqrt(length)
    k = torch.cat([_fit(part, width) for part in tails.split(max(1, _FITTED // (length * width)))])
    many = rows.sum(1).square() / rows.square().sum(1) >= _LUMP * len(x)
    k = torch.where(k.isnan(), torch.where(many, 0.0, math.inf), k)
    return torch.where(flat, 0.0, k)


def _fit(tails: Tensor, width: int) -> Tensor:
    """k̂ of tails (C, M), each in ascending order; NaN where a quarter or more is one value."""
    length = tails.shape[1]
    quartile, largest = tails[:, int(length / 4 + 0.5) - 1], tails[:, -1]
    steps = torch.arange(1, width + 1, dtype=tails.dtype, device=tails.device) - 0.5
    theta = (1 - (width / steps).sqrt()) / (3 * quartile[:, None]) + 1 / largest[:, None]
    k = torch.log1p(-theta[:, :, None] * tails[:, None, :]).mean(2)
    weight = (length * ((-theta / k).log() - k - 1)).softmax(1)
    best = (theta * weight).sum(1)
    shape = torch.log1p(-best[:, None] * tails).mean(1)
    shape = (length * shape + _PRIOR_WEIGHT * _PRIOR_K) / (length + _PRIOR_WEIGHT)
    return torch.where(quartile > tails[:, 0], shape, math.nan)
