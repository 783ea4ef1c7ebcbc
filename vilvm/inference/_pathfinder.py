"""Multi-path Pathfinder: the Gaussian of largest ELBO on each path of L-BFGS.

At each point x with gradient g of log p, L-BFGS estimates the
inverse Hessian of −log p as

    Σ = diag(α) + β γ βᵀ,   β = [α Y, S],   γ = [0, −R⁻¹; −R⁻ᵀ, R⁻ᵀ (E + Yᵀ α Y) R⁻¹],

S and Y being the last J steps and changes of −g, R the upper triangle of SᵀY, E its diagonal. With
β / √α = Q T (thin QR) and L Lᵀ = I + T γ Tᵀ it is the Gaussian

    u = x + Σ g + √α (ε + Q (L − I) Qᵀ ε).

Reference: Pathfinder: Parallel quasi-Newton variational inference, Zhang, Carpenter, Gelman and
Vehtari, 2022 (algorithms 1, 3 and 4).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vilvm.inference._approximations import LowRank, Mixture
from vilvm.inference._modes import Mode
from vilvm.inference._target import Target
from vilvm.inference._weighted import elbo

__all__ = ["pathfinder_modes"]

_HISTORY = 6
_STEPS = 300
_DRAWS = 20
_LENGTHS = tuple(2.0**k for k in (1, 0, -1, -2, -4, -6, -9, -13))
_CURVATURE = 1e-12  # least sᵀy / |y|² of a pair that is kept
_TOLERANCE = 1e-8  # relative gain below which a path stops


def pathfinder_modes(
    target: Target, starts: Tensor, is_over: Callable[[], bool] = lambda: False
) -> list[Mode]:
    """The best Gaussian of each path, the best first.

    Arguments:
        target: the log-density.
        starts: points, shape (P, D).
        is_over: whether the time is up.
    """
    found: list[Mode] = []
    for start in starts:
        best = _path(target, start, is_over)
        if best is not None:
            found.append(best)
        if is_over():
            break
    return sorted(found, key=lambda mode: -mode.log_mass)


def _path(target: Target, x: Tensor, is_over: Callable[[], bool]) -> Mode | None:
    value, gradient = (t[0] for t in target.gradient(x[None]))
    alpha = torch.ones_like(x)
    steps: list[Tensor] = []
    changes: list[Tensor] = []
    best: Mode | None = None
    lengths = x.new_tensor(_LENGTHS)
    for count in range(_STEPS):
        q = _gaussian(x, gradient, alpha, steps, changes)
        if count % 5 == 0 or count < 5:
            best = _better(target, q, best)
        direction = _product(gradient, alpha, steps, changes)
        if not steps:
            direction = direction / direction.norm().clamp(min=1.0)
        ahead = x + lengths[:, None] * direction
        values, gradients = target.gradient(ahead)
        gain, which = (values - value).max(0)
        if not gain > _TOLERANCE * value.abs().clamp(min=1.0) or is_over():
            break
        step, change = ahead[which] - x, gradient - gradients[which]
        if step @ change > _CURVATURE * change.square().sum():
            alpha = _diagonal(alpha, step, change)
            steps, changes = [*steps, step][-_HISTORY:], [*changes, change][-_HISTORY:]
        x, value, gradient = ahead[which], values[which], gradients[which]
    return _better(target, _gaussian(x, gradient, alpha, steps, changes), best)


def _better(target: Target, q: LowRank | None, best: Mode | None) -> Mode | None:
    """The Gaussian of larger ELBO."""
    if q is None:
        return best
    value = elbo(target, Mixture([q], q.loc.new_zeros(1)), _DRAWS)
    if math.isfinite(value) and (best is None or value > best.log_mass):
        return Mode(q, value, False)
    return best


def _diagonal(alpha: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """The diagonal of the inverse Hessian after one more pair."""
    a, b, c = y @ (alpha * y), y @ s, s @ (s / alpha)
    return 1 / (
        a / (b * alpha) + y.square() / b - a * s.square() / (b * c * alpha.square())
    )


def _factors(
    alpha: Tensor, steps: list[Tensor], changes: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """β, shape (D, 2J), and γ, shape (2J, 2J)."""
    s, y = torch.stack(steps, 1), torch.stack(changes, 1)
    product = s.mT @ y
    r = product.triu()
    eye = torch.eye(len(r), dtype=r.dtype)
    inverse = torch.linalg.solve_triangular(r, eye, upper=True)
    middle = torch.diag(product.diagonal()) + y.mT @ (alpha[:, None] * y)
    zero = torch.zeros_like(r)
    gamma = torch.cat(
        [
            torch.cat([zero, -inverse], 1),
            torch.cat([-inverse.mT, inverse.mT @ middle @ inverse], 1),
        ]
    )
    return torch.cat([alpha[:, None] * y, s], 1), gamma


def _product(
    gradient: Tensor, alpha: Tensor, steps: list[Tensor], changes: list[Tensor]
) -> Tensor:
    """Σ g."""
    result = alpha * gradient
    if steps:
        beta, gamma = _factors(alpha, steps, changes)
        result = result + beta @ (gamma @ (beta.mT @ gradient))
    return result


def _gaussian(
    x: Tensor,
    gradient: Tensor,
    alpha: Tensor,
    steps: list[Tensor],
    changes: list[Tensor],
) -> LowRank | None:
    """The Gaussian at a point; None if Σ is not positive definite."""
    if not steps:
        return None
    beta, gamma = _factors(alpha, steps, changes)
    basis, upper = torch.linalg.qr(beta / alpha.sqrt()[:, None])
    eye = torch.eye(upper.shape[0], dtype=upper.dtype)
    factor, info = torch.linalg.cholesky_ex(eye + upper @ gamma @ upper.mT)
    if info.item() or not factor.isfinite().all():
        return None
    loc = x + _product(gradient, alpha, steps, changes)
    return LowRank(loc, alpha.sqrt(), basis, factor)
