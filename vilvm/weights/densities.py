"""Log-weights: what everything that vilvm says about a model is a function of.

For latents z, an observation x, a model p(x | z) p(z) and a guide q(z | x), every quantity that vilvm reports is a function of

    log w = log p(x | z) + log p(z) − log q(z | x),   z ~ q(z | x),

kept for every Monte Carlo sample and every datum. Their mean over samples is the ELBO, their log-mean-exp the
importance-weighted bound, their tail the Pareto k̂. ``log_weights`` runs the pair once, all samples in parallel under one
outer plate, and returns the three terms by site, with plate and ``poutine.scale`` factors taken out and kept beside them:
inside a log-mean-exp a scale is no longer a weight on a datum but a power of its likelihood, so no bound would be left.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import pyro
import torch
from torch import Tensor

from vilvm.lvm import ContractError, LatentVariableModel, NonFiniteError, module_parameters
from vilvm.weights.contract import check_batch, check_number
from vilvm.weights.enumeration import run_model
from vilvm.weights.structure import Layout, guide_sites, held_still, layout
from vilvm.weights.traces import log_prob, run, strip

__all__ = ["LogWeights", "log_weights", "one_pass", "weight_chunks"]


@dataclass(frozen=True)
class LogWeights:
    """Log-densities of a model and its guide, in nats, for every Monte Carlo sample and every datum.

    Each tensor has shape (num_samples, num_data) if its site stands in the data plate, else (num_samples,). What is summed, over
    sites or over a plate, is float64.

    Arguments:
        log_likelihoods: log p(x | z) by observed site, enumerated latents summed over; those that depend on one are one, "x+y".
        log_priors: log p(z) by latent.
        log_guides: log q(z | x) by site of the guide (the latents, and auxiliary sites of an autoguide).
        model_scales: the factor that plates and ``poutine.scale`` put on each site of the model; not applied here.
        guide_scales: likewise of the guide.
        latents: the draws that are weighed, by latent, as ``posterior`` returns them.
        indices: for a plate that subsamples its data, which data the columns are; else None.
    """

    log_likelihoods: dict[str, Tensor]
    log_priors: dict[str, Tensor]
    log_guides: dict[str, Tensor]
    model_scales: dict[str, float | Tensor]
    guide_scales: dict[str, float | Tensor]
    latents: dict[str, Tensor]
    indices: Tensor | None = None

    @property
    def log_likelihood(self) -> Tensor:
        """log p(x | z), all observed sites together."""
        return total(self.log_likelihoods.values())

    @property
    def log_prior(self) -> Tensor:
        """log p(z), all latents together; summed over the data if a latent is shared by them."""
        return total(self.log_priors.values())

    @property
    def log_guide(self) -> Tensor:
        """log q(z | x), all latents together; summed over the data if a latent is shared by them."""
        return total(self.log_guides.values())

    @property
    def rate(self) -> Tensor:
        """log q(z | x) − log p(z), all latents together, whose mean is the rate; empty if there is no latent."""
        return total(term for term in (self.log_guide, -self.log_prior) if term.numel())

    @property
    def log_weight(self) -> Tensor:
        """log w = log p(x | z) + log p(z) − log q(z | x).

        Shape (num_samples, num_data); (num_samples,) if the model has no data plate, or if a latent is shared by the data,
        whose weights then do not factorise: the weight is that of all data together.
        """
        return total(term for term in (self.log_likelihood, -self.rate) if term.numel())

    @property
    def num_samples(self) -> int:
        """The number of Monte Carlo samples."""
        return len(self.log_likelihood)


def total(terms: Iterable[Tensor]) -> Tensor:
    """The sum, in float64, of terms of shapes (S, N) and (S,): (S, N) if all are, else (S,). Empty without terms."""
    kept = [t.double() for t in terms]
    if any(t.dim() == 1 for t in kept):
        kept = [t.sum(-1) if t.dim() == 2 else t for t in kept]
    return sum(kept[1:], kept[0]) if kept else torch.empty(0)


def log_weights(
    lvm: LatentVariableModel,
    batch: Any,
    num_samples: int = 1,
    *,
    chunk: int | None = None,
    validate: bool = True,
    plan: Layout | None = None,
) -> LogWeights:
    """Draws `num_samples` latents from the guide for every datum of the batch, and weighs them.

    All samples are drawn in parallel, in as many passes as `chunk` asks for. Differentiable where autograd is on.

    Arguments:
        lvm: the model and guide.
        batch: what both are called with.
        num_samples: Monte Carlo samples a datum.
        chunk: samples a pass, which bounds memory; all at once by default.
        validate: whether Pyro checks that parameters and values lie where they must; without it, NaN is still found and named.
        plan: the layout of this very batch, which a run of the pair finds if it is not given.

    Returns:
        LogWeights of shape (num_samples, num_data), in nats per datum; (num_samples,) without a data plate.

    Raises:
        ContractError: see ``layout``; or a log-density is NaN, named by site and datum.

    Example:
        >>> import torch, vilvm
        >>> from models.vae import VAE
        >>> weights = vilvm.log_weights(VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6), num_samples=10, chunk=5)
        >>> weights.log_weight.shape, sorted(weights.log_priors)
        (torch.Size([10, 4]), ['z'])
    """
    chunks = list(weight_chunks(lvm, batch, num_samples, num_samples if chunk is None else chunk, validate, plan))
    return chunks[0] if len(chunks) == 1 else _concatenate(chunks)


def weight_chunks(
    lvm: LatentVariableModel, batch: Any, num_samples: int, chunk: int, validate: bool = True, plan: Layout | None = None
) -> Iterator[LogWeights]:
    """The LogWeights of ``log_weights``, `chunk` samples at a time, for use in constant memory.

    `plan` is the layout of this very batch; it is found by a run of the pair if it is not given.
    """
    check_number("num_samples", num_samples)
    check_number("chunk", chunk)
    check_batch(batch)
    plan = layout(lvm, batch, validate) if plan is None else plan
    done = 0
    while done < num_samples:
        size = min(chunk, num_samples - done)
        # The batch and the parameters are the same in every pass, so Pyro's checks of them are worth making once.
        weights = one_pass(lvm, batch, size, plan, validate and done == 0)
        _check_nan(weights)
        yield weights
        done += size


def one_pass(lvm: LatentVariableModel, batch: Any, num_samples: int, plan: Layout, validate: bool = False) -> LogWeights:
    """The LogWeights of one run of guide and model; without Pyro's checks no tensor's value is read, so that it can be traced."""
    with module_parameters(lvm), pyro.validation_enabled(validate):
        return _run_both(lvm, batch, num_samples, plan)


def _run_both(lvm: LatentVariableModel, batch: Any, num_samples: int, plan: Layout) -> LogWeights:
    samples, fixed = (num_samples, plan.sample_dim), held_still(plan)
    guide_trace = run(lvm.guide, "guide", batch, fixed, samples=samples)
    guide = guide_sites(guide_trace)

    def reduce(in_data: bool, value: Tensor) -> Tensor:
        return reduced(in_data, value, num_samples, plan)

    model = run_model(lvm.model, batch, (guide_trace, fixed), num_samples, plan, reduce)
    return LogWeights(
        log_likelihoods=model.log_likelihoods,
        log_priors=model.log_priors,
        log_guides={n: reduce(plan.is_in_data(s), log_prob("guide", s)) for n, s in guide.items()},
        model_scales={n: s["scale"] for n, s in model.sites.items()},
        guide_scales={n: s["scale"] for n, s in guide.items()},
        latents={n: strip(guide[n]["value"], guide[n], num_samples, plan.nesting) for n in plan.latents},
        indices=plan.subsample.get(plan.data_plate or "", {}).get("value"),
    )


def reduced(in_data: bool, value: Tensor, num_samples: int, plan: Layout) -> Tensor:
    """A log-density of shape (S, *plates) summed over every plate but the data's: (S, N), or (S,) outside the data plate."""
    dims = plan.nesting + 1
    if value.dim() > dims:
        raise ContractError(
            f"A log-density has shape {tuple(value.shape)} under {num_samples} samples, and {dims} dimensions are declared, that of the samples and "
            "those of the plates: let model and guide keep leading dimensions as they are, and sum over those of one datum, counted from the right."
        )
    value = value.reshape((1,) * (dims - value.dim()) + value.shape)
    if value.shape[0] != num_samples:
        value = value.expand(num_samples, *value.shape[1:])
    keep = {0} | ({dims + plan.data_dim} if in_data and plan.data_dim is not None else set())
    summed = [d for d in range(dims) if d not in keep]
    return value.sum(summed, dtype=torch.float64) if summed else value  # of many terms, float32 would lose the last digits


def _concatenate(chunks: list[LogWeights]) -> LogWeights:
    terms = ("log_likelihoods", "log_priors", "log_guides", "latents")
    joined = {f: {n: torch.cat([getattr(c, f)[n] for c in chunks]) for n in getattr(chunks[0], f)} for f in terms}
    rest = {f.name: getattr(chunks[0], f.name) for f in fields(LogWeights) if f.name not in terms}
    return LogWeights(**joined, **rest)


def _check_nan(weights: LogWeights) -> None:
    for kind, terms in (
        ("log-guide density", weights.log_guides),  # first, for a NaN that is drawn there spreads to the others
        ("log-prior", weights.log_priors),
        ("log-likelihood", weights.log_likelihoods),
    ):
        for name, value in terms.items():
            # A NaN or +inf anywhere makes the sum NaN or +inf: one scan without a mask where all is well.
            total = value.detach().sum()
            if bool(torch.isnan(total) | (total == float("inf"))):
                bad = torch.isnan(value) | (value == float("inf"))
                if bool(bad.any()):
                    place = bad.nonzero()[0].tolist()
                    datum = f" for datum {place[1]} of the batch" if len(place) == 2 else ""
                    raise NonFiniteError(
                        f"The {kind} of site {name!r} is {value[tuple(place)].item()}{datum} ({int(bad.sum())} of {bad.numel()} values); "
                        "look for NaN in the parameters, or a scale that reached zero."
                    )
