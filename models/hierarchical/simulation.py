"""Random numbers that no version of a library changes, for simulated data.

The stream of a distribution in numpy or torch may change with their versions; the raw integers of
a bit generator of numpy do not. From its leading 53 bits, n, comes u = (n + ½) / 2⁵³, uniform on
(0, 1), and from u, by inversion of its distribution function, any other number:

    normal Φ⁻¹(u),    Bernoulli 1[u < p],    categorical and Poisson: the least k with F(k) > u.

Reference: Non-Uniform Random Variate Generation, Luc Devroye, 1986, chapters 2 and 3.
"""

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["Stream"]


class Stream:
    """A stream of random numbers, in float64.

    Arguments:
        seed: of the stream.

    Examples:
        >>> from vilvm.models.hierarchical.simulation import Stream
        >>> Stream(0).uniform(2)
        tensor([0.6370, 0.2698], dtype=torch.float64)
    """

    def __init__(self, seed: int):
        self._bits = np.random.PCG64(seed)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform on (0, 1), of a shape."""
        raw = self._bits.random_raw(math.prod(shape))
        leading = (raw >> np.uint64(11)).astype(np.float64)
        return torch.from_numpy((leading + 0.5) / 2**53).reshape(shape)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal, of a shape."""
        return torch.special.ndtri(self.uniform(*shape))

    def bernoulli(self, p: Tensor) -> Tensor:
        """1 with probabilities p, else 0."""
        return (self.uniform(*p.shape) < p).double()

    def categorical(self, p: Tensor, number: int) -> Tensor:
        """Indices of a vector of probabilities p, int64, shape (number,)."""
        return torch.searchsorted((p / p.sum()).cumsum(0), self.uniform(number))

    def poisson(self, rate: Tensor) -> Tensor:
        """Counts of a vector of rates, each some tens at most."""
        k = torch.arange(1000, dtype=torch.float64)
        log_p = k * rate[:, None].log() - rate[:, None] - torch.lgamma(k + 1)
        return (log_p.exp().cumsum(1) <= self.uniform(len(rate), 1)).double().sum(1)
