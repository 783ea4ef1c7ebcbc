"""The groups of a tree for one batch: draws, densities, predictive draws and data."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vilvm.diagnostics._components import runnable
from vilvm.diagnostics.psis import psis
from vilvm.export._variables import Groups, Variable, as_variable, named_tensors
from vilvm.lvm import ContractError, LatentVariableModel
from vilvm.weights import Layout, LogWeights, log_weights
from vilvm.weights.generated_quantities import Replay, derived_values, replay
from vilvm.weights.guide_draws import picked_by_weight
from vilvm.weights.prepared import Part
from vilvm.weights.simulation import undrawable

__all__ = ["PROPOSALS", "Request", "constant_data", "groups_of", "missing_groups"]

PROPOSALS = 10  # draws of the guide for each resampled draw
_MIN_DRAWS = 25  # to estimate k̂
_PRIOR: tuple[str, ...] = ("prior", "prior_predictive")
_PREDICTIVE: tuple[str, ...] = ("posterior_predictive", "prior_predictive")


class Request(NamedTuple):
    """What to export from every batch.

    Arguments:
        num_samples: draws of the posterior.
        num_predictive: draws in the prior and the predictive groups.
        resampled: whether the draws are resampled by their weights.
        missing: the groups that the model cannot give, and why.
    """

    num_samples: int
    num_predictive: int
    resampled: bool
    missing: Mapping[str, str]

    @property
    def num_draws(self) -> int:
        """Draws of the guide."""
        if self.resampled:
            return PROPOSALS * self.num_samples
        return self.num_samples


class _Model(NamedTuple):
    """A model on one batch, and how many draws are made in one pass."""

    lvm: LatentVariableModel
    batch: Any
    layout: Layout
    chunk: int


def missing_groups(
    lvm: LatentVariableModel, batch: Any, layout: Layout
) -> dict[str, str]:
    """The groups that a model cannot give, and why."""
    factors = [n for n in layout.observed if layout.families[n] == "Unit"]
    not_drawable = undrawable(lvm, batch)
    found = {}
    if not_drawable:
        reason = f"the distribution of site {not_drawable[0]!r} cannot be drawn from"
        found = dict.fromkeys(_PREDICTIVE, reason)
    if len(factors) == len(layout.observed):
        found = dict.fromkeys(_PREDICTIVE, "the model observes nothing but factors")
    if factors:
        reason = f"running the model does not draw from its pyro.factor {factors[0]!r}"
        found |= dict.fromkeys(_PRIOR, reason)
    return found


def groups_of(part: Part, request: Request) -> Groups:
    """The groups of one batch, without the missing ones."""
    lvm, batch, layout = part.lvm, part.batch, part.layout
    chunk = part.samples_in_a_pass()
    weights = log_weights(lvm, batch, request.num_draws, chunk=chunk, layout=layout)
    groups: Groups = defaultdict(dict)
    weighable = not (layout.degenerate or layout.improper)
    if weighable:
        groups["diagnostics"]["pareto_k"] = _pareto_k(weights.log_weight)
    if request.resampled:
        weights = _resampled(weights, request.num_samples, layout)
    if weighable:
        groups["sample_stats"] = _densities(weights)
    groups |= _draws(weights, layout)
    model = _Model(runnable(lvm, batch), batch, layout, chunk)
    _add_posterior_quantities(groups, model, weights.latents, request.num_predictive)
    if not (layout.improper or "prior" in request.missing):
        _add_prior_quantities(groups, model, request.num_predictive)
    return {
        name: group for name, group in groups.items() if name not in request.missing
    }


def constant_data(batch: Any, observed: dict[str, Variable]) -> Groups:
    """The group of the tensors in the data that the model does not observe."""
    sizes = {variable.num_data for variable in observed.values()} - {None}
    known = [variable.values.ravel() for variable in observed.values()]
    found = {}
    for name, tensor in named_tensors(batch):
        values = as_variable(tensor, None).values
        if any(np.array_equal(values.ravel(), other) for other in known):
            continue
        found[name] = Variable(values, None)
        if values.ndim > 0 and len(values) in sizes:
            found[name] = Variable(values, 0)
    if not found:
        return {}
    return {"constant_data": found}


def _resampled(weights: LogWeights, num_samples: int, layout: Layout) -> LogWeights:
    if not bool((weights.log_weight.amax(0) > -torch.inf).all()):
        raise ContractError(
            "to_datatree: a datum has probability zero under all draws to be resampled; check "
            "the guide."
        )
    return picked_by_weight(weights, num_samples, layout)


def _pareto_k(log_w: Tensor) -> Variable:
    """k̂ per datum, or of all data together; NaN for few draws."""
    k = torch.full(log_w.shape[1:], torch.nan)
    if len(log_w) >= _MIN_DRAWS:
        k = psis(log_w).k
    return _per_datum(k, 0)


def _densities(weights: LogWeights) -> dict[str, Variable]:
    """log p(x, z), log q(z | x) and log w, per datum or of all data together."""
    log_w = weights.log_weight

    def like_weights(term: Tensor) -> Tensor:
        if term.dim() > log_w.dim():
            return term.double().sum(-1)
        return term.double()

    log_p = like_weights(weights.log_likelihood) + like_weights(weights.log_prior)
    terms = {
        "log_p": log_p,
        "log_q": like_weights(weights.log_guide),
        "log_weight": log_w,
    }
    return {name: _per_datum(term, 1) for name, term in terms.items()}


def _draws(weights: LogWeights, layout: Layout) -> Groups:
    """The draws of the guide, and the log-likelihood of each."""
    axes, likelihoods = layout.data_axes, weights.log_likelihoods
    return {
        "log_likelihood": {
            name: _per_datum(value, 1) for name, value in likelihoods.items()
        },
        "posterior": {
            n: as_variable(value, axes.get(n)) for n, value in weights.latents.items()
        },
    }


def _per_datum(term: Tensor, data_axis: int) -> Variable:
    """A term per datum, or, without that axis, of all data together."""
    if term.dim() <= data_axis:
        return as_variable(term, None)
    return as_variable(term, data_axis)


def _add_posterior_quantities(
    groups: Groups, model: _Model, latents: Mapping[str, Tensor], num_predictive: int
) -> None:
    """Adds observed data, predictive draws and deterministic values at the draws of the guide."""
    found: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
    axes: dict[str, int] = {}
    total = len(next(iter(latents.values())))
    for start, size in _passes(total, model.chunk):
        part = {name: value[start : start + size] for name, value in latents.items()}
        run = replay(
            model.lvm, model.batch, part, num_samples=size, layout=model.layout
        )
        axes = run.data_axes
        if start == 0:
            groups["observed_data"] = _recorded(run)
        derived = derived_values(model.lvm, model.batch, part, model.layout)
        for name, value in derived.items():
            found["posterior", name].append(value)
        for name, value in run.observed.items():
            found["posterior_predictive", name].append(
                value[: max(0, num_predictive - start)]
            )
        if start + size >= num_predictive and not derived:
            break
    _add_joined(groups, found, axes)


def _add_prior_quantities(groups: Groups, model: _Model, num_predictive: int) -> None:
    """Adds draws of the prior, with their predictive draws and deterministic values."""
    found: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
    axes: dict[str, int] = {}
    for _, size in _passes(num_predictive, model.chunk):
        run = replay(
            model.lvm, model.batch, None, num_samples=size, layout=model.layout
        )
        axes = run.data_axes
        latents = {name: run.latents[name] for name in model.layout.latents}
        for name, value in {**latents, **run.deterministics}.items():
            found["prior", name].append(value)
        for name, value in run.observed.items():
            found["prior_predictive", name].append(value)
    _add_joined(groups, found, axes)


def _recorded(run: Replay) -> dict[str, Variable]:
    """The observed values, which have no axis of draws."""
    found = {}
    for name, value in run.recorded.items():
        found[name] = as_variable(value, None)
        if name in run.data_axes:
            found[name] = as_variable(value, run.data_axes[name] - 1)
    return found


def _passes(total: int, chunk: int) -> Iterator[tuple[int, int]]:
    """Start and size of each pass over `total` draws."""
    for start in range(0, total, chunk):
        yield start, min(chunk, total - start)


def _add_joined(
    groups: Groups,
    found: Mapping[tuple[str, str], list[Tensor]],
    axes: Mapping[str, int],
) -> None:
    for (group, name), values in found.items():
        groups[group][name] = as_variable(torch.cat(values), axes.get(name))
