"""The total correlation of the code, penalised.

The mean rate over the data, with the aggregate posterior q(z) = (1/N) Σₙ q(z | xₙ), is

    E KL(q(z | x) ‖ p(z)) = I(x; z) + KL(q(z) ‖ Πᵢ q(zᵢ)) + Σᵢ KL(q(zᵢ) ‖ p(zᵢ)).

The second term, the total correlation TC, is zero if the dimensions of the code are independent.
The β-VAE weights all three by β; here β weights TC alone, so that the code need not lose
information about x for the sake of independence:

    loss = −ELBO + (β − 1) TC.

q(z) is a sum over all N data and is estimated on a mini-batch of M (minibatch-weighted sampling),

    log q(zₙ) ≈ log Σ_m q(zₙ | x_m) − log (N M),      and likewise each log q(zₙᵢ),

which is biased, less so the larger M is. N changes the value of TC but not its gradient. In a
model of several latents one of them is penalised; its density may depend on the draws of others.

Reference: Isolating Sources of Disentanglement in Variational Autoencoders, Chen, Li, Grosse and
Duvenaud, 2018.
"""

import math

from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_positive
from vilvm.lvm import ContractError
from vilvm.objectives._particle_objective import ParticleObjective
from vilvm.weights.particles import Particles
from vilvm.weights.rate_terms import cross_densities

__all__ = ["BetaTC"]


class BetaTC(ParticleObjective):
    """Minus the ELBO, plus β − 1 times the total correlation of a latent.

    Arguments:
        beta: the weight of the total correlation; 1 gives minus the ELBO.
        num_data: N, the number of all data; the full size of the data plate by default.
        latent: the latent; by default the only one. The guide must factorise over its dimensions.
        num_particles: draws per datum.
        max_plate_nesting: dimensions that plates take; guessed by default.

    Raises:
        ValueError: a number is out of range.
        ContractError: in use: the latent does not stand in the data plate, or its guide does not
            factorise; or there are several latents and none is named.

    Reference: Isolating Sources of Disentanglement in Variational Autoencoders, Chen, Li, Grosse
    and Duvenaud, 2018.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.objectives import BetaTC
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(20, 6)
        >>> objective = BetaTC(beta=6.0, num_data=20)
        >>> vilvm.fit(lvm, x, steps=20, batch_size=5, objective=objective).stopped
        'finished'
    """

    def __init__(
        self,
        beta: float,
        num_data: int | None = None,
        latent: str | None = None,
        *,
        num_particles: int = 1,
        max_plate_nesting: float = math.inf,
    ):
        super().__init__(num_particles, max_plate_nesting=max_plate_nesting)
        self.beta = check_positive("BetaTC: beta", beta)
        self.num_data = num_data
        if num_data is not None:
            self.num_data = check_number("BetaTC: num_data", num_data)
        self.latent = latent

    def _loss(self, found: Particles) -> Tensor:
        name = self._name(found)
        densities = cross_densities(found, name).double()
        number = densities.shape[1] * (self.num_data or found.full_size)
        joint = densities.sum(-1).logsumexp(2) - math.log(number)
        single = densities.logsumexp(2) - math.log(number)
        correlation = (joint - single.sum(-1)).mean(0)
        return (
            -found.elbo + (self.beta - 1) * (found.scale_of(name) * correlation).sum()
        )

    def _name(self, found: Particles) -> str:
        """The latent whose total correlation is penalised."""
        names = list(found.weights.latents)
        if self.latent is None and len(names) > 1:
            raise ContractError(
                f"BetaTC: the model has the latents {names}; name one of them (latent=...)."
            )
        name = names[0] if self.latent is None else self.latent
        if name not in names:
            raise ContractError(
                f"BetaTC: no latent is called {name!r}; there are {names}."
            )
        return name
