"""Log-weights: what everything that vilvm says about a model is a function of.

For latents z, an observation x, a model p(x | z) p(z) and a guide q(z | x), every quantity that
vilvm reports is a function of

    log w = log p(x | z) + log p(z) − log q(z | x),   z ~ q(z | x),

kept for every Monte Carlo sample and every datum. Their mean over samples is the ELBO, their
log-mean-exp the importance-weighted bound, their tail the Pareto k̂. ``log_weights`` runs the
pair, all samples in parallel where that equals the single-sample run
(``vilvm.weights._vectorisation``), and returns the three terms by site, with plate and
``poutine.scale`` factors taken out and kept beside them: inside a log-mean-exp a scale is no
longer a weight on a datum but a power of its likelihood, so no bound would be left.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import pyro
import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_number
from vilvm.lvm import (
    ContractError,
    LatentVariableModel,
    NonFiniteError,
    evaluation_mode,
    module_parameters,
)
from vilvm.weights._enumeration import run_model
from vilvm.weights._supports import guide_sites, scored_guide
from vilvm.weights._traces import Put, Sites, family, log_prob, run, strip, to_put
from vilvm.weights._vectorisation import Pass, Values, at_samples
from vilvm.weights.checks import check_batch
from vilvm.weights.layout import Layout, find_layout, held_still

__all__ = [
    "LogWeights",
    "drawn_values",
    "log_weights",
    "log_weights_pass",
    "reducer",
    "sample_pass",
    "total",
    "weigh",
    "weight_chunks",
]


@dataclass(frozen=True)
class LogWeights:
    """Log-densities of a model and its guide, in nats, for every Monte Carlo sample and every
    datum.

    Each tensor has shape (num_samples, num_data) if its site stands in the data plate, else
    (num_samples,). What is summed, over sites or over a plate, is float64.

    Arguments:
        log_likelihoods: log p(x | z) by observed site, enumerated latents summed over; those that
            depend on one are one, "x+y".
        log_priors: log p(z) by latent; likewise.
        log_guides: log q(z | x) by site of the guide (the latents, and auxiliary sites of an
            autoguide).
        model_scales: the factor that plates and ``poutine.scale`` put on each site of the model;
            not applied here.
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
        """log q(z | x) − log p(z), all latents together, whose mean is the rate; empty if there is
        no latent.
        """
        return total(term for term in (self.log_guide, -self.log_prior) if term.numel())

    @property
    def log_weight(self) -> Tensor:
        """log w = log p(x | z) + log p(z) − log q(z | x).

        Shape (num_samples, num_data); (num_samples,) if the model has no data plate, or if a
        latent is shared by the data, whose weights then do not factorise: the weight is that of
        all data together.
        """
        return total(term for term in (self.log_likelihood, -self.rate) if term.numel())

    @property
    def num_samples(self) -> int:
        """The number of Monte Carlo samples."""
        return len(self.log_likelihood)


def total(terms: Iterable[Tensor]) -> Tensor:
    """The sum, in float64, of terms of shapes (S, N) and (S,): (S, N) if all are, else (S,).

    Empty without terms.
    """
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
    layout: Layout | None = None,
) -> LogWeights:
    """Draws `num_samples` latents from the guide for every datum of the batch, and weighs them.

    Samples are drawn in parallel where that equals the single-sample run, in as many passes as
    `chunk` asks for. The pair is in evaluation mode meanwhile. Differentiable where autograd is
    on.

    Arguments:
        lvm: the model and guide.
        batch: what both are called with.
        num_samples: Monte Carlo samples a datum.
        chunk: samples a pass, which bounds memory; all at once by default.
        validate: whether Pyro checks that parameters and values lie where they must; without it,
            NaN is still found and named.
        layout: the layout of this very batch, which a run of the pair finds if it is not given.

    Returns:
        LogWeights of shape (num_samples, num_data), in nats per datum; (num_samples,) without a
        data plate.

    Raises:
        ContractError: see ``find_layout``; or a log-density is NaN, named by site and datum.

    Example:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> weights = vilvm.log_weights(VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6), num_samples=10, chunk=5)
        >>> weights.log_weight.shape, sorted(weights.log_priors)
        (torch.Size([10, 4]), ['z'])
    """
    with evaluation_mode(lvm):
        chunks = list(
            weight_chunks(
                lvm, batch, num_samples, num_samples if chunk is None else chunk, validate, layout
            )
        )
    return chunks[0] if len(chunks) == 1 else _concatenate(chunks)


def weight_chunks(
    lvm: LatentVariableModel,
    batch: Any,
    num_samples: int,
    chunk: int,
    validate: bool = True,
    layout: Layout | None = None,
) -> Iterator[LogWeights]:
    """The LogWeights of ``log_weights``, `chunk` samples at a time, for use in constant memory.

    `layout` is the layout of this very batch; it is found by a run of the pair if it is not given.
    """
    num_samples = check_number("num_samples", num_samples)
    chunk = check_number("chunk", chunk)
    check_batch(batch)
    layout = find_layout(lvm, batch, validate) if layout is None else layout
    done = 0
    while done < num_samples:
        size = min(chunk, num_samples - done)
        # The batch and the parameters are the same in every pass, so one check of them is enough.
        yield weigh(lvm, batch, size, layout, validate=validate and done == 0, check=done == 0)
        done += size


def weigh(
    lvm: LatentVariableModel,
    batch: Any,
    num_samples: int,
    layout: Layout,
    *,
    validate: bool = False,
    check: bool = True,
) -> LogWeights:
    """The LogWeights of one pass.

    Arguments:
        lvm, batch, num_samples, layout: as of ``log_weights``.
        validate: whether Pyro checks that parameters and values lie where they must.
        check: whether some samples are compared with the single-sample run; not needed again for
            the same batch.
    """
    with module_parameters(lvm), pyro.validation_enabled(validate):
        weights = _read(
            at_samples(
                lvm,
                batch,
                num_samples,
                log_weights_pass(lvm, layout),
                ways=layout.ways,
                check=check,
            ),
            layout,
        )
    _check_nan(weights)
    return weights


def sample_pass(
    lvm: LatentVariableModel, batch: Any, layout: Layout, num_samples: int | None = None
) -> LogWeights:
    """The LogWeights of one pass of `num_samples`, or, without them, of the single-sample run.

    Nothing is checked, and no tensor's value is read once the way is known that the samples of
    these batches take, so it can be traced.
    """
    one = log_weights_pass(lvm, layout)
    with module_parameters(lvm), pyro.validation_enabled(False):
        values = (
            one.run(batch, {}, None)
            if num_samples is None
            else at_samples(lvm, batch, num_samples, one, ways=layout.ways, traced=True)
        )
        return _read(values, layout)


def log_weights_pass(lvm: LatentVariableModel, layout: Layout) -> Pass:
    """A run of guide and model: the terms of a log-weight, and the latents, by kind and site."""
    guide_half = scored_guide(lvm, layout.masked)

    def run_both(batch: Any, given: Mapping[str, Tensor], num_samples: int | None) -> Values:
        samples, fixed = layout.samples(num_samples), held_still(layout)
        with Put(given, num_samples, layout.nesting):
            guide_trace = run(guide_half, "guide", batch, fixed, samples=samples)
        guide, reduce, size = (
            guide_sites(guide_trace),
            reducer(num_samples, layout),
            num_samples or 1,
        )
        model = run_model(lvm.model, batch, (guide_trace, fixed), num_samples, layout, reduce)
        return {
            "log_guides": {
                n: reduce(layout.is_in_data(s), log_prob("guide", s)) for n, s in guide.items()
            },
            "log_priors": model.log_priors,
            "log_likelihoods": model.log_likelihoods,
            "latents": {
                n: strip(guide[n]["value"], guide[n], size, layout.nesting) for n in layout.latents
            },
            "drawn": drawn_values(guide, size, layout),
        }

    return Pass(run_both, "log-weights")


def drawn_values(sites: Sites, num_samples: int, layout: Layout) -> dict[str, Tensor]:
    """The values that follow from no other site, as ``Put`` takes them."""
    drawn = {
        n: s
        for n, s in sites.items()
        if family(s["fn"]) not in ("Delta", "Unit") and not s["is_observed"]
    }
    return dict(to_put(n, s, num_samples, layout.nesting) for n, s in drawn.items())


def _read(values: Values, layout: Layout) -> LogWeights:
    return LogWeights(
        log_likelihoods=values["log_likelihoods"],
        log_priors=values["log_priors"],
        log_guides=values["log_guides"],
        model_scales={n: s for n, s in layout.model_scales.items() if n not in layout.enumerated},
        guide_scales=layout.guide_scales,
        latents=values["latents"],
        indices=layout.subsample.get(layout.data_plate or "", {}).get("value"),
    )


def reducer(num_samples: int | None, layout: Layout) -> Callable[[bool, Tensor], Tensor]:
    """``reduced`` for a run under a plate over samples, or, if `num_samples` is None, for the
    single-sample run.
    """
    return lambda in_data, value: reduced(in_data, value, num_samples or 1, layout)


def reduced(in_data: bool, value: Tensor, num_samples: int, layout: Layout) -> Tensor:
    """A log-density of shape (S, *plates) summed over every plate but the data's: (S, N), or (S,)
    outside the data plate.
    """
    dims = layout.nesting + 1
    if value.dim() > dims:
        raise ContractError(
            f"A log-density has shape {tuple(value.shape)} under {num_samples} samples, and "
            f"{dims} dimensions are declared, that of the samples and "
            "those of the plates: let model and guide keep leading dimensions as they are, and "
            "sum over those of one datum, counted from the right."
        )
    value = value.reshape((1,) * (dims - value.dim()) + value.shape)
    if value.shape[0] != num_samples:
        value = value.expand(num_samples, *value.shape[1:])
    keep = {0} | ({dims + layout.data_dim} if in_data and layout.data_dim is not None else set())
    summed = [d for d in range(dims) if d not in keep]
    # of many terms, float32 would lose the last digits
    return value.sum(summed, dtype=torch.float64) if summed else value


def _concatenate(chunks: list[LogWeights]) -> LogWeights:
    terms = ("log_likelihoods", "log_priors", "log_guides", "latents")
    joined = {
        f: {n: torch.cat([getattr(c, f)[n] for c in chunks]) for n in getattr(chunks[0], f)}
        for f in terms
    }
    rest = {f.name: getattr(chunks[0], f.name) for f in fields(LogWeights) if f.name not in terms}
    return LogWeights(**joined, **rest)


def _check_nan(weights: LogWeights) -> None:
    for kind, terms in (
        # first, for a NaN that is drawn there spreads to the others
        ("log-guide density", weights.log_guides),
        ("log-prior", weights.log_priors),
        ("log-likelihood", weights.log_likelihoods),
    ):
        for name, value in terms.items():
            # A NaN or +inf anywhere makes the sum NaN or +inf: one scan without a mask where all
            # is well.
            total = value.detach().sum()
            if bool(torch.isnan(total) | (total == float("inf"))):
                bad = torch.isnan(value) | (value == float("inf"))
                if bool(bad.any()):
                    place = bad.nonzero()[0].tolist()
                    datum = f" for datum {place[1]} of the batch" if len(place) == 2 else ""
                    raise NonFiniteError(
                        f"The {kind} of site {name!r} is {value[tuple(place)].item()}{datum} "
                        f"({int(bad.sum())} of {bad.numel()} values); "
                        "look for NaN in the parameters, or a scale that reached zero."
                    )
