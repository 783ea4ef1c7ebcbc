"""Bounds on the evidence log p(x), each with its standard error.

With log w = log p(x, z) − log q(z | x) and z₁ … z_S ~ q(z | x), for each datum x:

    ELBO        = E[log w]                           = −(rate + distortion),
    rate        = E[log q(z | x) − log p(z)]         = KL(q(z | x) ‖ p(z)),
    distortion  = −E[log p(x | z)],
    IWAE_S      = E[log (1/S) Σₛ wₛ]                 between the ELBO and log p(x), not decreasing in S,
    ESS         = (Σₛ wₛ)² / Σₛ wₛ²                  from 1 to S.

A model that knows log p(x) says so in a method ``exact_log_evidence(batch)``, of shape
(num_data,), or () for all data together if they share a latent; it then stands beside the bounds
as "exact".

Only running sums are kept, so any number of samples costs the same memory.

References: Importance Weighted Autoencoders, Burda, Grosse and Salakhutdinov, 2016; Fixing a
Broken ELBO, Alemi et al., 2018 (rate and distortion).
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vilvm._compile import Compile, check_compile, worth_compiling
from vilvm._runtime.argument_checks import check_number, check_seed, optional
from vilvm._runtime.distributed import ProcessGroup, process_group
from vilvm._runtime.memory import bytes_made, free_bytes, widen_heap
from vilvm._runtime.precision import Precision, check_precision, networks_in
from vilvm._runtime.progress import ProgressBar
from vilvm._runtime.random import preserved_rng, seeded, set_seed
from vilvm.data.data import Data, as_data
from vilvm.data.tensors import tensors_of
from vilvm.evaluation.sample_passes import WORTH_COMPILING, SamplePasses
from vilvm.lvm import (
    ContractError,
    LatentVariableModel,
    Wrapped,
    check_contract,
    device_of,
    evaluation_mode,
)
from vilvm.weights import Layout, find_layout, sample_pass
from vilvm.weights._per_datum import by_position, restart, unset_autoguides

__all__ = [
    "Estimate",
    "Evaluation",
    "evaluate",
    "exact_log_evidence",
    "in_parts",
    "rows_in_a_pass",
    "samples_in_a_pass",
    "samples_that_fit",
]

BOUNDS = ("elbo", "iwae", "exact")
_BATCH = 50
# rows through the decoder in a pass: enough to amortise Pyro, few enough for the cache
_ROWS_CPU, _ROWS_CUDA = 8_000, 400_000


class Estimate(NamedTuple):
    """A quantity for every datum, float64, each with the standard error of its Monte Carlo
    estimate.

    Arguments:
        values: shape (num_data,).
        errors: Monte Carlo standard errors, shape (num_data,).
    """

    values: Tensor
    errors: Tensor

    @property
    def mean(self) -> float:
        """The mean over the data."""
        return self.values.mean().item()

    @property
    def se(self) -> float:
        """Standard error of the mean as an estimate of its expectation over new data: Monte Carlo
        error included.

        With a single datum, of which there is no spread, the Monte Carlo standard error.
        """
        return (
            self.values.std().item() / math.sqrt(len(self.values))
            if len(self.values) > 1
            else self.mc_se
        )

    @property
    def mc_se(self) -> float:
        """Standard error of the mean as an estimate for these very data: of Monte Carlo alone."""
        return self.errors.square().sum().sqrt().item() / len(self.values)

    def __sub__(self, other: "Estimate") -> "Estimate":
        """By how much it is above another one of the same data, datum by datum; their Monte Carlo
        errors are taken for independent.
        """
        return Estimate(
            self.values - other.values, (self.errors.square() + other.errors.square()).sqrt()
        )


class Bounds(dict[str, Estimate]):
    """The bounds by name. One that is not there is refused with the reason."""

    def __init__(self, bounds: dict[str, Estimate], refusal: str = ""):
        super().__init__(bounds)
        self.refusal = refusal

    def __missing__(self, name: str) -> Estimate:
        raise KeyError(
            self.refusal or f"No bound {name!r} was estimated; there are {sorted(self)}."
        )


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` found. Numbers of different protocols cannot be compared.

    Arguments:
        bounds: "elbo", "iwae" and "exact", as asked, in nats per datum. None for a degenerate
            guide or a flat prior; asking for one says why.
        rate: KL(q(z | x) ‖ p(z)), in nats per datum; None where there is no bound.
        distortion: −E_q log p(x | z), in nats per datum.
        ess: effective sample size of the weights, between 1 and num_samples, shape (num_data,);
            None where there is no bound.
        num_samples: Monte Carlo samples a datum.
        chunk: samples a pass; another number means other draws.
        protocol: data set, split, number of data, transform, seed, likelihoods, number of samples,
            and unit: "nats per datum", or "nats, all data together" for a model whose data share a
            latent (then num_data is 1 above).
        seconds: taken.
    """

    bounds: Bounds
    rate: Estimate | None
    distortion: Estimate
    ess: Tensor | None
    num_samples: int
    chunk: int
    protocol: dict[str, Any]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Means and standard errors as plain numbers, for JSON."""

        def summary(estimate: Estimate, samples: int | None = None) -> dict[str, Any]:
            numbers = {"mean": estimate.mean, "se": estimate.se, "mc_se": estimate.mc_se}
            return numbers if samples is None else {**numbers, "num_samples": samples}

        return {
            "bounds": {
                name: summary(bound, self.num_samples if name != "exact" else None)
                for name, bound in self.bounds.items()
            },
            "rate": None if self.rate is None else summary(self.rate),
            "distortion": summary(self.distortion),
            "ess": None
            if self.ess is None
            else {"mean": self.ess.mean().item(), "min": self.ess.min().item()},
            "protocol": self.protocol,
        }


def evaluate(
    lvm: LatentVariableModel,
    data: Any,
    *,
    bounds: Sequence[str] | None = None,
    num_samples: int = 5000,
    batch_size: int | None = None,
    chunk: int | None = None,
    compile: Compile = "auto",
    precision: Precision = "float32",
    seed: int = 0,
    progress: bool | None = None,
) -> Evaluation:
    """Estimates evidence bounds, rate and distortion of a model on data, per datum and in the
    mean.

    The data's transform is drawn once from `seed`, so that each datum is one and the same under
    all samples. Memory does not grow with `num_samples`.

    Arguments:
        lvm: the model and guide.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum a row.
        bounds: which of "elbo", "iwae" and "exact" to report; by default all that there are:
            neither of the first two for a degenerate guide, the last for a model that has
            ``exact_log_evidence``.
        num_samples: Monte Carlo samples a datum.
        batch_size: data a pass, 50 by default; a model whose data share a latent is given all of
            them at once.
        chunk: samples a pass; by default as many as keep the device busy, fewer where its memory
            is short. Another size means other draws.
        compile: whether passes are compiled (``vilvm.evaluation.sample_passes``), which takes some
            seconds; "auto" does so where there are 2000 or more.
        precision: "float32", or "bf16" for the linear and convolutional layers in bfloat16; then
            it is part of the protocol.
        seed: of samples and transform; torch's generators are left as they were.
        progress: whether to show a progress bar; by default on a terminal only.

    Returns:
        Evaluation, in nats per datum.

    Raises:
        ValueError: unknown bound, or num_samples, batch_size or chunk below 1.
        ContractError: the pair breaks the contract on these data (see
            ``vilvm.weights.find_layout``).

    Example:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> result = vilvm.evaluate(VAE(data_dim=6, latent_dim=2), torch.zeros(9, 6), num_samples=50)
        >>> result.bounds["iwae"].values.shape, result.bounds["elbo"].mean <= result.bounds["iwae"].mean
        (torch.Size([9]), True)
    """
    seed = check_seed("evaluate: seed", seed)
    check_contract(lvm)
    asked = (
        list(bounds or ())
        if isinstance(bounds, Sequence | set | None) and not isinstance(bounds, str)
        else [bounds]
    )
    unknown = [b for b in asked if not isinstance(b, str) or b not in BOUNDS]
    if unknown or (bounds is not None and not asked):
        raise ValueError(
            f"evaluate: unknown bounds {unknown or 'none at all'}; choose from {list(BOUNDS)}."
        )
    num_samples = check_number("evaluate: num_samples", num_samples)
    batch_size = optional(check_number, "evaluate: batch_size", batch_size)
    chunk = optional(check_number, "evaluate: chunk", chunk)
    check_precision("evaluate", lvm, precision)
    check_compile("evaluate", compile)
    began = time.perf_counter()
    given = as_data(data)
    where = device_of(lvm, given.device)
    with torch.no_grad(), seeded(seed, where), evaluation_mode(lvm), networks_in(precision, lvm):
        widen_heap()
        fixed = given.to(where).fixed(seed)
        parts, layout = in_parts(lvm, fixed, batch_size)
        refusal = _no_bound(lvm, layout)
        evidence = exact_log_evidence(lvm)
        if refusal and set(asked) - {"exact"}:
            raise ContractError(refusal)
        if "exact" in asked and evidence is None:
            raise ContractError(
                f"{type(lvm).__name__} has no method exact_log_evidence(batch), so log p(x) is "
                "not known; ask for a bound: 'elbo' or 'iwae'."
            )
        if refusal and set(layout.degenerate) == set(layout.latents):
            # all draws are equal; the second shows that they have no Monte Carlo error
            num_samples = min(num_samples, 2)
        ranks = process_group() if layout.local else ProcessGroup()
        shared_out = range(len(parts))[ranks.shard(len(parts))]
        if ranks.size > 1:
            set_seed(ranks.seed(seed), where)
        if chunk is None:
            chunk = samples_in_a_pass(lvm, parts[0].x, layout)
        with ProgressBar(
            f"evaluating, {num_samples} samples",
            len(shared_out),
            0,
            progress if ranks.is_main else False,
        ) as bar:
            passes = SamplePasses(
                lvm, worth_compiling(compile, len(parts) * (num_samples // chunk), WORTH_COMPILING)
            )
            sums = [torch.zeros(0, len(_Sums._fields), dtype=torch.float64, device=where)]
            for number in shared_out:
                part = parts[number]
                # The plate over the data is found once: of the last batch, which may be smaller,
                # another might have the size.
                here = (
                    layout
                    if number == 0
                    else find_layout(lvm, part.x, plate=layout.data_plate)._replace(
                        vectorisation=layout.vectorisation
                    )
                )
                sums.append(torch.stack(_accumulate(passes, part.x, num_samples, chunk, here), -1))
                bar.advance()
        exact = (
            _exact(lvm, evidence, parts)
            if evidence is not None and "exact" in (asked or BOUNDS)
            else None
        )
    total = _Sums(*ranks.gather(torch.cat(sums)).unbind(-1))
    protocol = {
        **given.protocol(),
        # fewer than were given, if the plate subsamples them
        **({"num_data": len(total.w)} if layout.local else {}),
        "seed": seed,
        "num_samples": num_samples,
        "likelihood": layout.families,
        **({} if precision == "float32" else {"precision": precision}),
        "unit": "nats per datum" if layout.local else "nats, all data together",
    }
    names = () if refusal else [b for b in asked or BOUNDS if b != "exact"]
    found = _summarise(total, (num_samples, chunk), names, protocol, began, refusal)
    if exact is not None:
        found.bounds["exact"] = exact
    return found


def in_parts(
    lvm: LatentVariableModel, data: Data, batch_size: int | None = None
) -> tuple[Sequence[Data], Layout]:
    """The data cut into batches, or whole where they cannot be cut, share a latent, or the guide
    knows no other size; and the layout of the first.

    Raises:
        ContractError: the pair breaks the contract, or subsamples a plate of which all is one
            joint weight.
    """
    size = min(batch_size or _BATCH, len(data)) if data.divisible else len(data)
    parts: Sequence[Data] = data.chunks(size) if size < len(data) else [data.loaded()]
    unset = unset_autoguides(lvm)
    try:
        layout = find_layout(lvm, parts[0].x)
        if len(parts) > 1 and by_position(lvm, parts[0].x, layout):
            restart(unset)
            layout = None
    except ContractError:
        if len(parts) == 1:
            raise
        restart(unset)
        # an autoguide over latents of the data's plate knows the size that it was fitted to
        layout = None
    if layout is None or (
        len(parts) > 1 and not (layout.local and _is_cut_along_its_plate(lvm, data, size, layout))
    ):
        parts = [data.loaded()]
        layout = find_layout(lvm, parts[0].x)
    subsampled = [
        name for name in layout.subsample if not layout.local or name != layout.data_plate
    ]
    if subsampled:
        raise ContractError(
            f"{type(lvm).__name__} subsamples its plate {subsampled[0]!r} at random, and what is "
            "in it belongs to one joint weight: "
            "the bounds would be those of the subsample. Evaluate a model whose plate takes all "
            "of it."
        )
    return parts, layout


def _is_cut_along_its_plate(
    lvm: LatentVariableModel, data: Data, size: int, layout: Layout
) -> bool:
    """Whether the plate over the data is that of the rows that a batch is cut into, and not one of
    another axis (time-major data).
    """
    fewer = data.subset(slice(0, max(1, size - 1))).x
    plates = [layout, find_layout(lvm, fewer, plate=layout.data_plate)]
    return all(
        p.num_data == n or bool(p.subsample)
        for p, n in zip(plates, (size, max(1, size - 1)), strict=True)
    )


def rows_in_a_pass(device: torch.device) -> int:
    """How many draws, of all data together, keep a device busy."""
    return _ROWS_CUDA if device.type == "cuda" else _ROWS_CPU


def samples_in_a_pass(lvm: LatentVariableModel, batch: Any, layout: Layout) -> int:
    """How many draws of every datum go through the pair at once: as many as keep the device busy,
    fewer where its memory is short.
    """
    busy = rows_in_a_pass(tensors_of(batch)[0].device) // max(layout.num_data, 1)
    return max(1, min(busy, samples_that_fit(lvm, batch, layout)))


def samples_that_fit(lvm: LatentVariableModel, batch: Any, layout: Layout) -> int:
    """How many draws of every datum fit into half of the memory that is free, if all that is made
    of them is kept.
    """
    device = tensors_of(batch)[0].device
    with torch.no_grad(), preserved_rng(device), evaluation_mode(lvm):
        each = bytes_made(lambda: sample_pass(lvm, batch, layout))
    return free_bytes(device) // 2 // max(each, 1)


def exact_log_evidence(lvm: Any) -> Callable[[Any], Tensor] | None:
    """The method by which a model knows log p(x), also if it is within one that changes the guide
    only; None if it has none.
    """
    found = getattr(lvm, "exact_log_evidence", None)
    if found is None and isinstance(lvm, Wrapped) and lvm.keeps_model:
        return exact_log_evidence(lvm.lvm)
    return found


def _exact(
    lvm: LatentVariableModel, evidence: Callable[[Any], Tensor], parts: Sequence[Data]
) -> Estimate:
    values = torch.cat([evidence(part.x).detach().double().reshape(-1) for part in parts]).cpu()
    expected = sum(len(part) for part in parts)
    if len(values) not in (1, expected) or not bool(torch.isfinite(values).all()):
        raise ContractError(
            f"{type(lvm).__name__}.exact_log_evidence gives {len(values)} values for {expected} "
            "data, or some that are not finite; it must give one "
            "a datum, or one for all together."
        )
    return Estimate(values, torch.zeros_like(values))


def _no_bound(lvm: object, layout: Layout) -> str:
    """Why this pair has no bound on its evidence; empty if it has one."""
    if not (layout.degenerate or layout.improper):
        return ""
    why = (
        f"the guide puts latent {layout.degenerate[0]!r} on one point (a Delta), where it has no "
        "density"
        if layout.degenerate
        else f"the prior of latent {layout.improper[0]!r} is flat, which is no probability density"
    )
    return (
        f"{type(lvm).__name__}: {why}, so there is no ELBO, no importance-weighted bound and no "
        "rate, only a distortion: for a bound, give "
        "it a proper prior and a guide with a density."
    )


class _Sums(NamedTuple):
    """Sums over samples, float64, shape (num_data,) each: a log-sum-exp of log w and of 2 log w,
    and plain ones of the rest.
    """

    w: Tensor
    w2: Tensor
    log_w: Tensor
    log_w_squared: Tensor
    rate: Tensor
    rate_squared: Tensor
    distortion: Tensor
    distortion_squared: Tensor


def _accumulate(
    passes: SamplePasses, batch: Any, num_samples: int, chunk: int, layout: Layout
) -> _Sums:
    total: _Sums | None = None
    # squares are summed about a first guess of the mean, or their difference would lose its digits
    origin: list[Tensor] = []
    for terms in passes(batch, num_samples, chunk, layout):
        # a weight may be zero, its log −inf
        origin = origin or [term.mean(0).nan_to_num(0.0, 0.0, 0.0) for term in terms]
        log_w = terms[0]
        sums = [torch.logsumexp(log_w, 0), torch.logsumexp(2 * log_w, 0)]
        for term, start in zip(terms, origin, strict=True):
            centred = term - start
            sums += [centred.sum(0), centred.square().sum(0)]
        new = _Sums(*sums)
        total = new if total is None else _Sums(*_merge(total, new))
    assert total is not None
    means = [s / num_samples + start for s, start in zip(total[2::2], origin, strict=True)]
    variances = [
        (q - s.square() / num_samples).clamp(min=0)
        for s, q in zip(total[2::2], total[3::2], strict=True)
    ]
    moments = [value for pair in zip(means, variances, strict=True) for value in pair]
    return _Sums(total.w, total.w2, *moments)


def _merge(total: _Sums, new: _Sums) -> list[Tensor]:
    logs = [torch.logaddexp(total.w, new.w), torch.logaddexp(total.w2, new.w2)]
    return logs + [a + b for a, b in zip(total[2:], new[2:], strict=True)]


def _summarise(
    sums: _Sums,
    samples: tuple[int, int],
    bounds: Sequence[str],
    protocol: dict[str, Any],
    began: float,
    refusal: str,
) -> Evaluation:
    s, chunk = samples
    ess = (2 * sums.w - sums.w2).exp().nan_to_num(0.0).cpu()  # 0 where every weight is

    def estimate(mean: Tensor, squares: Tensor) -> Estimate:
        errors = (squares / (s - 1) / s).sqrt() if s > 1 else torch.full_like(mean, math.nan)
        return Estimate(mean.cpu(), errors.cpu())

    # The delta method: Var log mean(w) ≈ Var(w) / (S E[w]²) = 1/ESS − 1/S, which needs a second
    # sample to be seen.
    spread = (1 / ess - 1 / s).clamp(min=0).sqrt() if s > 1 else torch.full_like(ess, math.nan)
    known = {
        "elbo": estimate(sums.log_w, sums.log_w_squared),
        "iwae": Estimate((sums.w - math.log(s)).cpu(), spread),
    }
    return Evaluation(
        bounds=Bounds({name: known[name] for name in bounds}, refusal),
        rate=None if refusal else estimate(sums.rate, sums.rate_squared),
        distortion=estimate(sums.distortion, sums.distortion_squared),
        ess=None if refusal else ess,
        num_samples=s,
        chunk=chunk,
        protocol=protocol,
        seconds=time.perf_counter() - began,
    )
