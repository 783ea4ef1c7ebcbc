"""The Gaussians that the points of several paths suggest, and the modes among them.

At a point u with gradient g and negative definite Hessian H, the density is approximated by
N(u − H⁻¹ g, −H⁻¹). A path that ends at a maximum gives its last Gaussian, which is the Laplace
approximation there. Any other path, such as one towards the unbounded density of a hierarchical
model at τ = 0, gives the Gaussian with the largest ELBO, as Pathfinder does.

Reference: Pathfinder: Parallel quasi-Newton variational inference, Zhang, Carpenter, Gelman and
Vehtari, 2022.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vilvm.inference._approximations import Approximation, Gaussian, Mixture, pair_of
from vilvm.inference._newton import Iterates
from vilvm.inference._target import Target
from vilvm.inference._weighted import elbo
from vilvm.wrappers.in_float64 import InFloat64

__all__ = ["Mode", "modes", "pair_of_modes"]

_SAME = 0.5  # distance in posterior standard deviations, below which two maxima are one
_LEAST = 10.0  # nats below the best mode at which a mode has no weight
_MOST = 8  # modes
_DRAWS = 100  # for an ELBO


class Mode(NamedTuple):
    """A Gaussian around one region of the posterior.

    Arguments:
        gaussian: the approximation.
        log_mass: log of the posterior's mass there, unnormalised, in nats: Laplace's approximation
            at a maximum, else the ELBO.
        is_maximum: whether it is the Laplace approximation at a maximum.
    """

    gaussian: Approximation
    log_mass: float
    is_maximum: bool


def modes(target: Target, paths: Iterates) -> list[Mode]:
    """The distinct regions that the paths found, the largest first.

    Arguments:
        target: the log-density.
        paths: Newton's iterates.

    Returns:
        The modes; empty if no Hessian on the paths is negative definite.
    """
    options = [_best_of(target, paths, p) for p in range(paths.u.shape[1])]
    found = sorted(
        (mode for mode in options if mode is not None),
        key=lambda mode: (mode.is_maximum, mode.log_mass),
        reverse=True,
    )
    distinct: list[Mode] = []
    for mode in found:
        if mode.log_mass < found[0].log_mass - _LEAST:
            continue
        if all(_are_distinct(mode, other) for other in distinct):
            distinct.append(mode)
    return distinct[:_MOST]


def _best_of(target: Target, paths: Iterates, p: int) -> Mode | None:
    """The Gaussian of one path: at its maximum, else of the largest ELBO; None if it has none."""
    last = len(paths.u) - 1
    times = [last] if paths.converged[p] else _spread(last + 1)
    options = [_mode(target, paths, t, p) for t in times]
    usable = [mode for mode in options if mode is not None]
    return max(usable, key=lambda mode: mode.log_mass, default=None)


def pair_of_modes(
    model: Callable[[Any], Any], batch: Any, found: Sequence[Mode]
) -> InFloat64:
    """The model with the mixture of the modes' Gaussians as its guide, weighted by mass."""
    log_probs = torch.tensor([mode.log_mass for mode in found]).double()
    return pair_of(model, batch, [mode.gaussian for mode in found], log_probs)


def _spread(length: int, most: int = 16) -> list[int]:
    """At most `most` of the last points of a path, the last one among them."""
    step = math.ceil(length / most)
    return list(range(length - 1, -1, -step))


def _mode(target: Target, paths: Iterates, t: int, p: int) -> Mode | None:
    """The Gaussian at one point of a path; None if the density is not concave there."""
    tril = covariance_factor(paths.hessian[t, p])
    if tril is None or not paths.value[t, p].isfinite():
        return None
    gaussian = Gaussian(paths.u[t, p] + paths.step[t, p], tril)
    if paths.converged[p]:
        volume = tril.diagonal().log().sum() + len(tril) * math.log(2 * math.pi) / 2
        return Mode(gaussian, (paths.value[t, p] + volume).item(), True)
    value = elbo(target, Mixture([gaussian], tril.new_zeros(1)), _DRAWS)
    return Mode(gaussian, value, False) if math.isfinite(value) else None


def covariance_factor(hessian: Tensor) -> Tensor | None:
    """L with L Lᵀ = (−H)⁻¹, lower triangular, shape (D, D); None if −H is not positive definite.

    H is scaled by its diagonal first, since the units of the latents may differ by many orders.
    """
    diagonal = -hessian.diagonal()
    if not (diagonal > 0).all():
        return None
    scale = diagonal.rsqrt()
    scaled = -scale[:, None] * hessian * scale
    factor, info = torch.linalg.cholesky_ex(scaled.flip(0, 1))
    if info.item():
        return None
    # −H = U Uᵀ with U upper triangular, so L = U⁻ᵀ is lower triangular
    upper = factor.flip(0, 1)
    eye = torch.eye(len(hessian), dtype=hessian.dtype)
    inverse = torch.linalg.solve_triangular(upper.mT, eye, upper=False)
    return scale[:, None] * inverse


def _are_distinct(a: Mode, b: Mode) -> bool:
    """Whether two Gaussians are apart; those off a maximum are, if they hardly overlap."""
    with torch.no_grad():
        squares = [
            x.gaussian.inverse(y.gaussian.loc[None]).square().sum()
            for x, y in ((a, b), (b, a))
        ]
    distance = torch.stack(squares).min().sqrt().item()
    if a.is_maximum and b.is_maximum:
        return distance > _SAME
    return distance > 2 * math.sqrt(len(a.gaussian.loc))
