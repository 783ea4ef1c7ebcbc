"""Log-weights: every quantity that vilvm reports about a model is a function of them.

For latents z, an observation x, a model p(x | z) p(z) and a guide q(z | x), the log-weights are

    log w = log p(x | z) + log p(z) − log q(z | x),   z ~ q(z | x),

for every Monte Carlo sample and every datum. Their mean over samples is the ELBO, their
log-mean-exp is the importance-weighted bound, and their tail gives the Pareto k̂. ``log_weights``
runs the pair, with all samples in parallel if that equals the single-sample run
(``vilvm.weights._vectorisation``), and returns the three terms by site. Plate and
``poutine.scale`` factors are not applied but returned separately: inside a log-mean-exp a scale is
not a weight on a datum but a power of its likelihood, and the result would not be a bound.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import pyro
import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_number
from vilvm._runtime.results import Result, frame_of
from vilvm.lvm import (
    LatentVariableModel,
    NonFiniteError,
    evaluation_mode,
    module_parameters,
)
from vilvm.weights._conditioning import drawn_values
from vilvm.weights._enumeration import run_model
from vilvm.weights._guide_runs import run_guide
from vilvm.weights._passes import Pass, Values
from vilvm.weights._reduction import log_densities, total
from vilvm.weights._sites import own_values
from vilvm.weights._supports import guide_sites, scored_guide
from vilvm.weights._vectorisation import run_at_samples
from vilvm.weights.checks import as_batch
from vilvm.weights.layout import Layout, find_layout

__all__ = [
    "LogWeights",
    "log_weights",
    "log_weights_pass",
    "sample_pass",
    "weigh",
    "weight_chunks",
]


@dataclass(frozen=True, repr=False)
class LogWeights(Result):
    """Log-densities of a model and its guide for every Monte Carlo sample and datum, in nats.

    Each tensor has shape (num_samples, num_data) if its site stands in the data plate, else
    (num_samples,). Sums over sites or over a plate are float64.

    Arguments:
        log_likelihoods: log p(x | z) by observed site, with enumerated latents summed over; sites
            that depend on an enumerated latent form one term, "x+y".
        log_priors: log p(z) by latent, joined likewise.
        log_guides: log q(z | x) by site of the guide (the latents, and auxiliary sites of an
            autoguide).
        model_scales: the factor that plates and ``poutine.scale`` put on each site of the model;
            not applied here.
        guide_scales: the factor on each site of the guide; not applied here.
        latents: the draws by latent, shape (num_samples, num_data, ...), as ``posterior`` returns
            them.
        indices: for a data plate that subsamples, the indices of its data; else None.
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
        """log p(x | z), summed over observed sites."""
        return total(self.log_likelihoods.values())

    @property
    def log_prior(self) -> Tensor:
        """log p(z), summed over latents, and over the data if they share a latent."""
        return total(self.log_priors.values())

    @property
    def log_guide(self) -> Tensor:
        """log q(z | x), summed over latents, and over the data if they share a latent."""
        return total(self.log_guides.values())

    @property
    def rate(self) -> Tensor:
        """log q(z | x) − log p(z), summed over latents; its mean is the rate.

        Empty without latents.
        """
        return total(term for term in (self.log_guide, -self.log_prior) if term.numel())

    @property
    def log_weight(self) -> Tensor:
        """log w = log p(x | z) + log p(z) − log q(z | x), shape (num_samples, num_data).

        Shape (num_samples,) if the model has no data plate, or if the data share a latent: then
        the weight does not factorise over the data and belongs to all of them together.
        """
        return total(term for term in (self.log_likelihood, -self.rate) if term.numel())

    @property
    def num_samples(self) -> int:
        """The number of Monte Carlo samples."""
        return len(self.log_likelihood)

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row a sample and datum, or a sample of all data jointly.

        Columns: sample, datum; log_likelihood, log_prior, log_guide and log_weight, in nats.
        """
        log_w = self.log_weight.detach().reshape(self.num_samples, -1)
        columns: dict[str, Any] = {
            "sample": torch.arange(len(log_w)).repeat_interleave(log_w.shape[1]),
            "datum": torch.arange(log_w.shape[1]).repeat(len(log_w)),
        }
        for name in ("log_likelihood", "log_prior", "log_guide"):
            term = getattr(self, name).detach()
            # a term may be of each datum where the weight is of all
            if term.numel() > log_w.numel():
                term = term.sum(-1)
            if not term.numel():
                term = torch.zeros_like(log_w)
            columns[name] = term.flatten()
        return frame_of({**columns, "log_weight": log_w.flatten()})

    def _headline(self) -> Mapping[str, Any]:
        return {
            "num_samples": self.num_samples,
            "num_data": self.log_weight[0].numel(),
            "latents": list(self.log_priors),
        }


def log_weights(
    lvm: LatentVariableModel,
    batch: Any,
    num_samples: int = 1,
    *,
    chunk: int | None = None,
    validate: bool = True,
    layout: Layout | None = None,
) -> LogWeights:
    """Draws `num_samples` latents from the guide for every datum, and computes their log-weights.

    Samples are drawn in parallel if that equals the single-sample run. The pair runs in evaluation
    mode. The result is differentiable if autograd is on.

    Arguments:
        lvm: the model and guide.
        batch: what both are called with.
        num_samples: Monte Carlo samples per datum.
        chunk: samples per pass, which bounds memory; all at once by default.
        validate: whether Pyro validates parameters and values; NaN raises in any case.
        layout: the layout of this very batch; by default a run of the pair finds it.

    Returns:
        LogWeights of shape (num_samples, num_data), in nats per datum; (num_samples,) without a
        data plate.

    Raises:
        ContractError: see ``find_layout``.
        NonFiniteError: a ContractError: a log-density is NaN or +inf; the message names site and
            datum.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6)
        >>> weights = vilvm.log_weights(lvm, x, num_samples=10, chunk=5)
        >>> weights.log_weight.shape, sorted(weights.log_priors)
        (torch.Size([10, 4]), ['z'])
    """
    chunk = num_samples if chunk is None else chunk
    with evaluation_mode(lvm):
        chunks = list(
            weight_chunks(
                lvm, batch, num_samples, chunk, validate=validate, layout=layout
            )
        )
    if len(chunks) == 1:
        return chunks[0]
    return _concatenate(chunks)


def weight_chunks(
    lvm: LatentVariableModel,
    batch: Any,
    num_samples: int,
    chunk: int,
    *,
    validate: bool = True,
    layout: Layout | None = None,
) -> Iterator[LogWeights]:
    """The LogWeights of ``log_weights`` in chunks, so that memory does not grow with samples.

    Arguments:
        lvm: the model and guide.
        batch: what both are called with.
        num_samples: Monte Carlo samples per datum.
        chunk: samples per pass.
        validate: whether Pyro validates parameters and values.
        layout: the layout of this very batch; by default a run of the pair finds it.

    Returns:
        An iterator of LogWeights of shape (chunk, num_data), in nats per datum; the last may be
        smaller.

    Raises:
        ContractError: as ``log_weights``.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights import weight_chunks
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6)
        >>> [chunk.num_samples for chunk in weight_chunks(lvm, x, num_samples=10, chunk=4)]
        [4, 4, 2]
    """
    num_samples = check_number("num_samples", num_samples)
    chunk = check_number("chunk", chunk)
    batch = as_batch(lvm, batch)
    if layout is None:
        layout = find_layout(lvm, batch, validate)
    for done in range(0, num_samples, chunk):
        # Batch and parameters are the same in every pass, so one check of them is enough.
        first, size = done == 0, min(chunk, num_samples - done)
        yield weigh(lvm, batch, size, layout, validate=validate and first, check=first)


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
        lvm: the model and guide.
        batch: what both are called with.
        num_samples: Monte Carlo samples per datum.
        layout: the layout of this very batch.
        validate: whether Pyro validates parameters and values.
        check: whether some samples are compared with the single-sample run; unnecessary in further
            passes of a batch.

    Returns:
        LogWeights of shape (num_samples, num_data), in nats per datum.

    Raises:
        NonFiniteError: a log-density is NaN or +inf; the message names site and datum.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights import find_layout, weigh
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6)
        >>> weigh(lvm, x, 10, find_layout(lvm, x)).log_weight.shape
        torch.Size([10, 4])
    """
    with module_parameters(lvm), pyro.validation_enabled(validate):
        values = run_at_samples(
            lvm,
            batch,
            num_samples,
            log_weights_pass(lvm, layout),
            vectorisation=layout.vectorisation,
            check=check,
        )
        weights = _read(values, layout)
    _check_nan(weights)
    return weights


def sample_pass(
    lvm: LatentVariableModel,
    batch: Any,
    layout: Layout,
    num_samples: int | None = None,
) -> LogWeights:
    """The LogWeights of one pass, without checks, so that it can be traced.

    It reads no tensor's value once the strategy for the samples of these batches is known.

    Arguments:
        lvm: the model and guide.
        batch: what both are called with.
        layout: the layout of a batch of this shape.
        num_samples: Monte Carlo samples per datum; None for the single-sample run.

    Returns:
        LogWeights of shape (num_samples or 1, num_data), in nats per datum.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights import find_layout, sample_pass
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6)
        >>> sample_pass(lvm, x, find_layout(lvm, x)).log_weight.shape
        torch.Size([1, 4])
    """
    pass_ = log_weights_pass(lvm, layout)
    with module_parameters(lvm), pyro.validation_enabled(False):
        if num_samples is None:
            return _read(pass_.run(batch, {}, None), layout)
        values = run_at_samples(
            lvm,
            batch,
            num_samples,
            pass_,
            vectorisation=layout.vectorisation,
            traced=True,
        )
        return _read(values, layout)


def log_weights_pass(lvm: LatentVariableModel, layout: Layout) -> Pass:
    """The pass of guide and model that computes the terms of the log-weights, and the latents.

    Arguments:
        lvm: the model and guide.
        layout: the layout of the batches that it runs on.

    Returns:
        A Pass whose values are "log_guides", "log_priors", "log_likelihoods", "latents" and
        "drawn", each by site, in nats.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights import find_layout
        >>> from vilvm.weights.log_weights import log_weights_pass
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6)
        >>> log_weights_pass(lvm, find_layout(lvm, x)).run(x, {}, 3)["log_priors"]["z"].shape
        torch.Size([3, 4])
    """
    guide_half = scored_guide(lvm, layout.masked)

    def run_both(
        batch: Any, given: Mapping[str, Tensor], num_samples: int | None
    ) -> Values:
        trace = run_guide(guide_half, batch, given, num_samples, layout)
        model = run_model(
            lvm.model, batch, (trace, layout.fixed_subsample()), num_samples, layout
        )
        guide, size = guide_sites(trace), num_samples or 1
        latents = {name: guide[name] for name in layout.latents}
        return {
            "log_guides": log_densities("guide", guide, num_samples, layout),
            "log_priors": model.log_priors,
            "log_likelihoods": model.log_likelihoods,
            "latents": own_values(latents, size, layout.nesting),
            "drawn": drawn_values(guide, size, layout.nesting),
        }

    return Pass(run_both, "log-weights")


def _read(values: Values, layout: Layout) -> LogWeights:
    return LogWeights(
        log_likelihoods=values["log_likelihoods"],
        log_priors=values["log_priors"],
        log_guides=values["log_guides"],
        model_scales={
            n: s for n, s in layout.model_scales.items() if n not in layout.enumerated
        },
        guide_scales=layout.guide_scales,
        latents=values["latents"],
        indices=layout.subsample.get(layout.data_plate or "", {}).get("value"),
    )


def _concatenate(chunks: list[LogWeights]) -> LogWeights:
    terms = ("log_likelihoods", "log_priors", "log_guides", "latents")
    joined = {
        term: {
            n: torch.cat([getattr(c, term)[n] for c in chunks])
            for n in getattr(chunks[0], term)
        }
        for term in terms
    }
    rest = {
        f.name: getattr(chunks[0], f.name)
        for f in fields(LogWeights)
        if f.name not in terms
    }
    return LogWeights(**joined, **rest)


def _check_nan(weights: LogWeights) -> None:
    # The guide first: a NaN that it draws spreads to the other terms.
    kinds = {
        "log-guide density": weights.log_guides,
        "log-prior": weights.log_priors,
        "log-likelihood": weights.log_likelihoods,
    }
    for kind, terms in kinds.items():
        for name, value in terms.items():
            # A NaN or +inf anywhere makes the sum NaN or +inf, so finite values need one sum only.
            if bool(_is_nan_or_inf(value.detach().sum())) and bool(
                _is_nan_or_inf(value).any()
            ):
                raise _non_finite(kind, name, value)


def _is_nan_or_inf(value: Tensor) -> Tensor:
    return torch.isnan(value) | (value == float("inf"))


def _non_finite(kind: str, name: str, value: Tensor) -> NonFiniteError:
    bad = _is_nan_or_inf(value)
    sample, *datum = bad.nonzero()[0].tolist()
    where = "".join(f" for datum {i} of the batch" for i in datum)
    return NonFiniteError(
        f"The {kind} of site {name!r} is {value[(sample, *datum)].item()}{where} "
        f"({int(bad.sum())} of {bad.numel()} values); look for NaN in the parameters, or a scale "
        "that reached zero."
    )
