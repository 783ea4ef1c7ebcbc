"""Simulated pendulums: noisy sequences of unequal length from a nonlinear system of two states.

    φ' = ω,    ω' = −sin φ − ω / 20,    φ_0 ~ U(−2.5, 2.5),    ω_0 ~ N(0, ½²),
    x_t = sin φ(t Δ) + ε_t,    Δ = 0.4,    ε_t ~ N(0, 0.1²).

Only the horizontal position is seen, not the velocity.
"""

import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_seed
from vilvm.data.data import Data
from vilvm.data.datasets.dataset import Dataset, simulated

__all__ = ["pendulums"]

_STEP, _SUBSTEPS, _FRICTION, _NOISE = 0.4, 20, 0.05, 0.1


def pendulums(
    num_train: int = 500,
    num_test: int = 200,
    length: tuple[int, int] = (10, 30),
    seed: int = 0,
) -> Dataset:
    """Positions of pendulums, padded with zeros to the greatest length.

    Arguments:
        num_train: number of training data.
        num_test: number of validation data, and of test data.
        length: least and greatest number of steps of a sequence; all between are equally likely.
        seed: of all draws.

    Returns:
        The three splits, each a tuple (x, lengths) of shapes (num_data, greatest, 1) and
        (num_data,).

    Raises:
        ValueError: a number is out of range.

    Examples:
        >>> from vilvm.data.datasets import pendulums
        >>> x, lengths = pendulums(50).train.x
        >>> x.shape, lengths.min()
        (torch.Size([50, 30, 1]), tensor(10))
    """
    seed = check_seed("pendulums: seed", seed)
    least = check_number("pendulums: length[0]", length[0])
    greatest = check_number("pendulums: length[1]", length[1], least)
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int, split: str) -> Data:
        lengths = torch.randint(least, greatest + 1, (count,), generator=generator)
        x = _positions(count, greatest, generator)
        seen = torch.arange(greatest) < lengths.unsqueeze(-1)
        return Data(((x * seen).unsqueeze(-1), lengths), "pendulums", split)

    return simulated("pendulums", draw, num_train, num_test)


def _positions(count: int, steps: int, generator: torch.Generator) -> Tensor:
    """Noisy positions, shape (count, steps), by the semi-implicit Euler method."""
    phi = 5 * torch.rand(count, generator=generator) - 2.5
    omega = 0.5 * torch.randn(count, generator=generator)
    dt, positions = _STEP / _SUBSTEPS, []
    for _ in range(steps):
        positions.append(phi.sin())
        for _ in range(_SUBSTEPS):
            omega = omega - dt * (phi.sin() + _FRICTION * omega)
            phi = phi + dt * omega
    x = torch.stack(positions, -1)
    return x + _NOISE * torch.randn(x.shape, generator=generator)
