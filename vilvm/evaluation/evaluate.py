"""Bounds on the evidence log p(x), each with its standard error.

With log w = log p(x, z) − log q(z | x) and z₁ … z_S ~ q(z | x), for each datum x:

    ELBO        = E[log w]                   = −(rate + distortion),
    rate        = E[log q(z | x) − log p(z)] = KL(q(z | x) ‖ p(z)),
    distortion  = −E[log p(x | z)],
    IWAE_S      = E[log (1/S) Σₛ wₛ]         between ELBO and log p(x), not decreasing in S,
    ESS         = (Σₛ wₛ)² / Σₛ wₛ²          from 1 to S.

A model whose log p(x) is known has a method ``exact_log_evidence(batch)``, of shape (num_data,),
or () for all data together if they share a latent; it is reported beside the bounds as "exact".

A guide may put a latent on one point. A continuous latent then has no density q(z | x), and there
is a distortion but no bound. A discrete one has the probability 1: ELBO = log p(x | z) + log p(z)
is a bound without Monte Carlo error, the rate is −log p(z), and IWAE_S is the ELBO for every S.
Two draws are then run in place of S, and an ESS of S shows only that all weights are equal.

Memory is constant in the number of samples, because only running sums are kept.

References: Importance Weighted Autoencoders, Burda, Grosse and Salakhutdinov, 2016; Fixing a
Broken ELBO, Alemi et al., 2018 (rate and distortion).
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vilvm._compile import Compile, check_compile, worth_compiling
from vilvm._runtime.argument_checks import check_number, optional
from vilvm._runtime.distributed import ProcessGroup, process_group
from vilvm._runtime.memory import widen_heap
from vilvm._runtime.precision import Precision, check_precision, networks_in
from vilvm._runtime.progress import ProgressBar
from vilvm._runtime.random import set_seed
from vilvm.evaluation._sample_moments import (
    DISTORTION,
    LOG_WEIGHT,
    RATE,
    SampleMoments,
    moments_of,
)
from vilvm.evaluation.estimates import Bounds, Estimate, Evaluation
from vilvm.evaluation.sample_passes import WORTH_COMPILING, SamplePasses
from vilvm.lvm import ContractError, LatentVariableModel, Wrapped, check_contract
from vilvm.weights import Layout, Prepared
from vilvm.weights._vectorisation import Vectorisation
from vilvm.weights.prepared import prepared_of

__all__ = ["evaluate", "exact_log_evidence"]

BOUNDS = ("elbo", "iwae", "exact")


def evaluate(
    lvm: LatentVariableModel | Prepared,
    data: Any = None,
    *,
    bounds: Sequence[str] | None = None,
    num_samples: int = 5000,
    batch_size: int | None = None,
    chunk: int | None = None,
    compile: Compile = "auto",
    precision: Precision = "float32",
    seed: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Estimates evidence bounds, rate and distortion of a model, per datum and in the mean.

    The data's transform is drawn once from `seed`, so that all samples see the same data. Memory
    does not grow with `num_samples`.

    Arguments:
        lvm: the model and guide; or a ``Prepared``, which holds the data too.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum per row.
        bounds: which of "elbo", "iwae" and "exact" to report. By default all that exist: a
            degenerate guide has no "elbo" and no "iwae", and "exact" needs a model with a method
            ``exact_log_evidence``.
        num_samples: Monte Carlo samples per datum.
        batch_size: data per pass, 50 by default; data that share a latent stay together.
        chunk: samples per pass; by default as many as keep the device busy, or fewer if its memory
            is short. Another size gives other draws.
        compile: whether to compile passes (``vilvm.evaluation.sample_passes``), which takes some
            seconds; "auto" compiles for 2000 passes or more.
        precision: "float32", or "bf16" for linear and convolutional layers in bfloat16, which the
            protocol then records.
        seed: seed of samples and transform; torch's generators are restored afterwards.
        progress: whether to show a progress bar.

    Returns:
        Evaluation, in nats per datum.

    Raises:
        ValueError: unknown bound, or num_samples, batch_size or chunk below 1.
        ContractError: the pair breaks the contract on these data (see
            ``vilvm.weights.find_layout``), or lacks a requested bound.

    Examples:
        >>> import torch
        >>> from vilvm import evaluate
        >>> from vilvm.models.vae import VAE
        >>> found = evaluate(VAE(data_dim=6, latent_dim=2), torch.zeros(9, 6), num_samples=50)
        >>> found.bounds["iwae"].values.shape
        torch.Size([9])
        >>> found.bounds["elbo"].mean <= found.bounds["iwae"].mean
        True
    """
    began = time.perf_counter()
    wanted = _wanted(bounds)
    num_samples = check_number("evaluate: num_samples", num_samples)
    chunk = optional(check_number, "evaluate: chunk", chunk)
    check_compile("evaluate", compile)
    pair = lvm.lvm if isinstance(lvm, Prepared) else lvm
    check_contract(pair)
    check_precision("evaluate", pair, precision)
    widen_heap()
    with networks_in(precision, pair):
        prepared = prepared_of("evaluate", lvm, data, batch_size=batch_size, seed=seed)
        refusal = _no_bound(pair, prepared.layout)
        if bounds is not None:
            _check_available(pair, wanted, refusal)
        drawn = num_samples
        if prepared.layout.deterministic:
            # All draws are equal; a second one shows that there is no Monte Carlo error.
            drawn = min(num_samples, 2)
        with prepared.running():
            chunk = chunk or prepared.part(0).samples_in_a_pass()
            found = _run(prepared, drawn, chunk, compile, progress)
            exact = _exact(prepared, wanted)
    rate, ess, known = None, None, {}
    if refusal:
        num_samples = drawn
    else:
        rate, ess = found.mean(RATE), found.ess() * (num_samples / drawn)
        known = {"elbo": found.mean(LOG_WEIGHT), "iwae": found.iwae()}
    return Evaluation(
        bounds=Bounds(
            {name: known[name] for name in wanted if name in known} | exact, refusal
        ),
        rate=rate,
        distortion=found.mean(DISTORTION),
        ess=ess,
        num_samples=num_samples,
        chunk=chunk,
        protocol=_protocol(prepared, len(found.rows), num_samples, precision),
        seconds=time.perf_counter() - began,
        index=prepared.data.index,
    )


def exact_log_evidence(lvm: Any) -> Callable[[Any], Tensor] | None:
    """The method by which a model computes log p(x).

    A wrapper that changes only the guide has the method of its inner model.

    Arguments:
        lvm: the model.

    Returns:
        A function of a batch, or None.

    Examples:
        >>> from vilvm.evaluation.evaluate import exact_log_evidence
        >>> from vilvm.models.vae import VAE
        >>> exact_log_evidence(VAE(data_dim=6, latent_dim=2)) is None
        True
    """
    found = getattr(lvm, "exact_log_evidence", None)
    if found is None and isinstance(lvm, Wrapped) and lvm.keeps_model:
        return exact_log_evidence(lvm.lvm)
    return found


def _wanted(bounds: Any) -> Sequence[str]:
    """The names of the requested bounds; raises ValueError for an unknown one."""
    if bounds is None:
        return BOUNDS
    if isinstance(bounds, str) or not isinstance(bounds, Sequence | set):
        bounds = [bounds]
    unknown = [
        name for name in bounds if not isinstance(name, str) or name not in BOUNDS
    ]
    if unknown or not bounds:
        raise ValueError(
            f"evaluate: unknown bounds {unknown or 'none at all'}; choose from {list(BOUNDS)}."
        )
    return list(bounds)


def _check_available(lvm: object, wanted: Sequence[str], refusal: str) -> None:
    """Raises ContractError if the pair lacks a requested bound."""
    if refusal and set(wanted) - {"exact"}:
        raise ContractError(refusal)
    if "exact" in wanted and exact_log_evidence(lvm) is None:
        raise ContractError(
            f"{type(lvm).__name__} has no method exact_log_evidence(batch), so log p(x) is "
            "not known; ask for a bound: 'elbo' or 'iwae'."
        )


def _no_bound(lvm: object, layout: Layout) -> str:
    """Why this pair has no bound on its evidence; empty if it has one."""
    if layout.degenerate:
        why = (
            f"the guide puts latent {layout.degenerate[0]!r} on one point (a Delta), where it has "
            "no density"
        )
    elif layout.improper:
        why = f"the prior of latent {layout.improper[0]!r} is flat, which is not a density"
    else:
        return ""
    return (
        f"{type(lvm).__name__}: {why}, so there is no ELBO, no importance-weighted bound and no "
        "rate, only a distortion; give it a proper prior and a guide with a density."
    )


def _exact(prepared: Prepared, wanted: Sequence[str]) -> dict[str, Estimate]:
    """log p(x) as the bound "exact", if it is wanted and the model has it."""
    evidence = exact_log_evidence(prepared.lvm)
    if evidence is None or "exact" not in wanted:
        return {}
    values = [
        evidence(batch.x).detach().double().reshape(-1) for batch in prepared.batches
    ]
    exact = torch.cat(values).cpu()
    expected = sum(len(batch) for batch in prepared.batches)
    if len(exact) not in (1, expected) or not bool(torch.isfinite(exact).all()):
        raise ContractError(
            f"{type(prepared.lvm).__name__}.exact_log_evidence gives {len(exact)} values for "
            f"{expected} data, or some that are not finite; it must give one per datum, or "
            "one for all together."
        )
    return {"exact": Estimate(exact, torch.zeros_like(exact))}


def _protocol(
    prepared: Prepared, num_data: int, num_samples: int, precision: Precision
) -> dict[str, Any]:
    """The facts that must be equal for two evaluations to be comparable."""
    protocol = dict(prepared.protocol)
    if prepared.local:
        # A subsampled plate has fewer data than were given.
        protocol["num_data"] = num_data
    protocol["seed"] = prepared.seed
    protocol["num_samples"] = num_samples
    protocol["likelihood"] = prepared.layout.families
    if precision != "float32":
        protocol["precision"] = precision
    protocol["unit"] = "nats per datum" if prepared.local else "nats, all data together"
    return protocol


def _run(
    prepared: Prepared,
    num_samples: int,
    chunk: int,
    compile: Compile,
    progress: bool,
) -> SampleMoments:
    """Runs all samples of all data; the processes of a group divide the batches among them."""
    count = len(prepared.batches)
    ranks = process_group() if prepared.local else ProcessGroup()
    mine = range(count)[ranks.shard(count)]
    if ranks.size > 1:
        set_seed(ranks.seed(prepared.seed), prepared.device)
    compiled = worth_compiling(compile, count * (num_samples // chunk), WORTH_COMPILING)
    passes, vectorisation = SamplePasses(prepared.lvm, compiled), Vectorisation()
    # A process without a batch contributes no rows.
    rows = [torch.zeros(0, 8, dtype=torch.float64, device=prepared.device)]
    shown = progress if ranks.is_main else False
    with ProgressBar(f"evaluating, {num_samples} samples", len(mine), 0, shown) as bar:
        for number in mine:
            part = prepared.part(number, vectorisation)
            terms = passes(part.batch, num_samples, chunk, part.layout)
            rows.append(moments_of(terms, num_samples))
            bar.advance()
    return SampleMoments(ranks.gather(torch.cat(rows)), num_samples)
