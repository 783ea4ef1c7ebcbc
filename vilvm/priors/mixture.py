"""The mixture prior: K diagonal Gaussians that are trained with the model.

    p(z) = Σₖ πₖ N(z; μₖ, diag σₖ²).

It is the mixture that a VampPrior (``priors.vamp``) is compared with: its components are free
parameters, not posteriors of the guide.

Reference: VAE with a VampPrior, Jakub M. Tomczak and Max Welling, 2018, section 3.
"""

from typing import Any

import pyro.distributions as dist
import torch
from torch import nn

from vilvm._runtime.argument_checks import check_number
from vilvm._runtime.rebuildable import rebuildable
from vilvm.distributions import NormalMixture

__all__ = ["Mixture"]


@rebuildable
class Mixture(nn.Module):
    """p(z) = Σₖ πₖ N(μₖ, diag σₖ²), trained with the model.

    It starts near N(0, I): means are drawn from N(0, I), weights are equal and scales are 1.
    In a model: ``z = pyro.sample("z", self.prior())``.

    Arguments:
        latent_dim: d, the size of z.
        components: K.

    Raises:
        ValueError: a size is not a whole number, at least 1.

    Reference: VAE with a VampPrior, Jakub M. Tomczak and Max Welling, 2018.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.priors import Mixture
        >>> x = torch.rand(50, 6).round()
        >>> lvm = VAE(data_dim=6, latent_dim=2, prior=Mixture(2, components=5))
        >>> vilvm.fit(lvm, x, steps=20).stopped
        'finished'
    """

    def __init__(self, latent_dim: int, components: int = 10):
        super().__init__()
        dim = check_number("Mixture: latent_dim", latent_dim)
        size = check_number("Mixture: components", components)
        self.logits = nn.Parameter(torch.zeros(size))
        self.locs = nn.Parameter(torch.randn(size, dim))
        self.log_scales = nn.Parameter(torch.zeros(size, dim))

    def forward(self, encode: Any = None) -> dist.TorchDistribution:
        """p(z), of batch shape () and event shape (d,).

        Arguments:
            encode: not used; a ``VampPrior`` needs it, and all priors are called alike.

        Returns:
            The distribution.
        """
        return NormalMixture(self.logits, self.locs, self.log_scales.exp())
