"""Sticking the landing: the gradient of the ELBO without its score function.

With z = z(ε, φ), the ELBO's reparameterised gradient in the guide's parameters is

    ∇_φ [log p(x, z) − log q_φ(z | x)] = ∂/∂z [log p(x, z) − log q_φ(z | x)] · dz/dφ
                                         − ∂ log q_φ(z | x)/∂φ,

and the last term, at fixed z, is a score function: its expectation is zero. Without it the
estimator is still unbiased. At q(z | x) = p(z | x) the bracket is the constant log p(x), so the
path derivative vanishes for every draw: the gradient has no noise at the optimum. Far from it, the
full gradient may be the less noisy one; ``vilvm.diagnostics.gradient_snr`` compares them.

Every site has its own factor of plates and ``poutine.scale``, as in Pyro's Trace_ELBO, so the
estimator serves mini-batches, latents that the data share, and KL warm-up.

Reference: Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational
Inference, Roeder, Wu and Duvenaud, 2017.
"""

import math

from torch import Tensor

from vilvm.objectives._particle_objective import ParticleObjective
from vilvm.weights.particles import Particles

__all__ = ["STL"]


class STL(ParticleObjective):
    """Minus the ELBO; log q passes its gradient to the draws alone.

    A guide of several latents runs twice a step, so it may draw no noise outside its sites
    (dropout). A flow in the guide needs an inverse.

    Arguments:
        num_particles: draws per datum, whose ELBOs are averaged.
        vectorize_particles: whether all particles run at once under a plate, as in Pyro's ELBOs.
        max_plate_nesting: dimensions that plates take; guessed by default.

    Raises:
        ValueError: num_particles is below 1.
        ContractError: in use: a draw is not reparameterised, or the guide draws noise outside its
            sites.

    Reference: Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational
    Inference, Roeder, Wu and Duvenaud, 2017.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.objectives import STL
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(20, 6)
        >>> vilvm.fit(lvm, x, steps=20, objective=STL()).stopped
        'finished'
    """

    path_only = True
    is_sum = True

    def __init__(
        self,
        num_particles: int = 1,
        vectorize_particles: bool = True,
        max_plate_nesting: float = math.inf,
    ):
        super().__init__(num_particles, vectorize_particles, max_plate_nesting)

    def _loss(self, found: Particles) -> Tensor:
        return -found.elbo
