"""Log-weights: the one place where a Pyro trace is read.

For latents z, an observation x, a model p(x | z) p(z) and a guide q(z | x), every quantity that vilvm reports is a function of

    log w = log p(x | z) + log p(z) − log q(z | x),   z ~ q(z | x),

kept for every Monte Carlo sample and every datum. Their mean over samples is the ELBO, their log-mean-exp the
importance-weighted bound, their tail the Pareto k̂. ``log_weights`` runs the pair once, all samples in parallel under one
outer plate, and returns the three terms by site, with plate and ``poutine.scale`` factors taken out and kept beside them:
inside a log-mean-exp a scale is no longer a weight on a datum but a power of its likelihood, so no bound would be left.
"""

import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from vilvm.data import tensors_of
from vilvm.lvm import ContractError, LatentVariableModel, check_contract, module_parameters

__all__ = ["Layout", "LogWeights", "layout", "log_weights", "posterior", "posterior_mean", "predict", "sample", "weight_chunks"]

Sites = dict[str, Any]


@dataclass(frozen=True)
class LogWeights:
    """Log-densities of a model and its guide, in nats, for every Monte Carlo sample and every datum.

    Each tensor has shape (num_samples, num_data) if its site stands in the data plate, else (num_samples,).

    Arguments:
        log_likelihoods: log p(x | z) by observed site.
        log_priors: log p(z) by latent.
        log_guides: log q(z | x) by site of the guide (the latents, and auxiliary sites of an autoguide).
        model_scales: the factor that plates and ``poutine.scale`` put on each site of the model; not applied here.
        guide_scales: likewise of the guide.
        indices: for a plate that subsamples its data, which data the columns are; else None.
    """

    log_likelihoods: dict[str, Tensor]
    log_priors: dict[str, Tensor]
    log_guides: dict[str, Tensor]
    model_scales: dict[str, float | Tensor]
    guide_scales: dict[str, float | Tensor]
    indices: Tensor | None = None

    @property
    def log_likelihood(self) -> Tensor:
        """log p(x | z), all observed sites together."""
        return _total(self.log_likelihoods.values())

    @property
    def log_prior(self) -> Tensor:
        """log p(z), all latents together; summed over the data if a latent is shared by them."""
        return _total(self.log_priors.values())

    @property
    def log_guide(self) -> Tensor:
        """log q(z | x), all latents together; summed over the data if a latent is shared by them."""
        return _total(self.log_guides.values())

    @property
    def log_weight(self) -> Tensor:
        """log w = log p(x | z) + log p(z) − log q(z | x).

        Shape (num_samples, num_data); (num_samples,) if the model has no data plate, or if a latent is shared by the data,
        whose weights then do not factorise: the weight is that of all data together.
        """
        terms = [self.log_likelihood, self.log_prior, -self.log_guide]
        return _total(term for term in terms if term.numel())

    @property
    def num_samples(self) -> int:
        """The number of Monte Carlo samples."""
        return len(self.log_likelihood)


def _total(terms: Iterable[Tensor]) -> Tensor:
    """The sum of terms of shapes (S, N) and (S,): (S, N) if all are, else (S,). Empty without terms."""
    kept = list(terms)
    if any(t.dim() == 1 for t in kept):
        kept = [t.sum(-1) if t.dim() == 2 else t for t in kept]
    return sum(kept[1:], kept[0]) if kept else torch.empty(0)


class Layout(NamedTuple):
    """How a pair is laid out on a batch: found by running it once.

    Arguments:
        nesting: how many tensor dimensions the plates take.
        data_plate: the name of the plate over the data, or None.
        data_dim: its dimension (negative, counted from the right of the batch shape), or None.
        num_data: data in the plate; 1 without one.
        local: whether every latent stands in the data plate, so that weights are per datum.
        scale: the factor on the observed sites, by which a Pyro loss exceeds the sum over the batch.
        latents: names, in the model's order.
        observed: names, in the model's order.
        families: the distribution of each observed site, by name.
        enumerated: latents that the model marks for parallel enumeration and the guide leaves out.
        subsample: the plates that subsample their data at random, and the indices they drew.
    """

    nesting: int
    data_plate: str | None
    data_dim: int | None
    num_data: int
    local: bool
    scale: float
    latents: tuple[str, ...]
    observed: tuple[str, ...]
    families: dict[str, str]
    enumerated: tuple[str, ...]
    subsample: dict[str, Any]

    @property
    def sample_dim(self) -> int:
        """The dimension of the plate over Monte Carlo samples: left of every plate of the model."""
        return -1 - self.nesting


def layout(lvm: LatentVariableModel, batch: Any, validate: bool = True) -> Layout:
    """Runs the pair once on `batch`, holds it to the contract, and says how it is laid out.

    Arguments:
        lvm: the model and guide.
        batch: what both are called with.
        validate: whether Pyro checks that parameters and values lie where they must.

    Raises:
        ContractError: the pair cannot run on this batch, its latents do not match, it observes nothing, or a log-density has
            dimensions that no plate accounts for.
    """
    check_contract(lvm)
    with torch.no_grad(), module_parameters(lvm), pyro.validation_enabled(validate):
        guide_trace = _trace(lvm.guide, "guide", batch)
        model_trace = _trace(lvm.model, "model", batch, guide_trace)
        model, guide = _sites(model_trace), _sites(guide_trace)
        _check_plates(model_trace, guide_trace)
        _check_latents(lvm, model, guide)
        for part, sites in (("model", model), ("guide", guide)):
            for site in sites.values():
                _check_shape(part, site, _log_prob(part, site))
    return _read_layout(lvm, batch, model, guide, [model_trace, guide_trace])


def log_weights(
    lvm: LatentVariableModel, batch: Any, num_samples: int = 1, *, chunk: int | None = None, validate: bool = True
) -> LogWeights:
    """Draws `num_samples` latents from the guide for every datum of the batch, and weighs them.

    All samples are drawn in parallel, in as many passes as `chunk` asks for. Differentiable where autograd is on.

    Arguments:
        lvm: the model and guide.
        batch: what both are called with.
        num_samples: Monte Carlo samples a datum.
        chunk: samples a pass, which bounds memory; all at once by default.
        validate: whether Pyro checks that parameters and values lie where they must; without it, NaN is still found and named.

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
    chunks = list(weight_chunks(lvm, batch, num_samples, chunk or num_samples, validate))
    return chunks[0] if len(chunks) == 1 else _concatenate(chunks)


def weight_chunks(
    lvm: LatentVariableModel, batch: Any, num_samples: int, chunk: int, validate: bool = True
) -> Iterator[LogWeights]:
    """The LogWeights of ``log_weights``, `chunk` samples at a time, for use in constant memory."""
    if num_samples < 1 or chunk < 1:
        raise ValueError(f"num_samples and chunk must be at least 1; got num_samples={num_samples}, chunk={chunk}.")
    plan = layout(lvm, batch, validate)
    if plan.enumerated:
        raise ContractError(
            f"{type(lvm).__name__}: latent {plan.enumerated[0]!r} is marked for enumeration and absent from the guide, and log-weights sum "
            f"over no latent: sample {plan.enumerated[0]!r} in the guide, or read the loss of TraceEnum_ELBO."
        )
    done = 0
    while done < num_samples:
        size = min(chunk, num_samples - done)
        # The batch and the parameters are the same in every pass, so Pyro's checks of them are worth making once.
        with module_parameters(lvm), pyro.validation_enabled(validate and done == 0):
            weights = _one_pass(lvm, batch, size, plan)
        _check_nan(weights)
        yield weights
        done += size


def _one_pass(lvm: LatentVariableModel, batch: Any, num_samples: int, plan: Layout) -> LogWeights:
    samples, fixed = (num_samples, plan.sample_dim), _fixed(plan)
    guide_trace = _trace(lvm.guide, "guide", batch, fixed, samples=samples)
    model_trace = _trace(lvm.model, "model", batch, guide_trace, fixed, samples=samples)
    model, guide = _sites(model_trace), _sites(guide_trace)

    def term(part: str, site: Any) -> Tensor:
        return _reduce(site, _log_prob(part, site), num_samples, plan)

    return LogWeights(
        log_likelihoods={n: term("model", s) for n, s in model.items() if s["is_observed"]},
        log_priors={n: term("model", s) for n, s in model.items() if not s["is_observed"]},
        log_guides={n: term("guide", s) for n, s in guide.items()},
        model_scales={n: s["scale"] for n, s in model.items()},
        guide_scales={n: s["scale"] for n, s in guide.items()},
        indices=plan.subsample.get(plan.data_plate or "", {}).get("value"),
    )


def sample(lvm: LatentVariableModel, num_samples: int, *, like: Any = None, mean: bool = False) -> dict[str, Tensor]:
    """Draws from the model as a simulator: latents from the prior, data from the likelihood.

    Arguments:
        lvm: the model and guide; the guide is not run.
        num_samples: independent draws.
        like: a batch, for a model that reads more of it than its length (covariates, say); each draw is then a whole batch.
        mean: whether observed sites return the mean of their likelihood in place of a draw.

    Returns:
        Every latent and observed site by name, shape (num_samples, ...); (num_samples, num_data, ...) if `like` is given.

    Raises:
        ContractError: the model cannot run without a batch, and `like` was not given.

    Example:
        >>> import vilvm
        >>> from models.vae import VAE
        >>> vilvm.sample(VAE(data_dim=6, latent_dim=2), 3)["x"].shape
        torch.Size([3, 6])
    """
    check_contract(lvm)
    batch = like if like is not None else torch.empty(1, 0, device=_device(lvm))
    with torch.no_grad(), module_parameters(lvm):
        try:
            probe = _simulate(lvm, batch)
            nesting = _nesting(probe)
            sites = _simulate(lvm, batch, samples=(num_samples, -1 - nesting))
        except ContractError as error:
            if like is not None:
                raise
            raise ContractError(f"{error} To simulate a model that reads its batch, pass like=a batch of data.") from None
    plate = _data_plate(batch, [s for s in probe.values() if _was_observed(s)])
    draws = {}
    for name, site in sites.items():
        value = site["fn"].mean if mean and _was_observed(site) else site["value"]
        value = _strip(value, site, num_samples, nesting)
        # The one datum of the placeholder makes room for the draws, each of which is a datum.
        place = _place(site, plate) if like is None else None  # counted among the plates, of which samples come first
        draws[name] = value if place is None else value.squeeze(place).movedim(0, place - 1)
    return draws


def posterior(lvm: LatentVariableModel, batch: Any, num_samples: int = 1) -> dict[str, Tensor]:
    """Draws of the latents from the guide, q(z | x).

    Returns:
        Every latent by name, shape (num_samples, num_data, ...); (num_samples, ...) for a latent shared by the data.

    Example:
        >>> import torch, vilvm
        >>> from models.vae import VAE
        >>> vilvm.posterior(VAE(data_dim=6, latent_dim=2), torch.zeros(4, 6), num_samples=10)["z"].shape
        torch.Size([10, 4, 2])
    """
    plan = layout(lvm, batch)
    sites = _guide_sites(lvm, batch, num_samples, plan)
    return {name: _strip(sites[name]["value"], sites[name], num_samples, plan.nesting) for name in plan.latents}


def posterior_mean(lvm: LatentVariableModel, batch: Any, num_samples: int = 1) -> dict[str, Tensor]:
    """E[z | x] under the guide: the mean of its distribution where that is known in closed form, else of `num_samples` draws.

    A latent that depends on another is averaged over `num_samples` draws of that one.

    Returns:
        Every latent by name, shape (num_data, ...); (...) for a latent shared by the data.
    """
    plan = layout(lvm, batch)
    sites = _guide_sites(lvm, batch, num_samples, plan)

    def mean(site: Any) -> Tensor:
        try:
            value = site["fn"].mean.expand(site["value"].shape)
        except NotImplementedError:
            value = site["value"]
        return _strip(value, site, num_samples, plan.nesting).mean(0)

    return {name: mean(sites[name]) for name in plan.latents}


def predict(lvm: LatentVariableModel, latents: Mapping[str, Tensor], *, like: Any = None) -> dict[str, Tensor]:
    """E[x | z]: the means of the observed sites given values of the latents, which is a decoder for any model.

    Arguments:
        lvm: the model and guide; the guide is not run.
        latents: every latent by name, shape (num_data, ...).
        like: a batch of num_data data, for a model that reads more of it than its length.

    Returns:
        Every observed site by name, shape (num_data, ...).
    """
    check_contract(lvm)
    num_data = len(next(iter(latents.values())))
    batch = like if like is not None else torch.empty(num_data, 0, device=_device(lvm))
    with torch.no_grad(), module_parameters(lvm):
        sites = _simulate(lvm, batch, given=latents)
    missing = [n for n, s in sites.items() if n not in latents and not _was_observed(s)]
    if missing:
        raise ContractError(f"predict: no value was given for the latent {missing[0]!r}; it has {sorted(latents)}.")
    return {n: s["fn"].mean for n, s in sites.items() if _was_observed(s)}


# Running a pair ------------------------------------------------------------------------------------------------------------


def _trace(run: Any, part: str, batch: Any, *replay: poutine.Trace | None, samples: tuple[int, int] | None = None) -> poutine.Trace:
    """The trace of one half of a pair, sites taken from `replay`, under a plate over samples (their number, its dimension)."""
    for source in replay:
        run = run if source is None else poutine.replay(run, trace=source)
    with _plain_errors(part, batch):
        if samples is None:
            return poutine.trace(run).get_trace(batch)
        with pyro.plate("_monte_carlo", samples[0], dim=samples[1]):
            return poutine.trace(run).get_trace(batch)


def _sites(trace: Any) -> Sites:
    return {n: s for n, s in trace.nodes.items() if s["type"] == "sample" and not site_is_subsample(s)}


def _guide_sites(lvm: LatentVariableModel, batch: Any, num_samples: int, plan: Layout) -> Sites:
    with torch.no_grad(), module_parameters(lvm):
        return _sites(_trace(lvm.guide, "guide", batch, _fixed(plan), samples=(num_samples, plan.sample_dim)))


def _simulate(
    lvm: LatentVariableModel, batch: Any, *, samples: tuple[int, int] | None = None, given: Mapping[str, Tensor] | None = None
) -> Sites:
    """The model's sites with nothing observed but the latents in `given`."""
    run = poutine.uncondition(lvm.model)
    return _sites(_trace(poutine.condition(run, data=dict(given)) if given else run, "model", batch, samples=samples))


def _was_observed(site: Any) -> bool:
    return bool(site["infer"].get("was_observed"))


def _fixed(plan: Layout) -> poutine.Trace | None:
    """A trace that holds the plates' random subsamples still, so that every pass sees the same data."""
    if not plan.subsample:
        return None
    trace = poutine.Trace()
    for name, site in plan.subsample.items():
        trace.add_node(name, **site)
    return trace


def _device(lvm: object) -> torch.device:
    parameters = lvm.parameters() if isinstance(lvm, torch.nn.Module) else iter(())
    return next((p.device for p in parameters), torch.get_default_device())


@contextmanager
def _plain_errors(part: str, batch: Any) -> Iterator[None]:
    """Turns an error inside the user's model or guide into one sentence with the user's own line in it."""
    try:
        yield
    except ContractError as error:
        raise ContractError(_first_words(error)) from None  # Pyro appends the shapes of the trace to whatever passes through
    except (torch.OutOfMemoryError, NotImplementedError):
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError) as error:
        where = _user_line(error)
        reason = _first_words(error)[:400]
        raise ContractError(
            f"The {part} fails on a batch of {_describe(batch)}{where}: {type(error).__name__}: {reason} "
            f"Check the shapes and values that the {part} makes of this batch."
        ) from None


def _first_words(error: Exception) -> str:
    return " ".join(str(error).split("Trace Shapes:")[0].split())


def _user_line(error: Exception) -> str:
    """' (in FUNCTION, FILE:LINE)' of the innermost frame that is neither vilvm's nor an installed package's."""
    own = str(Path(__file__).parent)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename and own not in f.filename]
    frames = [f for f in frames if "contextlib" not in f.filename]
    return f" (in {frames[-1].name}, {Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""


def _describe(batch: Any) -> str:
    shapes = [str(tuple(t.shape)) for t in tensors_of(batch)]
    return f"shape {shapes[0]}" if len(shapes) == 1 else f"shapes {', '.join(shapes)}" if shapes else f"type {type(batch).__name__}"


# Reading a trace -----------------------------------------------------------------------------------------------------------


def _log_prob(part: str, site: Any) -> Tensor:
    """The log-density of a site, masked but not scaled."""
    try:
        value = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    except (ValueError, RuntimeError) as error:
        reason = _first_words(error)[:300]
        raise ContractError(
            f"The {part}'s site {site['name']!r} cannot score its value of shape {tuple(site['value'].shape)}: {reason} "
            "Check the value's shape and that it lies in the distribution's support (a Bernoulli needs 0 or 1: binarise)."
        ) from None
    return scale_and_mask(value, mask=site["mask"])


def _reduce(site: Any, value: Tensor, num_samples: int, plan: Layout) -> Tensor:
    """A log-density of shape (S, *plates) summed over every plate but the data's: (S, N), or (S,) outside the data plate."""
    dims = plan.nesting + 1
    value = value.reshape((1,) * (dims - value.dim()) + value.shape)
    if value.shape[0] != num_samples:
        value = value.expand(num_samples, *value.shape[1:])
    in_data = any(frame.name == plan.data_plate for frame in site["cond_indep_stack"])
    keep = {0} | ({dims + plan.data_dim} if in_data and plan.data_dim is not None else set())
    summed = [d for d in range(dims) if d not in keep]
    return value.sum(summed) if summed else value


def _strip(value: Tensor, site: Any, num_samples: int, nesting: int) -> Tensor:
    """A site's value as (S, *its own plates, *event): dimensions of plates it does not stand in are dropped."""
    event = site["fn"].event_dim
    value = value.reshape((1,) * (nesting + 1 + event - value.dim()) + value.shape)
    value = value.expand(num_samples, *value.shape[1:])
    own = _dims(site)
    for dim in range(-1, -1 - nesting, -1):
        if dim not in own:
            value = value.squeeze(dim - event)
    return value


def _dims(site: Any) -> set[int]:
    return {frame.dim for frame in site["cond_indep_stack"] if frame.vectorized}


def _place(site: Any, plate: Any) -> int | None:
    """Where the data plate stands in a site's value as ``_strip`` leaves it, or None if the site is outside the plate."""
    if plate is None or all(frame.name != plate.name for frame in site["cond_indep_stack"]):
        return None
    return sorted(_dims(site)).index(plate.dim)


def _nesting(*parts: Sites) -> int:
    """How many dimensions the plates of these sites take."""
    return max([-dim for sites in parts for site in sites.values() for dim in _dims(site)], default=0)


def _read_layout(lvm: object, batch: Any, model: Sites, guide: Sites, traces: list[Any]) -> Layout:
    observed = {n: s for n, s in model.items() if s["is_observed"]}
    latents = {n: s for n, s in model.items() if not s["is_observed"]}
    plate = _data_plate(batch, list(observed.values()))
    drawn = {n: s for t in traces for n, s in t.nodes.items() if s["type"] == "sample" and site_is_subsample(s)}
    scale = next(iter(observed.values()))["scale"]
    return Layout(
        nesting=_nesting(model, guide),
        data_plate=plate.name if plate else None,
        data_dim=plate.dim if plate else None,
        num_data=plate.size if plate else 1,
        local=plate is not None
        and all(plate.name in {f.name for f in s["cond_indep_stack"]} for s in [*latents.values(), *guide.values()]),
        scale=float(scale.mean()) if isinstance(scale, Tensor) else float(scale),
        latents=tuple(latents),
        observed=tuple(observed),
        families={n: _family(s["fn"]) for n, s in observed.items()},
        enumerated=tuple(n for n, s in latents.items() if n not in guide and _enumerable(s)),
        subsample={n: s for n, s in drawn.items() if s["fn"].subsample_size is not None and s["fn"].subsample_size < s["fn"].size},
    )


def _family(fn: Any) -> str:
    """The name of a distribution, under ``to_event``, ``mask`` and ``expand``."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return type(fn).__name__.removeprefix("Independent")


def _data_plate(batch: Any, observed: list[Any]) -> Any:
    """The plate over the data: of the plates around every observed site, the outermost whose size is the batch's, else the outermost."""
    common = [f for f in observed[0]["cond_indep_stack"] if f.vectorized and f.name != "_monte_carlo"] if observed else []
    for site in observed[1:]:
        names = {f.name for f in site["cond_indep_stack"]}
        common = [f for f in common if f.name in names]
    lengths = {t.shape[0] for t in tensors_of(batch) if t.dim()}
    matching = [f for f in common if f.size in lengths or f.full_size in lengths]
    return next(iter(matching or common), None)


def _concatenate(chunks: list[LogWeights]) -> LogWeights:
    terms = ("log_likelihoods", "log_priors", "log_guides")
    joined = {f: {n: torch.cat([getattr(c, f)[n] for c in chunks]) for n in getattr(chunks[0], f)} for f in terms}
    rest = {f.name: getattr(chunks[0], f.name) for f in fields(LogWeights) if f.name not in terms}
    return LogWeights(**joined, **rest)


# Holding a pair to the contract --------------------------------------------------------------------------------------------


def _check_latents(lvm: object, model: Sites, guide: Sites) -> None:
    name_of = type(lvm).__name__
    latents = [n for n, s in model.items() if not s["is_observed"]]
    for name in latents:
        if name not in guide and not _enumerable(model[name]):
            raise ContractError(
                f"{name_of}: the model samples {name!r} and the guide does not. If it is a latent, sample {name!r} in the guide too; "
                f"if it is the data, observe it: pyro.sample({name!r}, ..., obs=batch)."
            )
    for name, site in guide.items():
        if name not in model and not site["infer"].get("is_auxiliary"):
            raise ContractError(
                f"{name_of}: the guide samples {name!r} and the model does not. Sample {name!r} in the model, remove it from the "
                "guide, or mark it infer={'is_auxiliary': True}."
            )
        if name in model and model[name]["is_observed"]:
            raise ContractError(f"{name_of}: the guide samples {name!r}, which the model observes; remove it from the guide.")
    if len(latents) == len(model):
        raise ContractError(f"{name_of}: the model observes nothing; give one pyro.sample of it obs=batch.")
    for name in [n for n in latents if n in guide]:
        shapes = [tuple(model[name]["fn"].shape()), tuple(guide[name]["value"].shape)]
        events = [s[name]["fn"].event_dim for s in (model, guide)]
        if events[0] != events[1]:
            raise ContractError(
                f"{name_of}: latent {name!r} has {events[0]} event dimensions in the model and {events[1]} in the guide; "
                "give both the same .to_event(...)."
            )
        if shapes[0] != shapes[1]:
            raise ContractError(
                f"{name_of}: latent {name!r} has shape {shapes[0]} in the model and {shapes[1]} in the guide; make them equal."
            )


def _check_plates(model_trace: Any, guide_trace: Any) -> None:
    """A plate takes its indices from the guide's plate of that name, and would silently rescale if it were of another size."""
    for name, site in model_trace.nodes.items():
        other = guide_trace.nodes.get(name)
        if site["type"] == "sample" and site_is_subsample(site) and other is not None and site["fn"].size != other["fn"].size:
            raise ContractError(
                f"Plate {name!r} has size {site['fn'].size} in the model and {other['fn'].size} in the guide; use len(batch) in both."
            )


def _enumerable(site: Any) -> bool:
    return site["infer"].get("enumerate") == "parallel"


def _check_shape(part: str, site: Any, value: Tensor) -> None:
    """A log-density may have a dimension larger than one only where a plate declares it."""
    sizes = {f.dim: f.size for f in site["cond_indep_stack"] if f.vectorized}
    for dim in range(-value.dim(), 0):
        size, declared = value.shape[dim], sizes.get(dim)
        if size != 1 and declared is None:
            raise ContractError(
                f"The {part}'s site {site['name']!r} has a log-density of shape {tuple(value.shape)}, and no plate declares its "
                f"dimension {dim} of size {size}: put the site in a pyro.plate of that size, or make the dimension part of one "
                "datum with .to_event(1)."
            )
        if declared is not None and declared > 0 and size not in (1, declared):
            raise ContractError(
                f"The {part}'s site {site['name']!r} has size {size} where its plate says {declared} (dimension {dim}); "
                "use len(batch) as the size of the plate."
            )


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
                    raise ContractError(
                        f"The {kind} of site {name!r} is {value[tuple(place)].item()}{datum} ({int(bad.sum())} of {bad.numel()} values); "
                        "look for NaN in the parameters, or a scale that reached zero."
                    )
