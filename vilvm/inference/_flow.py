"""Coupling flows in the coordinates of a Gaussian, trained by stochastic steps.

RealNVP: each layer moves half of the dimensions by an affine map whose coefficients are a network
of the other half. The iterates of the training are averaged.

References: Density estimation using Real NVP, Dinh, Sohl-Dickstein and Bengio, 2017; Disentangling
impact of capacity, objective, batchsize, estimators, and step-size on flow VI, Agrawal and Domke,
2024.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro.distributions.transforms as transforms
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from vilvm.inference._approximations import Approximation, Chain
from vilvm.inference._target import Target
from vilvm.training import fit
from vilvm.wrappers.in_float64 import InFloat64, float64

__all__ = ["flow_of", "train"]

_PARTICLES = 128
_AVERAGED = 0.5  # share of the steps, the last ones, whose iterates are averaged


def flow_of(target: Target, gaussian: Approximation, layers: int) -> Chain:
    """Coupling layers in the coordinates of a Gaussian, which stays as it is."""
    for parameter in gaussian.parameters():
        parameter.requires_grad_(False)
    with float64():
        return Chain(Coupling(target.dim, layers), gaussian)


class Coupling(nn.Module):
    """RealNVP's layers with permutations between them, starting as the identity.

    Arguments:
        dim: D.
        layers: coupling layers.
    """

    def __init__(self, dim: int, layers: int):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(dim), requires_grad=False)
        width = [max(32, 4 * dim)] * 2
        self.layers = nn.ModuleList(
            transforms.affine_coupling(dim, width) for _ in range(layers)
        )
        for layer in self.layers:
            network: Any = layer.nn
            last = network.layers[-1]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        """u at ε of shape (S, D), and log |∂u/∂ε|, shape (S,)."""
        log_det = eps.new_zeros(len(eps))
        for layer in self.layers:
            moved = layer(eps)
            log_det = log_det + layer.log_abs_det_jacobian(eps, moved)  # pyright: ignore
            eps = moved.flip(-1)
        return eps, log_det

    def inverse(self, u: Tensor) -> Tensor:
        """ε at u of shape (S, D)."""
        for layer in reversed(self.layers):
            u = layer._inverse(u.flip(-1))  # pyright: ignore
        return u


def train(
    pair: InFloat64,
    batch: Any,
    steps: int,
    seed: int,
    is_over: Callable[[], bool] = lambda: False,
) -> None:
    """Maximises the ELBO, and sets the parameters to the mean of the last iterates.

    Arguments:
        pair: the model with the flow as its guide, which is changed in place.
        batch: the data, in float64.
        steps: of Adam, with a falling rate.
        seed: of the draws.
        is_over: whether the time is up.
    """
    trained = [p for p in pair.parameters() if p.requires_grad]
    mean = [torch.zeros_like(p) for p in trained]
    first, averaged = round(steps * (1 - _AVERAGED)), 0

    def average(_: Any, count: int) -> None:
        nonlocal averaged
        if count > first:
            averaged = count - first
            for total, parameter in zip(mean, trained, strict=True):
                total.lerp_(parameter.detach(), 1 / averaged)

    fit(
        pair,
        batch,
        steps=steps,
        objective=Trace_ELBO(num_particles=_PARTICLES, vectorize_particles=True),
        optimizer=partial(torch.optim.Adam, lr=2e-3),
        scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=steps),
        scheduler_interval="step",
        callbacks=[lambda _: is_over()],
        after_step=average,
        seed=seed,
        progress=False,
    )
    if averaged:
        with torch.no_grad():
            for total, parameter in zip(mean, trained, strict=True):
                parameter.copy_(total)
