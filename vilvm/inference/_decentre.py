"""The same model with latents of hierarchical priors in standard units.

A latent θ ~ N(μ, τ) whose τ is a latent too has a funnel as posterior if the data say little of θ:
no Gaussian and no single step size fits it. In terms of η = (θ − μ) / τ ~ N(0, 1) the funnel is
gone. The joint distribution of the latents and the data is the same, and θ is a deterministic
site.

References: A General Framework for the Parametrization of Hierarchical Models, Papaspiliopoulos,
Roberts and Sköld, 2007; Automatic Reparameterisation of Probabilistic Programs, Gorinova, Moore
and Hoffman, 2020.
"""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam
from pyro.infer.reparam.reparam import Reparam
from torch import Tensor
from torch.distributions import constraints

from vilvm.guides import init_to_origin
from vilvm.inference._preparation import run_at_origin
from vilvm.lvm import ContractError
from vilvm.weights._sites import latents_of, sites_of

__all__ = ["SUFFIX", "decentred"]

SUFFIX = "_decentered"  # Pyro's, of the latents in standard units


def decentred(model: Callable[[Any], Any], batch: Any) -> Callable[[Any], Any] | None:
    """The model with every real latent whose scale depends on other latents in standard units.

    Arguments:
        model: a Pyro model.
        batch: its data, in float64.

    Returns:
        A model of the same joint distribution; None if there is no such latent.
    """
    try:
        with torch.enable_grad():
            trace = run_at_origin(model, batch, _tracked)
    except ContractError:
        return None
    config: dict[str, Reparam] = {}
    for name, site in latents_of(sites_of(trace)).items():
        how = _reparametrisation(site["fn"])
        if how is not None:
            config[name] = how
    return poutine.reparam(model, config=config) if config else None


def _tracked(site: Any) -> Tensor:
    """A start whose dependence on other latents autograd records."""
    if site["fn"].support.is_discrete:
        return site["fn"].sample()
    return init_to_origin(site).detach().requires_grad_()


def _reparametrisation(fn: Any) -> Reparam | None:
    while isinstance(fn, dist.Independent):
        fn = fn.base_dist
    if isinstance(fn, dist.MultivariateNormal):
        scale: Any = fn._unbroadcasted_scale_tril  # pyright: ignore
        return _Standardised() if scale.requires_grad else None
    scale = getattr(fn, "scale", None)
    has_loc = "loc" in fn.arg_constraints and "scale" in fn.arg_constraints
    if not has_loc or fn.support is not constraints.real:
        return None
    return LocScaleReparam(centered=0.0) if scale.requires_grad else None


class _Standardised(Reparam):
    """f ~ N(m, L Lᵀ) as m + L ε, ε ~ N(0, I)."""

    def apply(self, msg: Any) -> Any:
        fn, name = msg["fn"], msg["name"]
        while isinstance(fn, dist.Independent):
            fn = fn.base_dist
        tril, eps = fn._unbroadcasted_scale_tril, None
        if msg["value"] is not None:  # an initial value
            rest = (msg["value"] - fn.loc)[..., None]
            eps = torch.linalg.solve_triangular(tril, rest, upper=False)[..., 0]
        eps = pyro.sample(
            f"{name}{SUFFIX}",
            dist.Normal(torch.zeros_like(fn.loc), 1.0).to_event(msg["fn"].event_dim),
            obs=eps,
            infer={"is_observed": msg["is_observed"]},
        )
        value = msg["value"]
        if value is None:
            value = fn.loc + (tril @ eps[..., None])[..., 0]
        delta = dist.Delta(value, event_dim=msg["fn"].event_dim).mask(False)
        return {"fn": delta, "value": value, "is_observed": True}
