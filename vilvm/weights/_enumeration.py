"""Densities of a model, with enumerated discrete latents summed over.

With a discrete latent d that the guide does not sample, the log-likelihood given the other latents
z is

    log p(x | z) = log Σ_d p(x | d, z) p(d | z),

an exact sum by Pyro's tensor variable elimination, along chains (``pyro.markov``) as along trees.
Where the prior of z depends on d, too, as in a mixture of priors, log p(z) = log Σ_d p(z | d) p(d)
is another such sum, and log p(x | z) = log p(x, z) − log p(z). Plate and ``poutine.scale`` factors
are left out, as in every other density here.

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
from vilvm.weights._conditioning import at_samples
from vilvm.weights._reduction import log_densities, reduce
from vilvm.weights._sites import Sites, latents_of, log_prob, observed_of, sites_of
from vilvm.weights._traces import run
from vilvm.weights.layout import Layout

__all__ = ["ModelRun", "check_drawable", "run_model"]


class ModelRun(NamedTuple):
    """A run of the model at given latents.

    Arguments:
        log_likelihoods: by observed site, shape (S, N) or (S,); those that depend on an enumerated
            latent are one term, under their names joined by "+".
        log_priors: by latent of the guide; likewise.
        sites: the sample sites, without the enumerated ones.
        dependent: the sites whose density depends on an enumerated latent.
    """

    log_likelihoods: dict[str, Tensor]
    log_priors: dict[str, Tensor]
    sites: Sites
    dependent: frozenset[str]


def run_model(
    model: Callable[[Any], Any],
    batch: Any,
    replay: tuple[poutine.Trace | None, ...],
    num_samples: int | None,
    layout: Layout,
) -> ModelRun:
    """Runs p(x | z) p(z) at the latents of a guide's trace, all samples in parallel.

    Arguments:
        model: called with a batch.
        batch: its argument.
        replay: traces from which sites take their values.
        num_samples: size of the plate over samples; None for a single-sample run.
        layout: the layout of this batch.

    Raises:
        ContractError: the model fails on this batch.
    """
    if layout.enumerated:
        model = poutine.enum(
            model, first_available_dim=_first_enumerated_dim(num_samples, layout)
        )
    trace = run(model, "model", batch, *replay, samples=layout.samples(num_samples))
    sites = sites_of(trace)
    for name in layout.enumerated:
        sites.pop(name, None)
    dependent = _dependent(trace, sites, layout)
    free = {name: site for name, site in sites.items() if name not in dependent}
    likelihoods = log_densities("model", observed_of(free), num_samples, layout)
    priors = log_densities("model", latents_of(free), num_samples, layout)
    if dependent:
        elimination = _Elimination(trace, num_samples, layout)
        likelihood, prior = elimination.likelihood_and_prior(dependent)
        likelihoods |= likelihood
        priors |= prior
    return ModelRun(likelihoods, priors, sites, frozenset(dependent))


def _first_enumerated_dim(num_samples: int | None, layout: Layout) -> int:
    """The dimension left of all plates, including the plate over samples if there is one."""
    if num_samples is None:
        return layout.sample_dim
    return layout.sample_dim - 1


def check_drawable(
    what: str, lvm: Any, batch: Any, latents: Mapping[str, Tensor], nesting: int
) -> None:
    """Raises NotApplicable if the prior of a given latent depends on an enumerated latent.

    The posterior of the enumerated latent is then unknown, so the model cannot be drawn from.

    Arguments:
        what: names the caller in the error.
        lvm: the model and guide.
        batch: what the model is called with.
        latents: draws by latent, shape (S, ...); the first draw is used.
        nesting: dimensions that the plates take.
    """
    model = poutine.enum(lvm.model, first_available_dim=-1 - nesting)
    first = {name: value[:1] for name, value in latents.items()}
    with at_samples(first, None, nesting):
        sites = sites_of(run(model, "model", batch))
    mixed = [
        n for n in latents if n in sites and log_prob("model", sites[n]).dim() > nesting
    ]
    if mixed:
        raise NotApplicable(
            f"{what}: the prior of latent {mixed[0]!r} depends on an enumerated latent, which "
            f"cannot be drawn given {mixed[0]!r}: sample the enumerated latent in the guide too."
        )


def _dependent(trace: Any, sites: Sites, layout: Layout) -> Sites:
    """The sites whose log-density has a dimension of an enumerated latent."""
    if not layout.enumerated:
        return {}
    trace.compute_log_prob()
    trace.pack_tensors()
    enumerated, dependent = _enumerated_dims(trace), {}
    for name, site in sites.items():
        if enumerated.intersection(site["packed"]["unscaled_log_prob"]._pyro_dims):
            dependent[name] = site
    return dependent


def _enumerated_dims(trace: Any) -> set[str]:
    """Pyro's symbols of the dimensions of enumerated latents."""
    return set(trace.symbol_to_dim) - set(trace.plate_to_symbol.values())


class _Elimination:
    """Sums enumerated latents out of the densities of one trace."""

    def __init__(self, trace: Any, num_samples: int | None, layout: Layout):
        self.trace, self.num_samples, self.layout = trace, num_samples, layout

    def likelihood_and_prior(
        self, sites: Sites
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """log p(x | z) and log p(z) of the sites that depend on an enumerated latent.

        Each is one term under the names of its sites joined by "+", or empty.
        """
        latents, observed = list(latents_of(sites)), list(observed_of(sites))
        enumerated = [self.trace.nodes[n] for n in self.layout.enumerated]
        in_data = all(self.layout.is_in_data(s) for s in (*enumerated, *sites.values()))
        if not latents:
            return {"+".join(observed): self._density(observed, in_data)}, {}
        prior = self._density(latents, in_data)
        priors = {"+".join(latents): prior}
        if not observed:
            return {}, priors
        joint = self._density(list(sites), in_data)  # zero where the prior is zero
        given = torch.where(prior == -torch.inf, prior, joint - prior)
        return {"+".join(observed): given}, priors

    def _density(self, names: list[str], in_data: bool) -> Tensor:
        return reduce(
            self._contract(names, in_data), in_data, self.num_samples, self.layout
        )

    def _contract(self, names: list[str], in_data: bool) -> Tensor:
        """log Σ over the enumerated latents of the product of these densities.

        Returns one number per sample, or per sample and datum if all sites are in the data plate.
        """
        factors: OrderedDict[frozenset[str], list[Any]] = OrderedDict()
        for name in (*self.layout.enumerated, *names):
            factors.setdefault(self._plates_of(name), []).append(self._factor(name))
        kept = {"_monte_carlo"}
        if in_data and self.layout.data_plate is not None:
            kept.add(self.layout.data_plate)
        symbols = {
            s for plate, s in self.trace.plate_to_symbol.items() if plate in kept
        }
        # plates of size one have no dimension in the factors
        present: set[str] = set()
        for terms in factors.values():
            present.update(*(term._pyro_dims for term in terms))
        with shared_intermediates() as cache:
            summed = contract_to_tensor(
                factors,
                _enumerated_dims(self.trace),
                target_ordinal=frozenset(symbols & present),
                cache=cache,
            )
        return packed.unpack(summed, self.trace.symbol_to_dim)

    def _plates_of(self, name: str) -> frozenset[str]:
        frames = self.trace.nodes[name]["cond_indep_stack"]
        return frozenset(
            self.trace.plate_to_symbol[f.name] for f in frames if f.vectorized
        )

    def _factor(self, name: str) -> Any:
        values = self.trace.nodes[name]["packed"]
        # a mask does not prevent the sum over an enumerated latent
        if name in self.layout.enumerated:
            return values["unscaled_log_prob"]
        return packed.scale_and_mask(values["unscaled_log_prob"], mask=values["mask"])
