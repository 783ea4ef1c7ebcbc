"""The doubly reparameterised gradient of the importance-weighted bound.

With L = log (1/k) Σᵢ wᵢ, w̃ᵢ = wᵢ/Σⱼwⱼ and zᵢ = z(εᵢ, φ), the gradient in the guide's parameters
φ is

    ∇_φ L = Σᵢ w̃ᵢ (∂ log wᵢ/∂zᵢ · dzᵢ/dφ − ∂ log q_φ(zᵢ)/∂φ).

The second term is a score function, whose noise does not vanish as k grows while the signal does.
For any f, E_q f(z) ∂ log q_φ(z)/∂φ = E ∂f/∂z · dz/dφ: reparameterise once more. With f = w̃ᵢ, and
∂w̃ᵢ/∂zᵢ = (w̃ᵢ − w̃ᵢ²) ∂ log wᵢ/∂zᵢ, the expectation becomes

    E ∇_φ L = E Σᵢ w̃ᵢ² ∂ log wᵢ/∂zᵢ · dzᵢ/dφ,

without a score function. The gradient in the model's parameters stays E Σᵢ w̃ᵢ ∇_θ log wᵢ.

So the loss is −Σᵢ w̃ᵢ log wᵢ with constant w̃, log q passes its gradient to the draws alone, and
the gradient in each draw is multiplied by w̃ᵢ once more. With several latents that holds for all
of them together, z = (z₁, z₂, …). With k = 1 it is ``STL``.

Reference: Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives, Tucker, Lawson,
Gu and Maddison, 2019.
"""

import math

from torch import Tensor

from vilvm.objectives._particle_objective import ParticleObjective
from vilvm.objectives.iwae import importance_weighted_loss
from vilvm.weights.particles import Particles

__all__ = ["DReG"]


class DReG(ParticleObjective):
    """``IWAE`` with the doubly reparameterised gradient: the same bound, less noise in the guide.

    A guide of several latents runs twice a step, so it may draw no noise outside its sites
    (dropout). A flow in the guide needs an inverse.

    Arguments:
        k: particles per datum.
        vectorize_particles: whether all particles run at once under a plate, as in Pyro's ELBOs.
        max_plate_nesting: dimensions that plates take; guessed by default.

    Raises:
        ValueError: k is below 1.
        ContractError: in use: as for ``IWAE``; or the guide draws noise outside its sites.

    Reference: Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives, Tucker,
    Lawson, Gu and Maddison, 2019.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.objectives import DReG
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(20, 6)
        >>> vilvm.fit(lvm, x, steps=20, objective=DReG(5)).stopped
        'finished'
    """

    path_only = True

    def __init__(
        self,
        k: int,
        vectorize_particles: bool = True,
        max_plate_nesting: float = math.inf,
    ):
        super().__init__(k, vectorize_particles, max_plate_nesting)

    def _loss(self, found: Particles) -> Tensor:
        # logsumexp passes w̃ to log w; scaled draws multiply by w̃ once more
        found.scale_gradients(found.weights.log_weight.detach().softmax(0))
        return importance_weighted_loss(found)
