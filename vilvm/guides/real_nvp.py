"""RealNVP as an amortised guide: coupling layers conditioned on the datum.

The encoder returns a mean, a log-variance and a context c of a datum. z is a draw of the amortised
Gaussian (``guides.normal``), mapped by coupling layers whose networks read c
(``distributions.coupling``). Both directions take one pass, so log q(z | x) is exact and cheap at
draws and at given values.

Reference: Density estimation using Real NVP, Dinh, Sohl-Dickstein and Bengio, 2017.
"""

from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor, nn

from vilvm._runtime.rebuildable import rebuildable
from vilvm.distributions import CouplingLayers
from vilvm.guides.normal import normal

__all__ = ["RealNVP"]


@rebuildable
class RealNVP(nn.Module):
    """q(z | x) of a conditioned RealNVP flow, called with the output of an encoder.

    Arguments:
        latent_dim: d, the size of z, at least 2.
        context_dim: the size of the context c.
        layers: number of coupling layers.
        hidden: sizes of the hidden layers of each layer's network.

    Attributes:
        in_dim: the size of the encoder's output, 2 d + context_dim.

    Raises:
        ValueError: a size is not a whole number, or below its least value.

    Reference: Density estimation using Real NVP, Dinh, Sohl-Dickstein and Bengio, 2017.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.guides import RealNVP
        >>> from vilvm.models.vae import VAE
        >>> x = torch.rand(50, 6).round()
        >>> lvm = VAE(data_dim=6, latent_dim=2, head=RealNVP(2, context_dim=4, hidden=(8,)))
        >>> vilvm.fit(lvm, x, steps=20).stopped
        'finished'
    """

    def __init__(
        self,
        latent_dim: int,
        context_dim: int = 32,
        layers: int = 4,
        hidden: Sequence[int] = (64,),
    ):
        super().__init__()
        self.layers = CouplingLayers(latent_dim, layers, hidden, context_dim)
        self.in_dim = 2 * self.layers.dim + int(context_dim)

    def forward(self, out: Tensor) -> dist.TransformedDistribution:
        """q(z | x).

        Arguments:
            out: an encoder's output, shape (..., in_dim): mean, log-variance and c, concatenated.

        Returns:
            A distribution of batch shape (...) and event shape (d,).
        """
        gaussian, context = out.tensor_split([2 * self.layers.dim], -1)
        return self.layers(normal(gaussian), context)
