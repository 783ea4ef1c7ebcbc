"""The approximation that maximises the ELBO, by a quasi-Newton method on fixed draws.

With base draws ε_1 … ε_S held fixed,

    L(λ) = (1/S) Σ_s [log p(x, u_λ(ε_s)) + log |∂u_λ/∂ε_s|] + D (1 + log 2π) / 2

is a deterministic function of the parameters λ, so that its maximum needs no learning rate and no
stopping rule. The draws are scrambled Sobol points in antithetic pairs, standardised to mean 0 and
covariance I, so that a Gaussian posterior is found exactly. They are doubled until the maximum
moves less than the tolerance.

The parameters are relative to a start u_0(ε), in whose coordinates the posterior is nearly
standard normal: Gaussian u = u_0(m + C ε).

References: Black Box Variational Inference with a Deterministic Objective, Giordano, Ingram and
Broderick, 2024; Sample Average Approximation for Black-Box Variational Inference, Burroni, Domke
and Sheldon, 2023.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from vilvm.inference._approximations import (
    Approximation,
    Chain,
    Gaussian,
    Skewed,
    skewed,
)
from vilvm.inference._target import Target

__all__ = ["base_draws", "best_gaussian", "best_skewed"]

_FULL_RANK = 50  # dimensions beyond which C is diagonal
_MOVED = (
    0.02  # change of any parameter, in posterior standard deviations, that is small
)
_TOO_FAR = 1e300  # the loss where the density is zero


class Fixed(NamedTuple):
    """A maximum of the objective.

    Arguments:
        parameters: λ, one flat vector.
        objective: L(λ), in nats.
    """

    parameters: Tensor
    objective: float


def base_draws(num: int, dim: int, seed: int) -> Tensor:
    """Standard normal draws of mean 0 and covariance I, shape (num, dim); num even, > 2 dim."""
    sobol = torch.quasirandom.SobolEngine(dim, scramble=True, seed=seed)
    uniform = sobol.draw(num // 2, dtype=torch.float64).clamp(1e-10, 1 - 1e-10)
    half = torch.special.ndtri(uniform)
    factor = torch.linalg.cholesky(half.T @ half / len(half))
    half = torch.linalg.solve_triangular(factor, half.T, upper=False).T
    return torch.cat([half, -half])


def maximise(
    target: Target,
    map_: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    eps: Tensor,
    is_over: Callable[[], bool],
) -> Fixed:
    """The maximum of L from a start.

    Arguments:
        target: the log-density.
        map_: u_λ(ε), shape (S, D), and log |∂u/∂ε|, as a function of λ and ε.
        start: λ, shape (K,).
        eps: base draws, shape (S, D).
        is_over: whether the time is up.
    """

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        with torch.enable_grad():
            parameters = torch.from_numpy(x).requires_grad_()
            u, log_det = map_(parameters, eps)
            value, gradient = target.gradient(u.detach())
            if not value.isfinite().all():
                return _TOO_FAR, np.zeros_like(x)
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
        options={"maxiter": 200, "ftol": 1e-9, "gtol": 1e-5, "maxcor": 30},
    )
    entropy = eps.shape[1] * (1 + math.log(2 * math.pi)) / 2  # of the base draws
    return Fixed(torch.from_numpy(found.x), entropy - float(found.fun))


def best_gaussian(
    target: Target,
    start: Approximation,
    seed: int = 0,
    is_over: Callable[[], bool] = lambda: False,
) -> tuple[Approximation, float]:
    """The Gaussian of the largest ELBO, and that ELBO on the fixed draws.

    Arguments:
        target: the log-density.
        start: a Gaussian near it.
        seed: of the draws.
        is_over: whether the time is up.
    """
    dim = target.dim
    inner = _Gaussian(dim, full=dim <= _FULL_RANK)

    def map_(parameters: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        v, log_det = inner(parameters, eps)
        u, more = start(v)
        return u, log_det + more

    found = _doubled(target, map_, torch.zeros(inner.size).double(), seed, is_over)
    m, c = inner.split(found.parameters)
    if isinstance(start, Gaussian) and start.scale.dim() == 2 and c.dim() == 2:
        with torch.no_grad():
            whole = Gaussian(start(m[None])[0][0], start.scale @ c)
        return whole, found.objective
    return Chain(Gaussian(m, c), start), found.objective


def best_skewed(
    target: Target,
    start: Gaussian,
    seed: int = 0,
    is_over: Callable[[], bool] = lambda: False,
) -> tuple[Skewed, float]:
    """The Gaussian with sinh-arcsinh margins of the largest ELBO, and that ELBO.

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
    inner = _Gaussian(dim, full=True)

    def parts(parameters: Tensor) -> tuple[Tensor, ...]:
        m, c = inner.split(parameters[: inner.size])
        log_scale, skew, tail = parameters[inner.size :].reshape(3, dim)
        return loc + sd * m, sd * log_scale.exp(), mixing @ c, skew, tail

    def map_(parameters: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        return skewed(eps, *parts(parameters))

    size = inner.size + 3 * dim
    found = _doubled(target, map_, torch.zeros(size).double(), seed, is_over)
    return Skewed(*(x.clone() for x in parts(found.parameters))), found.objective


class _Gaussian:
    """m + C ε as a function of a flat vector, C = I and m = 0 at the vector 0.

    Arguments:
        dim: D.
        full: whether C is lower triangular rather than diagonal.
    """

    def __init__(self, dim: int, full: bool):
        self.dim, self.full = dim, full
        self.rows, self.columns = torch.tril_indices(dim, dim, -1)
        self.size = 2 * dim + (len(self.rows) if full else 0)

    def split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """m, shape (D,), and C, shape (D, D) or (D,)."""
        m, diagonal = parameters[: self.dim], parameters[self.dim : 2 * self.dim].exp()
        if not self.full:
            return m, diagonal
        c = torch.diag(diagonal)
        c = c.index_put((self.rows, self.columns), parameters[2 * self.dim :])
        return m, c

    def __call__(self, parameters: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        m, c = self.split(parameters)
        v = eps @ c.mT if self.full else eps * c
        return m + v, parameters[self.dim : 2 * self.dim].sum()


def _doubled(
    target: Target,
    map_: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    seed: int,
    is_over: Callable[[], bool],
) -> Fixed:
    """The maximum with twice as many draws each time, until it hardly moves."""
    least = max(128, 2 ** math.ceil(math.log2(4 * target.dim)))
    most = max(least, min(1024, 8 * least, 2 ** math.floor(math.log2(8 * target.most))))
    found, num = None, least
    while True:
        eps = base_draws(num, target.dim, seed)
        before = start if found is None else found.parameters
        found = maximise(target, map_, before, eps, is_over)
        moved = (found.parameters - before).abs().max().item()
        if moved < _MOVED or num >= most or is_over():
            return found
        num *= 2
