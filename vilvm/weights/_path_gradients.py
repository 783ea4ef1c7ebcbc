"""The density of a guide whose gradient passes through its draws alone.

With z = z(φ, ε), the gradient of log q_φ(z) is (∂ log q/∂z)(dz/dφ) + ∂ log q/∂φ. Only the path
through z is kept: the slopes g = ∂ log q/∂z at the draws are constants, and

    log q = value of log q + Σ g · (z − constant z).

The slopes are taken at independent copies of the draws, so that ∂ log q(z₂ | z₁)/∂z₁ counts and a
dependence of the draw z₂ on z₁ does not. A guide of several sites is run once more at the copies.
"""

from typing import Any

import torch
from pyro.distributions.util import sum_rightmost
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from vilvm.lvm import ContractError
from vilvm.weights._particle_runs import ParticleRun
from vilvm.weights._sites import Sites, is_random, log_prob

__all__ = ["path_densities"]


def path_densities(run: ParticleRun) -> dict[str, Tensor]:
    """The log-densities of the guide's sites, in the shape of ``log_prob``.

    Raises:
        ContractError: a second run of the guide has another density, because it draws noise
            outside its sites.
    """
    copies = {
        name: site["value"].detach().requires_grad_()
        for name, site in run.guide.items()
        if is_random(site)
    }
    with torch.enable_grad():
        densities = {n: log_prob("guide", s) for n, s in _sites_at(run, copies).items()}
        slopes = _slopes(densities, copies)
    return {
        name: _along_path(run, name, density.detach(), slopes.get(name))
        for name, density in densities.items()
    }


def _sites_at(run: ParticleRun, copies: dict[str, Tensor]) -> Sites:
    """The guide's sites at copies of its draws."""
    if len(run.guide) == 1:
        ((name, site),) = run.guide.items()
        return {name: {**site, "value": copies.get(name, site["value"])}}
    sites = run.guide_at(copies)
    if is_validation_enabled():
        _check_same(run.guide, sites)
    return sites


def _slopes(
    densities: dict[str, Tensor], copies: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The derivative of the sum of all densities by each copy."""
    if not copies:
        return {}
    total = torch.stack([density.sum() for density in densities.values()]).sum()
    found = torch.autograd.grad(total, list(copies.values()))
    return dict(zip(copies, found, strict=True))


def _along_path(
    run: ParticleRun, name: str, density: Tensor, slope: Tensor | None
) -> Tensor:
    if slope is None:
        return density
    draw = run.draws[name]
    event_dim = run.guide[name]["fn"].event_dim
    change: Any = sum_rightmost(slope * (draw - draw.detach()), event_dim)
    return density + change


def _check_same(first: Sites, again: Sites) -> None:
    for name, site in first.items():
        before, after = (log_prob("guide", s).detach() for s in (site, again[name]))
        if not torch.allclose(before, after, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise ContractError(
                f"A second run of the guide has another density of {name!r} at the same draws: a "
                "guide of several latents must draw no noise outside its sites (dropout, batch "
                "statistics); call eval() on such layers, or train with IWAE or Trace_ELBO."
            )
