"""Free bits: a rate below λ nats costs nothing.

The rate is split into groups, and each group may use λ nats without a cost,

    loss = distortion + Σ_g max(λ, mean over the batch of rate_g),

so that no group gains by giving up its last λ nats: a latent that carries less than λ gets no
gradient from its rate, and does not collapse onto the prior early in training. The groups are
latents, such as the layers of a hierarchy, or single dimensions zᵢ of latents. The rate of a group
is estimated at the draws, log q(z_g | x) − log p(z_g), and averaged over the data of the batch
before the maximum is taken, as in the paper.

Where no group is below λ, the loss is minus the ELBO; where some are, minus the loss is a lower
bound on it.

Reference: Improving Variational Inference with Inverse Autoregressive Flow, Kingma, Salimans,
Jozefowicz, Chen, Sutskever and Welling, 2016.
"""

import math

import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_positive
from vilvm.objectives._particle_objective import ParticleObjective
from vilvm.weights.particles import Particles
from vilvm.weights.rate_terms import dimension_rates, latent_rates

__all__ = ["FreeBits"]

_GROUPS = ("latent", "dimension")


class FreeBits(ParticleObjective):
    """Minus the ELBO, in which every group of latents has a rate of at least λ nats.

    Arguments:
        nats: λ, per datum and group; log 2 is one bit.
        per: "latent", or "dimension" for guides and priors that factorise over dimensions.
        num_particles: draws per datum.
        max_plate_nesting: dimensions that plates take; guessed by default.

    Raises:
        ValueError: `nats` is negative, or `per` is unknown.
        ContractError: in use: a guide or prior does not factorise over dimensions, or the guide
            draws several latents together.

    Reference: Improving Variational Inference with Inverse Autoregressive Flow, Kingma, Salimans,
    Jozefowicz, Chen, Sutskever and Welling, 2016.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.objectives import FreeBits
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(20, 6)
        >>> vilvm.fit(lvm, x, steps=20, objective=FreeBits(0.1, per="dimension")).stopped
        'finished'
    """

    def __init__(
        self,
        nats: float,
        per: str = "latent",
        *,
        num_particles: int = 1,
        max_plate_nesting: float = math.inf,
    ):
        super().__init__(num_particles, max_plate_nesting=max_plate_nesting)
        self.nats = check_positive("FreeBits: nats", nats, zero=True)
        if per not in _GROUPS:
            raise ValueError(f"FreeBits: unknown per={per!r}; choose one of {_GROUPS}.")
        self.per = per

    def _loss(self, found: Particles) -> Tensor:
        rates = dimension_rates if self.per == "dimension" else latent_rates
        loss = -found.elbo
        for name, rate in rates(found).items():
            rate = torch.atleast_1d(rate.double().mean(0))
            scale = found.scale_of(name)
            free = self.nats * (scale * torch.ones_like(rate)).sum(-1)
            # max(λ, rate) = rate + max(0, λ − rate)
            loss = loss + (free - (scale * rate).sum(-1)).clamp(min=0).sum()
        return loss
