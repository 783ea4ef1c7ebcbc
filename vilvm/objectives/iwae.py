"""The importance-weighted bound.

For one datum x, k draws z₁, …, z_k of the guide have weights wᵢ = p(x, zᵢ) / q(zᵢ | x). Each is an
unbiased estimate of p(x), and so is their mean. By Jensen's inequality

    L_k(x) = E log (1/k) Σᵢ wᵢ ≤ log p(x),    L_1 = ELBO,    L_k ≤ L_{k+1},

and L_k → log p(x) if the weights are bounded. With wᵢ/Σⱼwⱼ = w̃ᵢ its gradient is E Σᵢ w̃ᵢ ∇log wᵢ,
through the reparameterised draws. The loss is the sum over data,

    loss = −Σₙ sₙ log (1/k) Σᵢ wₙᵢ,

with sₙ the factor that a plate that subsamples, or ``poutine.scale``, puts on datum n. It stands
outside the logarithm: a mini-batch then estimates the bound of all data without bias. (As an
exponent of w, as in Pyro's RenyiELBO, it would give a number above log p(x).) All sites must have
the same factor.

If the data share a latent, the weights are joint, wᵢ = p(x₁, …, x_N, zᵢ) / q(zᵢ | x), and the loss
is −log (1/k) Σᵢ wᵢ of all data together. It needs all data in each step; a subsample is refused.

As k grows, the gradient of the decoder gains signal over noise as √k, and that of the encoder
loses it as 1/√k (Rainforth et al., 2018); ``DReG`` repairs that.

Reference: Importance Weighted Autoencoders, Burda, Grosse and Salakhutdinov, 2016.
"""

import math

from torch import Tensor

from vilvm.objectives._particle_objective import ParticleObjective
from vilvm.weights.particles import Particles

__all__ = ["IWAE", "importance_weighted_loss"]


class IWAE(ParticleObjective):
    """Minus the importance-weighted bound of k particles, per datum.

    Arguments:
        k: particles per datum; IWAE(1) is minus the ELBO.
        vectorize_particles: whether all particles run at once under a plate, as in Pyro's ELBOs.
            ``fit`` runs them one by one if the pair does not allow it.
        max_plate_nesting: dimensions that plates take; guessed by default.

    Raises:
        ValueError: k is below 1.
        ContractError: in use: a draw is not reparameterised, or sites have different factors.

    Reference: Importance Weighted Autoencoders, Burda, Grosse and Salakhutdinov, 2016.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.objectives import IWAE
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(20, 6)
        >>> vilvm.fit(lvm, x, steps=20, objective=IWAE(5)).stopped
        'finished'
    """

    def __init__(
        self,
        k: int,
        vectorize_particles: bool = True,
        max_plate_nesting: float = math.inf,
    ):
        super().__init__(k, vectorize_particles, max_plate_nesting)

    def _loss(self, found: Particles) -> Tensor:
        return importance_weighted_loss(found)


def importance_weighted_loss(found: Particles) -> Tensor:
    """−Σₙ sₙ log (1/k) Σᵢ wₙᵢ, in nats, a scalar.

    Arguments:
        found: the particles.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.objectives.iwae import importance_weighted_loss
        >>> from vilvm.weights.particles import particles
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6)
        >>> found = particles((lvm.model, lvm.guide), x, 3, nesting=1)
        >>> importance_weighted_loss(found).shape
        torch.Size([])
    """
    log_w = found.weights.log_weight
    return -(found.scale * (log_w.logsumexp(0) - math.log(len(log_w)))).sum()
