"""Given draws of a model's latents, by chain, as an ArviZ DataTree.

The draws are those of ``infer``, or of another program. The model adds what it says of them:

    posterior              z, and every ``pyro.deterministic`` f(z), if no latent is enumerated
    log_likelihood         log p(x | z), by observed site, in nats
    posterior_predictive   x̃ ~ p(x | z), for some of the draws
    observed_data          x, as the model observes it
    constant_data          the other tensors of the data

so that ``az.summary`` (R̂ and effective sample sizes of chains), ``az.loo`` and the plots apply.

Reference: ArviZ: a modular and flexible library for exploratory analysis of Bayesian models,
Martin et al., 2026.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_seed
from vilvm._runtime.random import seeded
from vilvm.diagnostics._given_density import ModelDensity
from vilvm.diagnostics._given_draws import in_chunks, spaced_rows
from vilvm.export._attributes import library_versions, protocol_of
from vilvm.export._dimensions import build_tree, check_coords, dimension_names
from vilvm.export._groups import constant_data, missing_groups
from vilvm.export._variables import Groups, Variable, as_variable
from vilvm.lvm import ContractError
from vilvm.weights.generated_quantities import Replay, derived_values, replay
from vilvm.weights.likelihoods import log_likelihoods

__all__ = ["draws_to_datatree"]

_WHO = "draws_to_datatree"


@torch.no_grad()
def draws_to_datatree(
    draws: Mapping[str, Any],
    model: Any,
    data: Any,
    *,
    num_predictive: int = 1000,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> xr.DataTree:
    """Draws of the posterior of a model as a DataTree, with what the model says of them.

    A variable has the dimensions (chain, draw, *its own). The axis of the plate over the data has
    that plate's name; any other axis is called "SITE_dim_0", "SITE_dim_1", and so on, unless
    `dims` names it.

    Arguments:
        draws: by latent, and by deterministic site if known, shape (chain, draw, *event); tensors
            or arrays. Enumerated latents may be left out.
        model: a Pyro model, called with the data; the guide of a pair is ignored. It runs in
            float64.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum a row.
        num_predictive: most draws in posterior_predictive, evenly spaced, as many of each chain.
        coords: by dimension, its coordinates, such as {"county": names}; 0, 1, … by default; see
            ``to_datatree``.
        dims: by site, names for its dimensions except those of draws and data.
        seed: of predictive draws and transform; torch's generators are restored.

    Returns:
        The DataTree, with log-likelihoods in nats. Its attributes hold the model, the protocol of
        the data, versions, and the reason if posterior_predictive is left out.

    Raises:
        ValueError: a latent has no draws, or draws of another shape; or coords or dims do not fit.
        ContractError: the model cannot be used.

    Reference: ArviZ: a modular and flexible library for exploratory analysis of Bayesian models,
    Martin et al., 2026.

    Examples:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from vilvm.export import draws_to_datatree
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> tree = draws_to_datatree({"mu": torch.randn(4, 50)}, model, torch.zeros(3))
        >>> dict(tree.log_likelihood.y.sizes)
        {'chain': 4, 'draw': 50, 'data': 3}
    """
    num_predictive = check_number(f"{_WHO}: num_predictive", num_predictive)
    seed = check_seed(f"{_WHO}: seed", seed)
    with seeded(seed):
        density = ModelDensity(model, data, seed, _WHO)
        chains, given = _checked(draws, density)
        groups, missing = _groups(density, given, chains, num_predictive)
    names = dimension_names(groups, density.joint.layout.data_plate, dims or {})
    used = check_coords(groups, names, coords or {})
    attrs = {
        **library_versions(),
        "model": getattr(model, "__name__", type(model).__name__),
        **protocol_of(density.data),
        "seed": seed,
        "draws": "given",
        **missing,
    }
    return build_tree(groups, names, used, attrs, chains)


def _checked(
    draws: Mapping[str, Any], density: ModelDensity
) -> tuple[int, dict[str, Tensor]]:
    """The number of chains, and the draws, shape (S, *event), one chain after another.

    Raises:
        ValueError: see ``draws_to_datatree``.
    """
    known = [*density.shapes, *sorted(density.extra)]
    if not isinstance(draws, Mapping):
        raise ValueError(
            f"{_WHO}: draws must be a dict of arrays by latent; got a {type(draws).__name__}."
        )
    for name in density.shapes:
        if name not in draws:
            raise ValueError(
                f"{_WHO}: there are no draws of the latent {name!r}; got {sorted(draws)}."
            )
    given: dict[str, Tensor] = {}
    first = torch.as_tensor(draws[next(iter(density.shapes))])
    leading = tuple(first.shape[:2])
    for name, value in draws.items():
        if name not in known:
            raise ValueError(
                f"{_WHO}: the model has no site {name!r}; it has {known}: leave these draws out."
            )
        tensor = torch.as_tensor(value)
        _check_shape(name, tensor, leading, density.shapes.get(name))
        given[name] = tensor.to(density.device).flatten(0, 1)
    return len(first), given


def _check_shape(
    name: str, draws: Tensor, leading: tuple[int, ...], event: tuple[int, ...] | None
) -> None:
    """Raises ValueError unless the draws have the shape (chain, draw, *event)."""
    if event is None:  # of a deterministic site
        event = tuple(draws.shape[2:])
    if draws.dim() < 2 or 0 in leading or draws.shape != (*leading, *event):
        raise ValueError(
            f"{_WHO}: the draws of {name!r} have shape {tuple(draws.shape)}; they must have "
            f"(chain, draw, *event), here {(*leading, *event)}."
        )


def _groups(
    density: ModelDensity, given: dict[str, Tensor], chains: int, num_predictive: int
) -> tuple[Groups, dict[str, str]]:
    """The groups, and why posterior_predictive is missing."""
    batch, layout = density.data.x, density.joint.layout
    latents = {name: given[name].double() for name in density.shapes}
    missing = missing_groups(density.lvm, batch, layout).get("posterior_predictive")
    try:
        run = _replayed(density, _thinned(latents, chains, num_predictive))
    except ContractError as error:
        run, missing = Replay({}, {}, {}, {}, dict(layout.data_axes)), str(error)
    values = dict(given)
    if set(layout.derived) - set(given):
        values = _derived(density, latents) | values
    observed = {n: as_variable(v, _axis(run, n, 1)) for n, v in run.recorded.items()}
    groups: Groups = {
        "posterior": _variables(run, values),
        "log_likelihood": _likelihoods(density, latents),
        "posterior_predictive": {} if missing else _variables(run, run.observed),
        "observed_data": observed,
        **constant_data(batch, observed),
    }
    why = {"no posterior_predictive": missing} if missing else {}
    return {name: group for name, group in groups.items() if group}, why


def _variables(run: Replay, values: Mapping[str, Tensor]) -> dict[str, Variable]:
    return {n: as_variable(v, _axis(run, n)) for n, v in values.items()}


def _axis(run: Replay, site: str, less: int = 0) -> int | None:
    """The axis of a site that is over the data, in draws or `less` in one of them."""
    axis = run.data_axes.get(site)
    return None if axis is None else axis - less


def _thinned(latents: dict[str, Tensor], chains: int, most: int) -> dict[str, Tensor]:
    """At most `most` draws, evenly spaced, as many of each chain."""
    index = spaced_rows(len(next(iter(latents.values()))), chains, most)
    return {name: value[index] for name, value in latents.items()}


def _replayed(density: ModelDensity, latents: dict[str, Tensor]) -> Replay:
    """Predictive draws at the latents."""
    runs = [
        replay(density.lvm, density.data.x, part, layout=density.joint.layout)
        for part in in_chunks(latents, density.chunk)
    ]
    return runs[0]._replace(observed=_joined([run.observed for run in runs]))


def _derived(density: ModelDensity, latents: dict[str, Tensor]) -> dict[str, Tensor]:
    """Deterministic values at the latents."""
    layout = density.joint.layout
    return _joined(
        [
            derived_values(density.lvm, density.data.x, part, layout)
            for part in in_chunks(latents, density.chunk)
        ]
    )


def _likelihoods(
    density: ModelDensity, latents: dict[str, Tensor]
) -> dict[str, Variable]:
    layout = density.joint.layout
    found = _joined(
        [
            log_likelihoods(density.lvm, density.data.x, part, layout=layout)
            for part in in_chunks(latents, density.chunk)
        ]
    )
    return {
        name: as_variable(value, 1 if value.dim() > 1 else None)
        for name, value in found.items()
    }


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
