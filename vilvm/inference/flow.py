"""Skewness and tails beyond a Gaussian: sinh-arcsinh margins, then coupling flows.

Both are fitted in the coordinates of a Gaussian. The margins maximise the ELBO on fixed draws. The
flow is RealNVP: each layer moves half of the dimensions by an affine map whose coefficients are a
network of the other half. It is trained by stochastic steps, and its iterates are averaged.

References: Sinh-arcsinh distributions, Jones and Pewsey, 2009; Density estimation using Real NVP,
Dinh, Sohl-Dickstein and Bengio, 2017; Disentangling impact of capacity, objective, batchsize,
estimators, and step-size on flow VI, Agrawal and Domke, 2024.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro.distributions.transforms as transforms
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from vilvm._runtime.argument_checks import check_number, check_seed
from vilvm._runtime.random import seeded
from vilvm.inference._approximations import Approximation, Chain, Gaussian, pair_of
from vilvm.inference._best_gaussian import best_gaussian
from vilvm.inference._fixed_draws import best_skewed
from vilvm.inference._preparation import model_of, prepare_data, target_of
from vilvm.inference._start import start_of
from vilvm.inference._target import Target
from vilvm.lvm import ContractError
from vilvm.training import fit
from vilvm.wrappers.in_float64 import InFloat64, float64

__all__ = ["fit_flow", "flow_of", "train"]

_PARTICLES = 128
_AVERAGED = 0.5  # share of the steps, the last ones, whose iterates are averaged


def fit_flow(
    lvm: Any, data: Any, *, layers: int = 0, steps: int = 2000, seed: int = 0
) -> InFloat64:
    """A guide with skewed margins, or a flow, in the coordinates of the best Gaussian.

    Arguments:
        lvm: a Pyro model, whose best mode is the start; or a pair, whose guide is.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum per row.
        layers: coupling layers; 0 for skewed margins of full rank, which need no steps.
        steps: stochastic steps of the flow, of Adam with a falling rate.
        seed: of all draws.

    Returns:
        The pair of the model and the guide, in float64.

    Raises:
        ContractError: the model cannot be used (see ``infer``), or has a single dimension, which
            no coupling layer can split.

    Examples:
        >>> import pyro, torch, vilvm
        >>> import pyro.distributions as dist
        >>> from vilvm.inference import fit_flow
        >>> def model(y):
        ...     scale = pyro.sample("scale", dist.HalfNormal(1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(0.0, scale), obs=y)
        >>> y = torch.ones(3)
        >>> lvm = fit_flow(model, y)
        >>> vilvm.diagnostics.pareto_k(lvm, y).k.item() < 0.5
        True
    """
    layers = check_number("fit_flow: layers", layers, least=0)
    steps, seed = (
        check_number("fit_flow: steps", steps),
        check_seed("fit_flow: seed", seed),
    )
    plain, batch = model_of(lvm), prepare_data(data)
    with seeded(seed):
        target = target_of(plain, batch)
        gaussian, _ = best_gaussian(target, start_of(lvm, data, target), seed)
        if not layers and isinstance(gaussian, Gaussian):
            return pair_of(plain, batch, [best_skewed(target, gaussian, seed)[0]])
        if target.dim == 1:
            raise ContractError(
                "fit_flow: a coupling layer needs two dimensions, and the latents have one; take "
                "layers=0."
            )
        flow = flow_of(target, gaussian, max(1, layers))
        pair = pair_of(plain, batch, [flow])
        train(pair, batch, steps, seed)
    return pair


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
