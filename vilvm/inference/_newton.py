"""Newton's method on several paths at once.

Each step divides the gradient by the absolute curvature in every direction (saddle-free Newton),
and tries several lengths. The step does not depend on the coordinates as long as the Hessian can
be inverted, so regressions in raw coordinates need no scaling.

Reference: Identifying and Attacking the Saddle Point Problem in High-Dimensional Non-Convex
Optimization, Dauphin et al., 2014.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vilvm.inference._target import Target

__all__ = ["Iterates", "newton"]

_LENGTHS = tuple(2.0**k for k in (3, 2, 1, 0, -1, -2, -3, -5, -7, -10, -14, -20))
_FLAT = 1e-15  # curvature, relative to the largest, below which a direction is flat


class Iterates(NamedTuple):
    """The points of all paths, P paths of T points each.

    Arguments:
        u: points, shape (T, P, D).
        value: log-density, shape (T, P).
        hessian: shape (T, P, D, D).
        step: Newton's step from each point, shape (T, P, D).
        converged: which paths ended at a maximum, shape (P,).
    """

    u: Tensor
    value: Tensor
    hessian: Tensor
    step: Tensor
    converged: Tensor


def newton(
    target: Target,
    starts: Tensor,
    *,
    steps: int,
    tolerance: float = 1e-12,
    is_over: Callable[[], bool] = lambda: False,
) -> Iterates:
    """Climbs from every start.

    Arguments:
        target: the log-density.
        starts: points, shape (P, D), with a finite log-density.
        steps: most steps.
        tolerance: expected gain, in nats, below which a path has converged.
        is_over: whether the time is up.

    Returns:
        Iterates.
    """
    u, path = starts, []
    lengths = starts.new_tensor(_LENGTHS)[:, None, None]
    active = torch.ones(len(u), dtype=torch.bool)
    gain = starts.new_zeros(len(u))
    now: tuple[Tensor, ...] = ()
    for _ in range(steps):
        found = target.hessian(u[active])
        found = (*found, _step(found[1], found[2]))
        now = tuple(
            _at(active, new, old)
            for new, old in zip(found, now or [None] * 4, strict=True)
        )
        value, gradient, hessian, step = now
        path.append((u, value, hessian, step))
        gain = (gradient * step).sum(-1) / 2
        active = active & (gain >= tolerance * value.abs().clamp(min=1.0))
        if not active.any() or is_over():
            break
        ahead = u[active] + lengths * step[active]
        values = target(ahead.flatten(0, 1)).reshape(ahead.shape[:2])
        best, which = values.max(0)
        u = _at(active, ahead[which, torch.arange(len(which))], u)
        better = best > value[active]
        u = torch.where(_at(active, better, active)[:, None], u, path[-1][0])
        active = _at(active, better, active)
        if not active.any():
            break
    columns = [torch.stack(column) for column in zip(*path, strict=True)]
    return Iterates(*columns, converged=gain < 1e-4)


def _at(active: Tensor, new: Tensor, old: Tensor | None) -> Tensor:
    """`old` with the rows of active paths replaced by `new`."""
    if old is None:
        return new
    result = old.clone()
    result[active] = new
    return result


def _step(gradient: Tensor, hessian: Tensor) -> Tensor:
    """|H|⁻¹ g, in coordinates scaled by the diagonal of H."""
    scale = hessian.diagonal(dim1=1, dim2=2).abs()
    scale = torch.where(scale > 0, scale, 1.0).rsqrt()
    curvature, axes = torch.linalg.eigh(scale[:, :, None] * hessian * scale[:, None, :])
    curvature = curvature.abs()
    curvature = curvature.clamp(min=1e-300).maximum(
        _FLAT * curvature.amax(-1, keepdim=True)
    )
    along = (axes.mT @ (scale * gradient)[..., None])[..., 0] / curvature
    return scale * (axes @ along[..., None])[..., 0]
