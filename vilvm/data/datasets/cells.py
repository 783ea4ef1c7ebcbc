"""Simulated counts of cells of four types, whose density is known up to quadrature.

    k ~ uniform on four types,    log ℓ ~ N(log 400, ½²),
    x_g ~ π δ_0 + (1 − π) NB(mean ℓ ρ_kg, inverse dispersion θ),    π = 0.1, θ = 2.

Each type has ten marker genes, of eight times their usual share. Given k and ℓ the genes are
independent, so that log p(x) is a sum over four types of an integral over one number.
"""

import math

import torch
from pyro.distributions import ZeroInflatedNegativeBinomial
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_seed
from vilvm.data.data import Data
from vilvm.data.datasets.dataset import Dataset, simulated

__all__ = ["Cells", "cells"]

_TYPES, _MARKERS, _FOLD = 4, 10, 8.0
_LOG_LIBRARY, _SPREAD = math.log(400), 0.5
_MISSED, _THETA = 0.1, 2.0


class Cells:
    """The exact distribution of a cell's counts.

    Arguments:
        num_genes: number of genes, at least 40.

    Raises:
        ValueError: there are too few genes for the markers.

    Examples:
        >>> import torch
        >>> from vilvm.data.datasets import Cells
        >>> Cells(40).log_prob(torch.zeros(1, 40)).shape
        torch.Size([1])
    """

    def __init__(self, num_genes: int = 100):
        num_genes = check_number("Cells: num_genes", num_genes, _TYPES * _MARKERS)
        # usual shares fall from the first gene to the last by a factor of 20
        usual = torch.logspace(0, -math.log10(20), num_genes, dtype=torch.float64)
        shares = usual.repeat(_TYPES, 1)
        for k in range(_TYPES):
            shares[k, k : _TYPES * _MARKERS : _TYPES] *= _FOLD
        self.shares = shares / shares.sum(-1, keepdim=True)  # ρ, (types, genes)

    def given(self, log_library: Tensor) -> ZeroInflatedNegativeBinomial:
        """p(x_g | k, ℓ) for all types and genes; log ℓ has shape (...,), and it (..., 4, G)."""
        log_mean = log_library[..., None, None] + self.shares.log()
        gate = torch.tensor(_MISSED, dtype=torch.float64)
        return ZeroInflatedNegativeBinomial(
            torch.full_like(gate, _THETA), logits=log_mean - math.log(_THETA), gate=gate
        )

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, by the trapezoidal rule over log ℓ within five deviations.

        Arguments:
            x: shape (num_data, num_genes).

        Returns:
            Shape (num_data,), float64.
        """
        # narrower than half the posterior's deviation: the error falls exponentially
        points = torch.linspace(-5, 5, 101, dtype=torch.float64)
        at_points = [
            self.given(_LOG_LIBRARY + _SPREAD * u).log_prob(x.double()[:, None]).sum(-1)
            for u in points
        ]
        terms = torch.stack(at_points, -1) + (-points.square() / 2).log_softmax(0)
        return terms.flatten(1).logsumexp(1) - math.log(_TYPES)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Counts, shape (count, num_genes), and the types of their cells."""
        kind = torch.randint(_TYPES, (count,), generator=generator)
        noise = torch.randn(count, generator=generator, dtype=torch.float64)
        mean = (_LOG_LIBRARY + _SPREAD * noise).exp()[:, None] * self.shares[kind]
        # a negative binomial is a Poisson variable with a Gamma distributed rate; the Gamma
        # variable of shape θ = 2 is a sum of two exponential ones
        uniform = torch.rand(2, *mean.shape, generator=generator, dtype=torch.float64)
        rate = -mean * (-uniform).log1p().sum(0) / _THETA
        x = torch.poisson(rate, generator=generator)
        kept = torch.rand(mean.shape, generator=generator) > _MISSED
        return (x * kept).float(), kind


def cells(
    num_train: int = 2000, num_test: int = 500, num_genes: int = 100, seed: int = 0
) -> Dataset:
    """Draws of simulated cells; ``Cells`` is their exact distribution.

    Arguments:
        num_train: number of training data.
        num_test: number of validation data, and of test data.
        num_genes: counts in a row, at least 40.
        seed: of all draws.

    Returns:
        The three splits; a label is the type of the cell, 0 to 3.

    Raises:
        ValueError: a number is out of range.

    Examples:
        >>> from vilvm.data.datasets import cells
        >>> cells(50).train.x.shape
        torch.Size([50, 100])
    """
    seed = check_seed("cells: seed", seed)
    truth, generator = Cells(num_genes), torch.Generator().manual_seed(seed)

    def draw(count: int, split: str) -> Data:
        x, kind = truth.draw(count, generator)
        return Data(x, "simulated cells", split, labels=kind)

    return simulated("cells", draw, num_train, num_test)
