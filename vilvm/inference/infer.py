"""A posterior in one call.

``infer`` climbs a ladder, and stops as soon as the answer is good enough:

1. paths of Newton's method (of L-BFGS in many dimensions), from the prior and a wide box;
2. the Gaussian of largest ELBO in coordinates whitened there, on fixed draws;
3. importance weights, Pareto-smoothed, whose k̂ judges it; a mixture with wider Gaussians and the
   paths' own, skewed margins, a flow (without chains), if their weights are better;
4. many short chains in its coordinates, until they agree.

Latents of hierarchical priors are also tried in standard units; the larger ELBO decides.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from vilvm._runtime.argument_checks import (
    check_number,
    check_positive,
    check_seed,
    optional,
)
from vilvm._runtime.random import seeded
from vilvm.data._column_names import (
    check_columns,
    column_names,
    set_columns,
    training_columns,
)
from vilvm.diagnostics.diagnose import import_all
from vilvm.inference._answer import answer
from vilvm.inference._clock import Clock, Shown
from vilvm.inference._ladder import climb
from vilvm.inference._names import named, names_of
from vilvm.inference._preparation import in_float64, own_model
from vilvm.inference._stochastic import climb_in_batches
from vilvm.inference.posterior import Posterior

__all__ = ["infer"]


def infer(
    model: Any,
    data: Any,
    *,
    budget: float = 60.0,
    guides: Literal["auto", "gaussian"] = "auto",
    refine: Literal["auto"] | bool = "auto",
    batch_size: int | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Posterior:
    """Finds the posterior of a model's latents, checks it, and hands over draws of it.

    All latents are inferred jointly, so that their number is limited to some thousands. Discrete
    ones must be enumerated and are summed over. Learnable parameters (``pyro.param``, networks)
    keep their values.

    Arguments:
        model: a Pyro model, called with the data: a function, a module, or a pair, whose guide is
            ignored. Priors may be flat (``ImproperUniform``).
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum per row.
        budget: seconds, with imports; exceeded by more than a fifth only if one run of the model,
            a Newton step, or the compiling of chains takes so long.
        guides: "auto", or "gaussian" without skewed margins.
        refine: whether chains may refine the approximation; "auto" if its weights are not good.
        batch_size: data of a gradient, if they are too many to see at every one: the start comes
            from one batch, the Gaussian is fitted to batches, and only the weights see all data,
            once. There is no refinement then, and deterministic sites are left out.
        coords: by dimension, the name of each index, such as {"school": names}, as for
            ``export.to_datatree``; by default the row labels of a frame name the plate over them.
        dims: by site, names for its dimensions except those of draws and data.
        seed: of all draws.
        progress: whether to show the rung, k̂ and the time left.

    Returns:
        Posterior.

    Raises:
        ContractError: the model has no continuous latent, has a discrete one that is not
            enumerated, fails on the data, or has no proper posterior.
        ValueError: bad data or options, or coords or dims do not fit.

    References: Pathfinder, Zhang et al., 2022; Black Box Variational Inference with a
    Deterministic Objective, Giordano, Ingram and Broderick, 2024; Pareto Smoothed Importance
    Sampling, Vehtari et al., 2024; An Adaptive-MCMC Scheme for Setting Trajectory Lengths in
    Hamiltonian Monte Carlo, Hoffman, Radul and Sountsov, 2021.

    Examples:
        >>> import pyro, torch, vilvm
        >>> import pyro.distributions as dist
        >>> def model(data):
        ...     x, y = data
        ...     flat = dist.ImproperUniform(dist.constraints.positive, (), ())
        ...     slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
        ...     sigma = pyro.sample("sigma", flat)
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(slope * x, sigma), obs=y)
        >>> x = torch.linspace(1900.0, 2000.0, 30)
        >>> posterior = vilvm.infer(model, (x, 3 * x + torch.randn(30)), progress=False)
        >>> posterior.trusted, round(posterior.summary()["slope"].mean, 2)
        (True, 3.0)
    """
    budget = check_positive("infer: budget", budget, "number of seconds")
    seed = check_seed("infer: seed", seed)
    batch_size = optional(check_number, "infer: batch_size", batch_size)
    _check_options(guides, refine)
    with Shown(budget, progress) as show, seeded(seed):
        clock = Clock(budget, show)
        import_all()  # before the rungs share the time
        plain, given = own_model(model), in_float64(data)
        check_columns(given, training_columns(model), "data")
        names = names_of(plain, given, coords, dims)
        if batch_size is not None and batch_size < len(given):
            whole, r_hat = climb_in_batches(plain, given, batch_size, clock)
            posterior = answer(whole, given.x, clock, True, r_hat)
        else:
            refine = refine is not False
            found = climb(plain, given.x, clock, refine, guides == "auto")
            posterior = answer(found, given.x, clock, refine)
        set_columns(posterior.lvm, column_names(given))
        return named(posterior, names)


def _check_options(guides: Any, refine: Any) -> None:
    if guides not in ("auto", "gaussian"):
        raise ValueError(
            f"infer: unknown guides={guides!r}; choose 'auto' or 'gaussian'."
        )
    if not (refine == "auto" or isinstance(refine, bool)):
        raise ValueError(
            f"infer: unknown refine={refine!r}; choose 'auto', True or False."
        )
