"""Where an autoguide starts.

Pyro's autoguides start from draws of the prior, which a flat prior does not have.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to

__all__ = ["init_to_origin"]


def init_to_origin(site: Any) -> Tensor:
    """The value of a latent at which its unconstrained value is zero; also under a flat prior.

    A discrete latent, or one whose support no bijection maps to, is drawn instead.

    Arguments:
        site: of the latent, as Pyro passes it to the `init_loc_fn` of an autoguide.

    Returns:
        The value, of the latent's shape.

    Examples:
        >>> import pyro, torch, vilvm
        >>> import pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from vilvm.guides import init_to_origin
        >>> def model(x):
        ...     flat = dist.ImproperUniform(dist.constraints.positive, (), ())
        ...     sigma = pyro.sample("sigma", flat)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(0.0, sigma), obs=x)
        >>> lvm = vilvm.Pair(model, AutoNormal(model, init_loc_fn=init_to_origin))
        >>> vilvm.posterior(lvm, torch.zeros(3), 5)["sigma"].shape
        torch.Size([5])
    """
    support = site["fn"].support
    if support.is_discrete:
        return site["fn"].sample()
    try:
        transform = biject_to(support)
    except NotImplementedError:
        return site["fn"].sample()
    shape = transform.inverse_shape(site["fn"].shape())
    return transform(torch.zeros(shape))
