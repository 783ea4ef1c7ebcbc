"""The approximation that maximises the ELBO on fixed draws.

With base draws ε_1 … ε_S held fixed,

    L(λ) = (1/S) Σ_s [log p(x, u_λ(ε_s)) + log |∂u_λ/∂ε_s|] + D (1 + log 2π) / 2

is a deterministic function of the parameters λ, so that its maximum needs no learning rate and no
stopping rule. The draws are scrambled Sobol points in antithetic pairs, standardised to mean 0 and
covariance I, so that a Gaussian posterior is found exactly. They are doubled until the maximum
moves less than the tolerance.

References: Black Box Variational Inference with a Deterministic Objective, Giordano, Ingram and
Broderick, 2024; Sample Average Approximation for Black-Box Variational Inference, Burroni, Domke
and Sheldon, 2023.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from vilvm.inference._approximations import Gaussian, Skewed, skewed
from vilvm.inference._target import Target

__all__ = ["FULL_RANK", "base_draws", "best_skewed", "entropy", "numbers_of_draws"]

FULL_RANK = 250  # dimensions beyond which covariances are diagonal in some coordinates
_MOST = 1024  # draws, unless the dimension needs more
_MOST_SKEW, _TAILS = (
    1.5,
    (-0.7, 0.1),
)  # bounds of a and log b, beyond which tails vanish
_TOO_FAR = 1e300  # the loss where the density is zero


def base_draws(num: int, dim: int, seed: int) -> Tensor:
    """Standard normal draws of mean 0 and covariance I, shape (num, dim); num even.

    Fewer than 2 dim of them have variances of 1, but correlations.
    """
    sobol = torch.quasirandom.SobolEngine(dim, scramble=True, seed=seed)
    uniform = sobol.draw(num // 2, dtype=torch.float64).clamp(1e-10, 1 - 1e-10)
    half = torch.special.ndtri(uniform)
    if len(half) > dim:
        factor = torch.linalg.cholesky(half.T @ half / len(half))
        half = torch.linalg.solve_triangular(factor, half.T, upper=False).T
    else:
        half = half / half.square().mean(0).sqrt()
    return torch.cat([half, -half])


def numbers_of_draws(target: Target) -> list[int]:
    """How many draws to take in turn."""
    least = 128
    if target.dim <= FULL_RANK:
        least = max(128, 2 ** math.ceil(math.log2(4 * target.dim)))
    fits = 2 ** math.floor(math.log2(8 * target.most))
    most = max(least, min(_MOST, 8 * least, fits))
    return [least * 2**k for k in range(int(math.log2(most // least)) + 1)]


def entropy(dim: int) -> float:
    """Of the base draws, in nats."""
    return dim * (1 + math.log(2 * math.pi)) / 2


def best_skewed(
    target: Target,
    start: Gaussian,
    seed: int = 0,
    is_over: Callable[[], bool] = lambda: False,
) -> tuple[Skewed, float]:
    """The Gaussian with sinh-arcsinh margins of the largest ELBO, by L-BFGS, and that ELBO.

    Arguments:
        target: the log-density.
        start: a Gaussian near it, of full rank.
        seed: of the draws.
        is_over: whether the time is up.
    """
    dim = target.dim
    loc, tril = start.loc.detach(), start.scale.detach()
    sd = tril.norm(dim=1)
    mixing = tril / sd[:, None]
    rows, columns = torch.tril_indices(dim, dim, -1)

    def parts(parameters: Tensor) -> tuple[Tensor, ...]:
        m, log_scale, log_diagonal, skew, tail = parameters[: 5 * dim].reshape(5, dim)
        c = torch.diag(log_diagonal.exp())
        c = c.index_put((rows, columns), parameters[5 * dim :])
        return loc + sd * m, sd * log_scale.exp(), mixing @ c, skew, tail

    found = torch.zeros(5 * dim + len(rows), dtype=torch.float64)
    free: list[tuple[float | None, float | None]] = [(None, None)]
    bounds = free * 3 * dim + [(-_MOST_SKEW, _MOST_SKEW)] * dim + [_TAILS] * dim
    bounds += free * len(rows)
    objective = -math.inf
    for num in numbers_of_draws(target)[-2:]:
        eps = base_draws(num, dim, seed)
        found, objective = _maximum(
            target,
            lambda x, e: skewed(e, parts(x)),
            found,
            eps,
            bounds=bounds,
            is_over=is_over,
        )
    return Skewed(*(x.clone() for x in parts(found))), objective + entropy(dim)


def _maximum(
    target: Target,
    map_: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    eps: Tensor,
    *,
    bounds: Sequence[tuple[float | None, float | None]],
    is_over: Callable[[], bool],
) -> tuple[Tensor, float]:
    """The λ of largest L from a start, by L-BFGS, and L.

    Arguments:
        target: the log-density.
        map_: u_λ(ε), shape (S, D), and log |∂u/∂ε|, as a function of λ and ε.
        start: λ, shape (K,).
        eps: base draws, shape (S, D).
        bounds: of each element of λ.
        is_over: whether the time is up.
    """

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        with torch.enable_grad():
            parameters = torch.from_numpy(x).requires_grad_()
            u, log_det = map_(parameters, eps)
            value, gradient = target.gradient(u.detach())
            surrogate = (u * gradient).sum() / len(eps) + log_det.mean()
            (slope,) = torch.autograd.grad(surrogate, parameters)
        objective = value.mean() + log_det.detach().mean()
        if not (objective.isfinite() and slope.isfinite().all()):
            return _TOO_FAR, np.zeros_like(x)
        return -objective.item(), -slope.numpy()

    def stop(_: Any) -> None:
        if is_over():
            raise StopIteration

    found = minimize(
        loss,
        start.numpy(),
        jac=True,
        method="L-BFGS-B",
        callback=stop,
        bounds=bounds,
        options={"maxiter": 100, "ftol": 1e-9, "gtol": 1e-5, "maxcor": 30},
    )
    return torch.from_numpy(found.x), -float(found.fun)
