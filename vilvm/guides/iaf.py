"""The inverse autoregressive flow, an amortised guide with dependent dimensions.

The encoder returns a mean, a log-variance and a context c of a datum. z starts as a draw of the
amortised Gaussian (``guides.normal``), and every layer maps each dimension by an affine map whose
coefficients are a network of the dimensions before it and of c,

    z_i ← exp(s_i(z_{<i}, c)) z_i + t_i(z_{<i}, c),    log |∂z′/∂z| = Σᵢ s_i(z_{<i}, c).

The order of the dimensions alternates between the layers. The networks are masked (MADE) and have
a direct linear part, so one layer represents every Gaussian with a full covariance. s lies between
−5 and 3. The layers start near the identity, so the guide starts as the amortised Gaussian.

A draw and its log q take one pass through each network; training and log-weights need no more.
log q at another value (``guide_log_prob``, annealing from the guide, a VampPrior) inverts each
layer dimension by dimension, in d passes. It is exact too. For cheap densities at any value, use
``guides.RealNVP``.

Reference: Improving Variational Inference with Inverse Autoregressive Flow, Kingma, Salimans,
Jozefowicz, Chen, Sutskever and Welling, 2016.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from pyro.distributions.transforms.utils import clamp_preserve_gradients
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor, nn

from vilvm._runtime.argument_checks import check_number, check_sizes
from vilvm._runtime.rebuildable import rebuildable
from vilvm.distributions.coupling import start_near_zero
from vilvm.guides.normal import normal

__all__ = ["IAF"]


@rebuildable
class IAF(nn.Module):
    """q(z | x) of an inverse autoregressive flow, called with the output of an encoder.

    Arguments:
        latent_dim: d, the size of z, at least 2.
        context_dim: the size of the context c.
        layers: number of autoregressive layers.
        hidden: sizes of the hidden layers of each network, at least d.

    Attributes:
        in_dim: the size of the encoder's output, 2 d + context_dim.

    Raises:
        ValueError: a size is not a whole number, or below its least value.

    Reference: Improving Variational Inference with Inverse Autoregressive Flow, Kingma et al.,
    2016.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.guides import IAF
        >>> from vilvm.models.vae import VAE
        >>> x = torch.rand(50, 6).round()
        >>> lvm = VAE(data_dim=6, latent_dim=2, head=IAF(2, context_dim=4, hidden=(8,)))
        >>> vilvm.fit(lvm, x, steps=20).stopped
        'finished'
    """

    def __init__(
        self,
        latent_dim: int,
        context_dim: int = 32,
        layers: int = 2,
        hidden: Sequence[int] = (64,),
    ):
        super().__init__()
        dim = check_number("IAF: latent_dim", latent_dim, least=2)
        context_dim = check_number("IAF: context_dim", context_dim, least=0)
        sizes = list(check_sizes("IAF: hidden", hidden))
        if not sizes or min(sizes) < dim:
            raise ValueError(
                f"IAF: the hidden layers of an autoregressive network have at least latent_dim = "
                f"{dim} units; got {sizes}."
            )
        self.latent_dim, self.in_dim = dim, 2 * dim + context_dim
        forwards = list(range(dim))
        layers = check_number("IAF: layers", layers)
        self.orders = [forwards[:: (-1) ** i] for i in range(layers)]
        self.networks = nn.ModuleList(
            ConditionalAutoRegressiveNN(
                dim,
                context_dim,
                sizes,
                permutation=torch.tensor(order),  # pyright: ignore
                skip_connections=True,
                nonlinearity=nn.SiLU(),
            )
            for order in self.orders
        )
        for network in self.networks:
            for last in (network.layers[-1], network.skip_layer):  # pyright: ignore
                start_near_zero(last)  # pyright: ignore

    def forward(self, out: Tensor) -> dist.TransformedDistribution:
        """q(z | x).

        Arguments:
            out: an encoder's output, shape (..., in_dim): mean, log-variance and c, concatenated.

        Returns:
            A distribution of batch shape (...) and event shape (d,).
        """
        gaussian, context = out.tensor_split([2 * self.latent_dim], -1)
        steps = [
            _Layer(partial(network, context=context), order)
            for network, order in zip(self.networks, self.orders, strict=True)
        ]
        return dist.TransformedDistribution(normal(gaussian), steps)


class _Layer(transforms.AffineAutoregressive):
    """Pyro's layer, with an inverse that reads no value of a tensor, so that it can be traced."""

    def __init__(self, network: Callable[[Tensor], Any], order: list[int]):
        super().__init__(network)
        self.order = order

    def _inverse(self, y: Tensor) -> Tensor:
        x = list(torch.zeros_like(y).unbind(-1))
        log_scale = y
        for i in self.order:
            shift, log_scale = self.arn(torch.stack(x, -1))
            log_scale = clamp_preserve_gradients(
                log_scale, self.log_scale_min_clip, self.log_scale_max_clip
            )
            x[i] = (y[..., i] - shift[..., i]) * (-log_scale[..., i]).exp()
        self._cached_log_scale = log_scale
        return torch.stack(x, -1)
