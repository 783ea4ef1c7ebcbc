"""The terms of the rate by latent and by dimension, for objectives that treat them one by one.

The dimensions z₁, …, z_d of a latent have densities log q(zᵢ | x) and log p(zᵢ) of their own if
the distribution is univariate under ``to_event``.
"""

from typing import Any

import torch
from torch import Tensor

from vilvm.lvm import ContractError
from vilvm.weights._particle_runs import ParticleRun, Plates
from vilvm.weights._sites import UNCONSTRAINED, family, mask_tensor, plain
from vilvm.weights.particles import Particles

__all__ = ["cross_densities", "dimension_rates", "latent_rates"]


def latent_rates(found: Particles) -> dict[str, Tensor]:
    """log q(z | x) − log p(z) of every latent z.

    Arguments:
        found: particles of a pair.

    Returns:
        By latent, shape (k, num_data), or (k,) for a latent that the data share, in nats.

    Raises:
        ContractError: the guide draws several latents together.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights.particles import particles
        >>> from vilvm.weights.rate_terms import latent_rates
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6)
        >>> latent_rates(particles((lvm.model, lvm.guide), x, 3, nesting=1))["z"].shape
        torch.Size([3, 4])
    """
    rates = {name: -prior for name, prior in found.weights.log_priors.items()}
    for site, density in found.weights.log_guides.items():
        name = site.removesuffix(UNCONSTRAINED)
        if name not in rates:
            raise ContractError(
                f"The guide draws latents together, as {site!r}, so they have no rates of their "
                "own: sample each latent in the guide, or use AutoNormal."
            )
        rates[name] = rates[name] + density
    return rates


def dimension_rates(found: Particles) -> dict[str, Tensor]:
    """log q(zᵢ | x) − log p(zᵢ) for every dimension of every latent.

    Arguments:
        found: particles of a pair whose latents stand in the data plate.

    Returns:
        By latent, shape (k, d, num_data), in nats.

    Raises:
        ContractError: guide or prior does not factorise over dimensions.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights.rate_terms import dimension_rates
        >>> from vilvm.weights.particles import particles
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6)
        >>> dimension_rates(particles((lvm.model, lvm.guide), x, 3, nesting=1))["z"].shape
        torch.Size([3, 2, 4])
    """
    return {
        name: torch.cat([_rate(run, name) for run in found.runs])
        for name in found.weights.latents
    }


def cross_densities(found: Particles, latent: str) -> Tensor:
    """log q(zᵢ | x_m) of the draw z of datum n, for all pairs of data n and m.

    Arguments:
        found: particles of a pair whose latent stands in the data plate.
        latent: its name.

    Returns:
        Shape (k, n, m, d), in nats.

    Raises:
        ContractError: the guide does not factorise over the dimensions of the latent.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights.rate_terms import cross_densities
        >>> from vilvm.weights.particles import particles
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6)
        >>> cross_densities(particles((lvm.model, lvm.guide), x, 3, nesting=1), "z").shape
        torch.Size([3, 4, 4, 2])
    """
    return torch.cat([_cross(run, latent) for run in found.runs])


def _rate(run: ParticleRun, name: str) -> Tensor:
    value = run.draws[name]
    of_guide = _univariate("guide", run.guide[name]).log_prob(value)
    of_prior = _univariate("prior", run.model[name]).log_prob(value)
    axis = _data_axis(run.plates, run.guide[name])
    rate = (of_guide - of_prior).expand(value.shape)
    rate = _particles_first(rate, axis, run.size)
    return rate.reshape(*rate.shape[:2], -1).mT


def _cross(run: ParticleRun, name: str) -> Tensor:
    site = run.guide[name]
    axis = _data_axis(run.plates, site)
    # the draws of datum n along a new first dimension, beside the guide of every datum m
    draws = run.draws[name].unsqueeze(0).transpose(0, axis)
    found = _univariate("guide", site).log_prob(draws)
    found = found.expand(-1, *run.draws[name].shape)
    by_draw = [_particles_first(part, axis, run.size) for part in found.unbind(0)]
    found = torch.stack(by_draw, 1)
    return found.reshape(*found.shape[:3], -1)


def _data_axis(plates: Plates, site: Any) -> int:
    """The dimension of a site's draws that is over the data, counted from the right."""
    if plates.data_dim is None or not plates.is_in_data(site):
        raise ContractError(
            f"Latent {site['name']!r} belongs to all data together, and this objective needs a "
            "latent of each datum: sample it within the plate over the data."
        )
    return plates.data_dim - site["fn"].event_dim


def _particles_first(value: Tensor, axis: int, size: int | None) -> Tensor:
    """A value with the dimensions of particles and data first."""
    if size is None:
        return value.movedim(axis, 0)[None]
    return value.movedim(axis, 1)


def _univariate(part: str, site: Any) -> Any:
    """The distribution of one dimension."""
    fn = plain(site["fn"])
    if fn.event_shape or family(fn) == "Delta" or mask_tensor(site) is not None:
        raise ContractError(
            f"The {part} of latent {site['name']!r} is {family(fn)} (masked?), whose dimensions "
            "have no densities of their own: this objective needs a distribution that factorises "
            "over them, such as dist.Normal(...).to_event(1)."
        )
    return fn
