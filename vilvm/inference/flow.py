"""Skewness and tails beyond a Gaussian: sinh-arcsinh margins, then coupling flows.

Both are fitted in the coordinates of a Gaussian. The margins maximise the ELBO on fixed draws; the
flow is trained by stochastic steps (``vilvm.inference._flow``).

References: Sinh-arcsinh distributions, Jones and Pewsey, 2009; Density estimation using Real NVP,
Dinh, Sohl-Dickstein and Bengio, 2017; Disentangling impact of capacity, objective, batchsize,
estimators, and step-size on flow VI, Agrawal and Domke, 2024.
"""

from typing import Any

from vilvm._runtime.argument_checks import check_number, check_seed
from vilvm._runtime.random import seeded
from vilvm.inference._approximations import Gaussian, pair_of
from vilvm.inference._best_gaussian import best_gaussian
from vilvm.inference._fixed_draws import best_skewed
from vilvm.inference._flow import flow_of, train
from vilvm.inference._preparation import own_model, prepare_data, target_of
from vilvm.inference._start import start_of
from vilvm.lvm import ContractError
from vilvm.wrappers.in_float64 import InFloat64

__all__ = ["fit_flow"]


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
        >>> round(vilvm.evaluate(lvm, y, num_samples=1000).bounds["elbo"].mean, 1)
        -5.1
    """
    layers = check_number("fit_flow: layers", layers, least=0)
    steps, seed = (
        check_number("fit_flow: steps", steps),
        check_seed("fit_flow: seed", seed),
    )
    plain, batch = own_model(lvm), prepare_data(data)
    with seeded(seed, purpose="training"):
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
        train(target, flow, steps)
        return pair_of(plain, batch, [flow])
