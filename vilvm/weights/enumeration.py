"""The densities of a model, discrete latents that it marks for parallel enumeration summed over.

With a discrete latent d, which the guide leaves out, the log-likelihood given the other latents z is

    log p(x | z) = log Σ_d p(x | d, z) p(d | z),

an exact sum by Pyro's tensor variable elimination, along chains (``pyro.markov``) as along trees. Plate and ``poutine.scale`` factors are
left out of it, as they are of every other density here.

Reference: Tensor Variable Elimination for Plated Factor Graphs, Obermeyer, Bingham, Jankowiak, Pradhan, Chiu, Rush and Goodman, 2019.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

from opt_einsum import shared_intermediates
from pyro import poutine
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from torch import Tensor

from vilvm.lvm import ContractError
from vilvm.weights.structure import Layout
from vilvm.weights.traces import log_prob, run, sites_of

__all__ = ["ModelRun", "run_model"]


class ModelRun(NamedTuple):
    """A run of the model at given latents.

    Arguments:
        log_likelihoods: by observed site; those that depend on an enumerated latent are one, under their names joined by "+".
        log_priors: by latent of the guide.
        sites: the sample sites, enumerated ones left out.
    """

    log_likelihoods: dict[str, Tensor]
    log_priors: dict[str, Tensor]
    sites: dict[str, Any]


def run_model(
    model: Callable[[Any], Any],
    batch: Any,
    replay: tuple[poutine.Trace | None, ...],
    num_samples: int | None,
    plan: Layout,
    reduce: Callable[[bool, Tensor], Tensor],
) -> ModelRun:
    """Runs p(x | z) p(z) at the latents of a guide's trace, all samples in parallel.

    Arguments:
        model: called with a batch.
        batch: what it is called with.
        replay: traces from which values are taken.
        num_samples: of the plate over samples; None for the single-sample run.
        plan: the layout of this batch.
        reduce: sums a log-density over every plate but that of the data; told whether it stands in that one.

    Raises:
        ContractError: the prior of a latent depends on one that is enumerated.
    """
    if plan.enumerated:
        left = plan.sample_dim if num_samples is None else plan.sample_dim - 1
        model = poutine.enum(model, first_available_dim=left)
    trace = run(model, "model", batch, *replay, samples=plan.samples(num_samples))
    sites = {n: s for n, s in sites_of(trace).items() if n not in plan.enumerated}
    summed = _dependent(trace, sites, plan) if plan.enumerated else set()
    terms = {n: reduce(plan.is_in_data(s), log_prob("model", s)) for n, s in sites.items() if n not in summed}
    likelihoods = {n: t for n, t in terms.items() if sites[n]["is_observed"]}
    priors = {n: t for n, t in terms.items() if not sites[n]["is_observed"]}
    if summed:
        of_latents = [n for n in summed if not sites[n]["is_observed"]]
        if of_latents:
            raise ContractError(
                f"The prior of latent {of_latents[0]!r} depends on {plan.enumerated[0]!r}, which is enumerated, so no log-prior of it can be told: "
                f"sample {plan.enumerated[0]!r} in the guide too."
            )
        names = [n for n in sites if n in summed]
        in_data = all(plan.is_in_data(trace.nodes[n]) for n in (*plan.enumerated, *names))
        likelihoods["+".join(names)] = reduce(in_data, _contract(trace, [*plan.enumerated, *names], in_data, plan))
    return ModelRun(likelihoods, priors, sites)


def _dependent(trace: Any, sites: dict[str, Any], plan: Layout) -> set[str]:
    """The sites whose log-density has a dimension of an enumerated latent."""
    trace.compute_log_prob()
    trace.pack_tensors()
    enumerated = _enumerated_dims(trace)
    return {n for n, s in sites.items() if enumerated & set(s["packed"]["unscaled_log_prob"]._pyro_dims)}


def _enumerated_dims(trace: Any) -> set[str]:
    return set(trace.symbol_to_dim) - set(trace.plate_to_symbol.values())


def _contract(trace: Any, names: list[str], in_data: bool, plan: Layout) -> Tensor:
    """log Σ over the enumerated latents of the product of these densities, one for each sample (and datum)."""
    factors: OrderedDict[frozenset[str], list[Any]] = OrderedDict()
    for name in names:
        site = trace.nodes[name]
        ordinal = frozenset(trace.plate_to_symbol[f.name] for f in site["cond_indep_stack"] if f.vectorized)
        factor = site["packed"]["unscaled_log_prob"]
        if name not in plan.enumerated:  # a masked observation says nothing; a masked latent is summed over all the same
            factor = packed.scale_and_mask(factor, mask=site["packed"]["mask"])
        factors.setdefault(ordinal, []).append(factor)
    kept = {"_monte_carlo", plan.data_plate} if in_data else {"_monte_carlo"}
    present = {dim for terms in factors.values() for term in terms for dim in term._pyro_dims}  # those of size one are not
    target = frozenset(symbol for name, symbol in trace.plate_to_symbol.items() if name in kept) & present
    with shared_intermediates() as cache:
        total = contract_to_tensor(factors, _enumerated_dims(trace), target_ordinal=target, cache=cache)
    return packed.unpack(total, trace.symbol_to_dim)
