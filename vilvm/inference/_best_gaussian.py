"""The Gaussian of the largest ELBO, by Newton's method on fixed draws.

At the maximum of the ELBO over N(m, Σ) the mean gradient E_q[∇ log p] is zero, and the precision
Σ⁻¹ is the mean curvature −E_q[∇² log p]. In coordinates ε in which q is N(0, I), Stein's identity
gives both from gradients g(ε) alone:

    b = E[g],    A = −E[∇² log p] = −E[ε gᵀ],

and a step of length ρ is Σ⁻¹ ← I + ρ (A − I), m ← m + ρ Σ b. A step that does not raise the ELBO
is halved. The expectations are means over the fixed draws of ``vilvm.inference._fixed_draws``; for
a Gaussian posterior the first step is exact.

References: The Variational Gaussian Approximation Revisited, Opper and Archambeau, 2009;
Conjugate-Computation Variational Inference, Khan and Lin, 2017.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vilvm.inference._approximations import Approximation, Chain, Gaussian, composed
from vilvm.inference._fixed_draws import (
    FULL_RANK,
    base_draws,
    entropy,
    numbers_of_draws,
)
from vilvm.inference._target import Target

__all__ = ["best_gaussian", "gaussian_step"]

_FULL_RANK = (
    250  # dimensions beyond which Σ is diagonal in the coordinates of the start
)
_CLOSE = 0.02  # largest element of b and of A − I at which the maximum is reached
_GAIN = 1e-3  # nats that a step must promise
_STEPS = 100
_SHORTEST = 1e-4
_LEAST, _LARGEST = 0.2, 5.0  # of a step's eigenvalues of the precision


def best_gaussian(
    target: Target,
    start: Approximation,
    seed: int = 0,
    is_over: Callable[[], bool] = lambda: False,
    rough: bool = False,
) -> tuple[Approximation, float]:
    """The Gaussian of the largest ELBO, and that ELBO in nats on the fixed draws.

    Arguments:
        target: the log-density.
        start: a Gaussian near it.
        seed: of the draws.
        is_over: whether the time is up.
        rough: whether the draws are never doubled.
    """
    zero = torch.zeros(target.dim, dtype=torch.float64)
    full = target.dim <= FULL_RANK
    inner = Gaussian(zero, torch.eye(target.dim).double() if full else zero + 1)
    objective = -math.inf
    for num in numbers_of_draws(target):
        eps = base_draws(num, target.dim, seed)
        before = inner
        inner, objective = _climb(target, start, inner, eps, is_over)
        if rough or is_over() or _is_close(before, inner):
            break
    return composed(inner, start), objective + entropy(target.dim)


def _climb(
    target: Target,
    start: Approximation,
    inner: Gaussian,
    eps: Tensor,
    is_over: Callable[[], bool],
) -> tuple[Gaussian, float]:
    """The maximum on these draws."""

    def at(inner: Gaussian) -> tuple[float, Tensor]:
        value, gradient = target.pulled_back(Chain(inner, start), eps)
        return value.mean().item(), gradient

    length = 1.0
    best, gradient = at(inner)
    for _ in range(_STEPS):
        proposal, promise = gaussian_step(inner, eps, gradient, length)
        if promise < _GAIN or length < _SHORTEST or is_over():
            break
        value, slope = at(proposal)
        if value > best:
            inner, best, gradient = proposal, value, slope
            length = min(1.0, 2 * length)
        else:
            length /= 2
    return inner, best


@torch.no_grad()
def gaussian_step(
    inner: Gaussian, eps: Tensor, gradient: Tensor, length: float
) -> tuple[Gaussian, float]:
    """The Gaussian after a step, and the gain in nats that a whole one promises.

    Arguments:
        inner: N(m, C Cᵀ), whose draws are m + C ε.
        eps: base draws, shape (S, D).
        gradient: of log p in ε, shape (S, D).
        length: ρ.
    """
    dim = eps.shape[1]
    mean = gradient.mean(0)
    if inner.scale.dim() == 1:
        curvature = -(eps * gradient).mean(0)
        precision = (1 + length * (curvature - 1)).clamp(_LEAST, _LARGEST)
        shift = length * mean / precision
        promise = ((curvature - 1).square().sum() + mean.square().sum()) / 2
        scale = inner.scale * precision.rsqrt()
        return Gaussian(inner.loc + inner.scale * shift, scale), promise.item()
    product = eps.T @ gradient / len(eps)
    curvature = -(product + product.T) / 2
    excess = curvature - torch.eye(dim, dtype=eps.dtype)
    values, axes = torch.linalg.eigh(torch.eye(dim, dtype=eps.dtype) + length * excess)
    values = values.clamp(_LEAST, _LARGEST)
    shift = length * axes @ ((axes.T @ mean) / values)
    covariance = (axes / values) @ axes.T
    factor = torch.linalg.cholesky((covariance + covariance.T) / 2)
    promise = (excess.square().sum() + mean.square().sum()) / 2
    return Gaussian(
        inner.loc + inner.scale @ shift, inner.scale @ factor
    ), promise.item()


@torch.no_grad()
def _is_close(before: Gaussian, after: Gaussian) -> bool:
    """Whether doubling the draws hardly changed the Gaussian."""
    shift = before.inverse(after.loc[None]).abs().max()
    if before.scale.dim() == 1:
        change = after.scale / before.scale - 1
    else:
        solve = torch.linalg.solve_triangular
        change = solve(before.scale, after.scale, upper=False)
        change = change - torch.eye(len(change), dtype=change.dtype)
    return max(shift.item(), change.abs().max().item()) < _CLOSE
