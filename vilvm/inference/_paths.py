"""Paths from a wide box to the regions of large density."""

from collections.abc import Callable

import torch
from torch import Tensor

from vilvm.inference._modes import Mode, modes
from vilvm.inference._newton import newton
from vilvm.inference._pathfinder import pathfinder_modes
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
    """The regions that paths from a wide box reach; by Newton's method in few dimensions.

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
    """Points of the box with a finite density, shape (P, D); P at most `num_paths`.

    Raises:
        ContractError: the density is zero, or not a number, at all of many points.
    """
    for width in (_BOX, 0.5, 0.1, 0.01):
        u = width * (2 * torch.rand(8 * num_paths, target.dim, dtype=torch.float64) - 1)
        finite = u[target(u).isfinite()]
        if len(finite):
            return finite[:num_paths]
    raise ContractError(
        "infer: the density is zero or not a number at every starting point: check the data "
        "against the support of the likelihood, and the priors."
    )
