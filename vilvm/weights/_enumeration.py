"""The densities of a model, discrete latents that it marks for parallel enumeration summed over.

With a discrete latent d, which the guide leaves out, the log-likelihood given the other latents z
is

    log p(x | z) = log Σ_d p(x | d, z) p(d | z),

an exact sum by Pyro's tensor variable elimination, along chains (``pyro.markov``) as along trees.
Where the prior of z depends on d, too, as in a mixture of priors, log p(z) = log Σ_d p(z | d) p(d)
is another such sum, and log p(x | z) = log p(x, z) − log p(z). Plate and ``poutine.scale`` factors
are left out of it, as they are of every other density here.

Reference: Tensor Variable Elimination for Plated Factor Graphs, Obermeyer, Bingham, Jankowiak,
Pradhan, Chiu, Rush and Goodman, 2019.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from opt_einsum import shared_intermediates
from pyro import poutine
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from torch import Tensor

from vilvm.lvm import NotApplicable
from vilvm.weights._traces import Put, log_prob, run, sites_of
from vilvm.weights.layout import Layout

__all__ = ["ModelRun", "check_drawable", "run_model"]


class ModelRun(NamedTuple):
    """A run of the model at given latents.

    Arguments:
        log_likelihoods: by observed site; those that depend on an enumerated latent are one, under
            their names joined by "+".
        log_priors: by latent of the guide; likewise.
        sites: the sample sites, enumerated ones left out.
        dependent: the sites whose density depends on an enumerated latent.
    """

    log_likelihoods: dict[str, Tensor]
    log_priors: dict[str, Tensor]
    sites: dict[str, Any]
    dependent: frozenset[str]


def run_model(
    model: Callable[[Any], Any],
    batch: Any,
    replay: tuple[poutine.Trace | None, ...],
    num_samples: int | None,
    layout: Layout,
    reduce: Callable[[bool, Tensor], Tensor],
) -> ModelRun:
    """Runs p(x | z) p(z) at the latents of a guide's trace, all samples in parallel.

    Arguments:
        model: called with a batch.
        batch: what it is called with.
        replay: traces from which values are taken.
        num_samples: of the plate over samples; None for the single-sample run.
        layout: the layout of this batch.
        reduce: sums a log-density over every plate but that of the data; told whether it stands in
            that one.

    Raises:
        ContractError: the pair fails on this batch.
    """
    if layout.enumerated:
        left = layout.sample_dim if num_samples is None else layout.sample_dim - 1
        model = poutine.enum(model, first_available_dim=left)
    trace = run(model, "model", batch, *replay, samples=layout.samples(num_samples))
    sites = {n: s for n, s in sites_of(trace).items() if n not in layout.enumerated}
    summed = _dependent(trace, sites, layout) if layout.enumerated else set()
    terms = {
        n: reduce(layout.is_in_data(s), log_prob("model", s))
        for n, s in sites.items()
        if n not in summed
    }
    likelihoods = {n: t for n, t in terms.items() if sites[n]["is_observed"]}
    priors = {n: t for n, t in terms.items() if not sites[n]["is_observed"]}
    if summed:
        names = [n for n in sites if n in summed]
        latents, seen = (
            [n for n in names if not sites[n]["is_observed"]],
            [n for n in names if sites[n]["is_observed"]],
        )
        in_data = all(layout.is_in_data(trace.nodes[n]) for n in (*layout.enumerated, *names))

        def density(names: list[str]) -> Tensor:
            return reduce(in_data, _contract(trace, [*layout.enumerated, *names], in_data, layout))

        prior = density(latents) if latents else None
        if prior is not None:
            priors["+".join(latents)] = prior
        if seen:
            whole = density(names)  # where the prior is zero, so is the whole
            given = (
                whole if prior is None else torch.where(prior == -torch.inf, prior, whole - prior)
            )
            likelihoods["+".join(seen)] = given
    return ModelRun(likelihoods, priors, sites, frozenset(summed))


def check_drawable(
    what: str, lvm: Any, batch: Any, latents: Mapping[str, Tensor], nesting: int
) -> None:
    """Raises NotApplicable if the model cannot be drawn from given these latents: an enumerated
    one, given them, has no known posterior.

    Arguments:
        what: names the caller in the error.
        lvm: the model and guide.
        batch: what the model is called with.
        latents: draws by latent, shape (S, ...), of which the first is looked at.
        nesting: dimensions that the plates take.
    """
    model = poutine.enum(lvm.model, first_available_dim=-1 - nesting)
    with Put({n: v[:1] for n, v in latents.items()}, None, nesting):
        sites = sites_of(run(model, "model", batch))
    mixed = [n for n in latents if n in sites and log_prob("model", sites[n]).dim() > nesting]
    if mixed:
        raise NotApplicable(
            f"{what}: the prior of latent {mixed[0]!r} depends on one that is enumerated, of "
            "which nothing can be drawn given "
            f"{mixed[0]!r}: sample that one in the guide too."
        )


def _dependent(trace: Any, sites: dict[str, Any], layout: Layout) -> set[str]:
    """The sites whose log-density has a dimension of an enumerated latent."""
    trace.compute_log_prob()
    trace.pack_tensors()
    enumerated = _enumerated_dims(trace)
    return {
        n
        for n, s in sites.items()
        if enumerated & set(s["packed"]["unscaled_log_prob"]._pyro_dims)
    }


def _enumerated_dims(trace: Any) -> set[str]:
    return set(trace.symbol_to_dim) - set(trace.plate_to_symbol.values())


def _contract(trace: Any, names: list[str], in_data: bool, layout: Layout) -> Tensor:
    """log Σ over the enumerated latents of the product of these densities, one for each sample
    (and datum).
    """
    factors: OrderedDict[frozenset[str], list[Any]] = OrderedDict()
    for name in names:
        site = trace.nodes[name]
        ordinal = frozenset(
            trace.plate_to_symbol[f.name] for f in site["cond_indep_stack"] if f.vectorized
        )
        factor = site["packed"]["unscaled_log_prob"]
        # a masked observation says nothing; a masked latent is summed over all the same
        if name not in layout.enumerated:
            factor = packed.scale_and_mask(factor, mask=site["packed"]["mask"])
        factors.setdefault(ordinal, []).append(factor)
    kept = {"_monte_carlo", layout.data_plate} if in_data else {"_monte_carlo"}
    # those of size one are not
    present = {dim for terms in factors.values() for term in terms for dim in term._pyro_dims}
    target = (
        frozenset(symbol for name, symbol in trace.plate_to_symbol.items() if name in kept)
        & present
    )
    with shared_intermediates() as cache:
        total = contract_to_tensor(
            factors, _enumerated_dims(trace), target_ordinal=target, cache=cache
        )
    return packed.unpack(total, trace.symbol_to_dim)
