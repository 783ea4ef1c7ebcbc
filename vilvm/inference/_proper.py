"""Whether a model with flat priors has a proper posterior, as far as rays can show.

Along a ray u + t e the density of a proper posterior falls faster than 1 / t. If

    d log p(u + t e) / d log t  ≥  −1

far out, then its integral is infinite, or so near to it that no method can find it. The rays are
those of the latents, and the axes of the Hessian in coordinates scaled by its diagonal, which hold
the combinations of latents that the data do not determine.
"""

import torch
from torch import Tensor

from vilvm.inference._target import Target

__all__ = ["improper_direction"]

_FAR = tuple(10.0**k for k in (2, 3, 4))  # in units of the scale at the start
_NOISE = 1e-16  # curvature, relative to that of the latents, that rounding errors give


def improper_direction(target: Target, u: Tensor, scale: Tensor) -> Tensor | None:
    """A direction in which the density does not fall, shape (D,); None if none is found.

    Arguments:
        target: the log-density.
        u: a point, shape (D,).
        scale: a length in each dimension, shape (D,).
    """
    hessian = target.hessian(u[None])[2][0]
    unit = hessian.diagonal().abs()
    unit = torch.where(unit > 0, unit, 1.0).rsqrt()
    curvature, axes = torch.linalg.eigh(unit[:, None] * hessian * unit)
    # one standard deviation along each axis; where the curvature is noise, that of the noise
    curvature = curvature.abs().clamp(min=_NOISE)
    rays = torch.cat([torch.diag(scale), unit * (axes * curvature.rsqrt()).mT])
    rays = torch.cat([rays, -rays])
    lengths = u.new_tensor(_FAR)
    points = u + lengths[:, None, None] * rays
    value = target(points.flatten(0, 1)).reshape(points.shape[:2])
    slope = value.diff(dim=0) / lengths.log().diff()[:, None]
    rises = (slope >= -1 - 1e-6).all(0)
    return rays[rises][0] if rises.any() else None
