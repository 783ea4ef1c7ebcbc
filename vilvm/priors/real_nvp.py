"""The RealNVP prior: N(0, I) mapped by coupling layers that are trained with the model.

    z = T(u),  u ~ N(0, I),    log p(z) = log N(T⁻¹(z); 0, I) − log |∂T/∂u|.

A coupling layer is inverted in one pass (``distributions.coupling``), so log p(z) is exact at the
draws of a guide.

References: Density estimation using Real NVP, Dinh, Sohl-Dickstein and Bengio, 2017; On the
Necessity and Effectiveness of Learning the Prior of Variational Auto-Encoder, Xu et al., 2019.
"""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from vilvm._runtime.rebuildable import rebuildable
from vilvm.distributions import CouplingLayers

__all__ = ["RealNVP"]


@rebuildable
class RealNVP(nn.Module):
    """p(z) of a RealNVP flow, trained with the model.

    In a model: ``z = pyro.sample("z", self.prior())``.

    Arguments:
        latent_dim: d, the size of z, at least 2.
        layers: number of coupling layers.
        hidden: sizes of the hidden layers of each layer's network.

    Raises:
        ValueError: a size is not a whole number, or below its least value.

    References: Density estimation using Real NVP, Dinh, Sohl-Dickstein and Bengio, 2017; On the
    Necessity and Effectiveness of Learning the Prior of Variational Auto-Encoder, Xu et al., 2019.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.priors import RealNVP
        >>> x = torch.rand(50, 6).round()
        >>> lvm = VAE(data_dim=6, latent_dim=2, prior=RealNVP(2))
        >>> vilvm.fit(lvm, x, steps=20).stopped
        'finished'
    """

    origin: Tensor

    def __init__(
        self, latent_dim: int, layers: int = 4, hidden: Sequence[int] = (64, 64)
    ):
        super().__init__()
        self.layers = CouplingLayers(latent_dim, layers, hidden)
        self.register_buffer("origin", torch.zeros(self.layers.dim))

    def forward(self, encode: Any = None) -> dist.TorchDistribution:
        """p(z), of batch shape () and event shape (d,).

        Arguments:
            encode: not used; a ``VampPrior`` needs it, and all priors are called alike.

        Returns:
            The distribution, which has a reparametrised gradient.
        """
        return self.layers(dist.Normal(self.origin, 1.0).to_event(1))
