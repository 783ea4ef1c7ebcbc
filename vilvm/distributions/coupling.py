"""RealNVP's coupling layers, conditioned or not.

A layer keeps the first half of its dimensions, a = u₁…u_h, and moves the others by an affine map
whose coefficients are a network of a, and of a context c if there is one,

    v₁…v_h = a,    v_{h+1}…v_d = exp(s(a, c)) ⊙ u_{h+1}…u_d + t(a, c),    log |∂v/∂u| = Σ s(a, c).

The order of the dimensions is reversed between the layers. Both directions take one pass through
each network, so the density is exact, and as cheap as a draw, at any value. s lies between −5 and
3. The layers start near the identity.

Reference: Density estimation using Real NVP, Dinh, Sohl-Dickstein and Bengio, 2017.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from pyro.nn import ConditionalDenseNN
from torch import Tensor, nn

from vilvm._runtime.argument_checks import check_number, check_sizes

__all__ = ["CouplingLayers", "start_near_zero"]

_START = 0.01  # share of a usual start: training from a random flow may end in a poor optimum


class CouplingLayers(nn.Module):
    """Coupling layers that map draws of a base distribution; see ``priors.RealNVP``.

    Arguments:
        dim: d, the number of dimensions, at least 2.
        layers: number of layers.
        hidden: sizes of the hidden layers of each network.
        context_dim: the size of the context c; 0 for none.

    Raises:
        ValueError: a size is not a whole number, or below its least value.

    Reference: Density estimation using Real NVP, Dinh, Sohl-Dickstein and Bengio, 2017.

    Examples:
        >>> import torch
        >>> import pyro.distributions as dist
        >>> from vilvm.distributions import CouplingLayers
        >>> flow = CouplingLayers(2)
        >>> flow(dist.Normal(torch.zeros(2), 1.0).to_event(1)).log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        dim: int,
        layers: int = 4,
        hidden: Sequence[int] = (64, 64),
        context_dim: int = 0,
    ):
        super().__init__()
        self.dim = check_number("RealNVP: the dimension of a flow", dim, least=2)
        layers = check_number("RealNVP: layers", layers)
        context_dim = check_number("RealNVP: context_dim", context_dim, least=0)
        sizes = list(check_sizes("RealNVP: hidden", hidden))
        self.kept = self.dim // 2
        moved = [self.dim - self.kept] * 2  # t and s
        self.networks = nn.ModuleList(
            ConditionalDenseNN(self.kept, context_dim, sizes, moved, nn.SiLU())
            for _ in range(layers)
        )
        for network in self.networks:
            start_near_zero(network.layers[-1])  # pyright: ignore

    def forward(
        self, base: dist.TorchDistribution, context: Tensor | None = None
    ) -> dist.TransformedDistribution:
        """The distribution of a draw of `base` that all layers have mapped.

        Arguments:
            base: of event shape (d,), before the first layer.
            context: c, shape (..., context_dim), which broadcasts with the draws.

        Returns:
            A distribution of event shape (d,).
        """
        return dist.TransformedDistribution(base, self.steps(context))

    def steps(self, context: Tensor | None = None) -> list[Any]:
        """The transforms that all layers apply, the first one first.

        They are made anew at each call, since Pyro's transforms keep the last tensors that they
        saw.

        Arguments:
            context: as of ``forward``.
        """
        if context is None:
            context = next(self.parameters()).new_zeros(0)
        reverse = transforms.Permute(
            torch.arange(self.dim - 1, -1, -1, device=context.device)
        )
        steps: list[Any] = []
        for network in self.networks:
            moved = partial(network, context=context)
            steps += [transforms.AffineCoupling(self.kept, moved), reverse]
        return steps


@torch.no_grad()
def start_near_zero(layer: nn.Module) -> None:
    """Shrinks the start of the last layer of a flow's network, so that the flow does little.

    Arguments:
        layer: a layer, changed in place.

    Examples:
        >>> import torch
        >>> from vilvm.distributions.coupling import start_near_zero
        >>> layer = torch.nn.Linear(4, 4)
        >>> start_near_zero(layer)
        >>> layer.weight.abs().max().item() < 0.01
        True
    """
    for parameter in layer.parameters():
        parameter.mul_(_START)
