"""The shape of a tail, k̂, of many columns of numbers at once.

The largest M = 3√S of S values x ≥ 0, less the value below them, are taken for draws of the
generalised Pareto distribution, whose shape k says which moments exist: those of order up to 1/k.
For θ on a grid about the data's own scale, k(θ) = (1/M) Σ log(1 − θ xᵢ) has profile likelihood

    L(θ) = M (log(−θ / k(θ)) − k(θ) − 1);

k̂ is taken at the mean of θ under weights proportional to exp L, and drawn towards ½ by the weight
of ten values.

``psis`` uses ArviZ's version of this fit. This one serves products of weights and functions, which
are too many to fit one by one.

References: A New and Efficient Estimation Method for the Generalized Pareto Distribution, Zhang
and Stephens, 2009; Pareto Smoothed Importance Sampling, Vehtari, Simpson, Gelman, Yao and Gabry,
2024 (the prior; the k̂ of an expectation).
"""

import math

import torch
from torch import Tensor

__all__ = ["good_k", "tail_error", "tail_length", "tail_shape"]

_PRIOR_K, _PRIOR_WEIGHT = 0.5, 10
# a tail whose logarithms differ by less consists of equal values and rounding errors
_FLAT = 0.01
_LUMP = 0.1  # share of S; a tail of equal values is harmless if the effective number is above
_FITTED = 4_000_000  # values of the grid at a time


def good_k(num_samples: int) -> float:
    """The k̂ up to which `num_samples` draws are enough: min(1 − 1/log₁₀ S, 0.7)."""
    return min(1 - 1 / math.log10(num_samples), 0.7)


def tail_length(num_samples: int) -> int:
    """How many of the largest values form the tail: 3√S, or S/5 for up to 225 draws."""
    if num_samples > 225:
        return math.floor(3 * math.sqrt(num_samples))
    return num_samples // 5


def tail_error(num_samples: int, k: float = 0.5) -> float:
    """The standard error of k̂ at a true shape `k`, the prior of ten values at ½ included."""
    tail = tail_length(num_samples)
    return (1 + k) / math.sqrt(tail) * tail / (tail + _PRIOR_WEIGHT)


def tail_shape(x: Tensor) -> Tensor:
    """k̂ of the upper tail of every column.

    Arguments:
        x: nonnegative values, shape (S, C), S at least 25.

    Returns:
        k̂, float64, shape (C,); 0 where the largest values are equal. Where a quarter of the tail
        is one value: 0 if the effective number of values is large, else ∞.

    Examples:
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
    k = torch.cat(
        [_fit(part, width) for part in tails.split(max(1, _FITTED // (length * width)))]
    )
    is_harmless = rows.sum(1).square() / rows.square().sum(1) >= _LUMP * len(x)
    k = torch.where(k.isnan(), torch.where(is_harmless, 0.0, math.inf), k)
    return torch.where(flat, 0.0, k)


def _fit(tails: Tensor, width: int) -> Tensor:
    """k̂ of sorted tails (C, M); NaN where a quarter or more is one value."""
    length = tails.shape[1]
    quartile, largest = tails[:, int(length / 4 + 0.5) - 1], tails[:, -1]
    steps = torch.arange(1, width + 1, dtype=tails.dtype, device=tails.device) - 0.5
    theta = (1 - (width / steps).sqrt()) / (3 * quartile[:, None]) + 1 / largest[
        :, None
    ]
    k = torch.log1p(-theta[:, :, None] * tails[:, None, :]).mean(2)
    weight = (length * ((-theta / k).log() - k - 1)).softmax(1)
    best = (theta * weight).sum(1)
    shape = torch.log1p(-best[:, None] * tails).mean(1)
    shape = (length * shape + _PRIOR_WEIGHT * _PRIOR_K) / (length + _PRIOR_WEIGHT)
    return torch.where(quartile > tails[:, 0], shape, math.nan)
