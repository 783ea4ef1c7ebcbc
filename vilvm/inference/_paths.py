"""Paths to the regions of large density, from draws of the prior and from a wide box."""

from collections.abc import Callable

import torch
from torch import Tensor

from vilvm.inference._modes import Mode, modes
from vilvm.inference._newton import newton
from vilvm.inference._pathfinder import pathfinder_modes
from vilvm.inference._preparation import prior_draws
from vilvm.inference._target import Target
from vilvm.lvm import ContractError

__all__ = ["find_modes", "starts"]

_NEWTON = 200  # dimensions up to which true Hessians are computed
_SMALL = 50  # dimensions up to which there are twice as many paths
_PATHS = 8
_STEPS = 40
_BOX = 2.0  # half its width


def find_modes(
    target: Target,
    *,
    steps: int = _STEPS,
    is_over: Callable[[], bool] = lambda: False,
) -> list[Mode]:
    """The regions that paths reach; by Newton's method in few dimensions.

    Arguments:
        target: the log-density.
        steps: most steps of a path of Newton's method.
        is_over: whether the time is up.
    """
    at = starts(target, _PATHS if target.dim <= _SMALL else _PATHS // 2)
    if target.dim > _NEWTON:
        return pathfinder_modes(target, at, is_over)[:1]
    return modes(target, newton(target, at, steps=steps, is_over=is_over))


def starts(target: Target, num_paths: int) -> Tensor:
    """Points with a finite density, shape (P, D), P at most `num_paths`; half from the prior.

    Raises:
        ContractError: the density is zero, or not a number, at all of many points.
    """
    prior = _finite(target, prior_draws(target, num_paths))[: num_paths // 2]
    for width in (_BOX, 0.5, 0.1, 0.01):
        u = width * (2 * torch.rand(8 * num_paths, target.dim, dtype=torch.float64) - 1)
        box = _finite(target, u)
        if len(box):
            return torch.cat([prior, box[: num_paths - len(prior)]])
    if len(prior):
        return prior
    raise ContractError(
        "infer: the density is zero or not a number at every starting point: check the data "
        "against the support of the likelihood, and the priors."
    )


def _finite(target: Target, u: Tensor) -> Tensor:
    """The points of finite density."""
    return u[target(u).isfinite()] if len(u) else u
