"""Sums of gradients by block of draws, with signal-to-noise ratios and a test from them."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["BLOCKS", "GradientSums", "ratios", "sign_flips"]

BLOCKS = 12  # blocks of draws, for standard errors and the test: 2¹¹ patterns of signs


class GradientSums:
    """Sums and squares of gradients by block of draws, relative to the first draw.

    Differences from the first draw preserve the digits of the variance.
    """

    def __init__(self, num_draws: int):
        self.sizes = torch.tensor(
            [len(range(b, num_draws, BLOCKS)) for b in range(BLOCKS)]
        )
        self.origin: dict[str, Tensor] = {}
        self.total: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}

    def add(self, draw: int, gradients: Mapping[str, Tensor]) -> None:
        for name, g in gradients.items():
            if name not in self.total:
                self.origin[name] = g.flatten().clone()
                self.total[name], self.squares[name] = (
                    g.new_zeros(BLOCKS, g.numel()) for _ in range(2)
                )
            centred = g.flatten() - self.origin[name]
            self.total[name][draw % BLOCKS] += centred
            self.squares[name][draw % BLOCKS] += centred.square()


class _Ratios(NamedTuple):
    """Sums over the parameters of a group: ‖ḡ‖², Σ s², and Σ ḡ²/s² over the `varying` ones."""

    signal: float
    noise: float
    ratios: float
    varying: int

    def snr(self, num_draws: int) -> float:
        if not self.noise > 0:
            return math.inf
        return math.sqrt(max(self.signal - self.noise / num_draws, 0.0) / self.noise)

    def elementwise(self, num_draws: int) -> float:
        if not self.varying:
            return math.inf
        mean = self.ratios / self.varying * (num_draws - 3) / (num_draws - 1)
        return math.sqrt(max(mean - 1 / num_draws, 0.0))


def ratios(sums: GradientSums, names: Sequence[str], left_out: int | None) -> _Ratios:
    """The sums over the parameters of a group, without one block of draws."""
    kept = [b for b in range(BLOCKS) if b != left_out]
    found = [_of_parameter(sums, name, kept) for name in names]
    signal, noise, ratios, varying = (
        sum(getattr(each, field) for each in found) for field in _Ratios._fields
    )
    return _Ratios(float(signal), float(noise), float(ratios), int(varying))


def _of_parameter(sums: GradientSums, name: str, kept: list[int]) -> _Ratios:
    n = int(sums.sizes[kept].sum())
    mean = sums.total[name][kept].sum(0).double() / n
    squares = sums.squares[name][kept].sum(0).double() / n
    variance = (squares - mean.square()).clamp(min=0) * n / (n - 1)
    mean = mean + sums.origin[name]
    # A smaller variance is a rounding error.
    varies = variance > mean.square() * 1e-10
    variance = torch.where(varies, variance, torch.zeros_like(variance))
    varies = variance > 0
    ratio = mean.square() / torch.where(varies, variance, torch.ones_like(variance))
    ratio = torch.where(varies, ratio, torch.zeros_like(mean))
    return _Ratios(
        mean.square().sum().item(),
        variance.sum().item(),
        ratio.sum().item(),
        int(varies.sum()),
    )


def sign_flips(sums: GradientSums, names: Sequence[str]) -> float:
    """The share of sign patterns of the blocks under which their sum is at least as long."""
    gram = torch.zeros(BLOCKS, BLOCKS, dtype=torch.float64)
    for name in names:
        blocks = (
            sums.total[name].double()
            + sums.sizes.to(sums.origin[name].device).unsqueeze(-1)
            * sums.origin[name].double()
        )
        gram += (blocks @ blocks.T).cpu()
    signs = torch.tensor(
        [(1, *rest) for rest in itertools.product((1, -1), repeat=BLOCKS - 1)],
        dtype=torch.float64,
    )
    lengths = ((signs @ gram) * signs).sum(-1)
    # the first pattern has no sign flipped
    return (lengths >= lengths[0] * (1 - 1e-9)).double().mean().item()
