"""Bounds on log p(x) for the gaps: exact, annealed, importance-weighted, or the best ELBO."""

from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vilvm.data.data import Data
from vilvm.diagnostics._gap_sizes import Sizes
from vilvm.evaluation import Estimate, Schedule, ais, evaluate
from vilvm.evaluation.evaluate import exact_log_evidence
from vilvm.guides import fit_local_guide
from vilvm.lvm import ContractError
from vilvm.weights.prepared import Prepared

__all__ = [
    "ELBO",
    "EXACT",
    "FEW",
    "GUIDE",
    "IWAE",
    "PRIOR",
    "Bound",
    "Search",
    "best_elbo",
    "choose_bounds",
    "evaluated",
    "in_one_batch",
]

GUIDE, PRIOR = "ais from the guide", "ais from the prior"
IWAE, ELBO, EXACT = "iwae", "elbo", "exact"
FEW = 5.0  # effective draws below which the error of a log-mean-exp is unknown
_FEW_ERROR = 2.3  # nats, the error stated in that case


class Bound(NamedTuple):
    """log p(x), or a lower bound on it.

    Arguments:
        estimate: in nats per datum; NaN for data without an estimate.
        ess: effective number of the draws or chains that determine it, shape (num_data,); ∞ if it
            is exact or a plain mean.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics.gaps import Bound
        >>> from vilvm.evaluation import Estimate
        >>> Bound(Estimate(torch.zeros(2), torch.ones(2)), torch.full((2,), 9.0)).estimate.mean
        0.0
    """

    estimate: Estimate
    ess: Tensor


def evaluated(
    lvm: Any, data: Data | None, num_samples: int, seed: int = 0
) -> tuple[Estimate, Bound]:
    """The ELBO and the importance-weighted bound, from the same draws, on all data at once.

    Arguments:
        lvm: the model and guide, or a ``Prepared`` with all data in one batch.
        data: the data, None with a ``Prepared``.
        num_samples: draws per datum.
        seed: seed of the draws, 0 with a ``Prepared``.
    """
    size = None
    if data is not None and data.divisible:
        size = len(data)  # a guide with parameters for each datum needs all of them
    found = evaluate(
        lvm,
        data,
        bounds=("elbo", "iwae"),
        num_samples=num_samples,
        batch_size=size,
        seed=seed,
        progress=False,
    )
    assert found.ess is not None
    return found.bounds["elbo"], _log_mean_exp(found.bounds["iwae"], found.ess)


class Search(NamedTuple):
    """Searches for the largest bound on log p(x).

    Arguments:
        prepared: the pair and its data.
        evidence: "exact", "ais" or "iwae" if the user chose one, or None.
        chains_from_prior: data for which chains start at the prior too.
        compile: whether annealing is compiled, as in ``ais``.
    """

    prepared: Prepared
    evidence: str | None
    chains_from_prior: int
    compile: Any

    @property
    def whole(self) -> Prepared:
        """All data in one batch."""
        return in_one_batch(self.prepared)

    def bounds(self, sizes: Sizes, weighted: Bound) -> dict[str, Bound]:
        """Bounds by name; `weighted` is the importance-weighted one of ``evaluated``."""
        has_exact = exact_log_evidence(self.prepared.lvm) is not None
        if self.evidence == "exact" or (self.evidence is None and has_exact):
            return {EXACT: self._exact()}
        if sizes.schedule is None:
            return {IWAE: weighted}
        found = {}
        if self.evidence != "iwae":
            found = self._annealed(sizes.schedule)
        return found or {IWAE: evaluated(self.whole, None, 10 * sizes.num_samples)[1]}

    def _exact(self) -> Bound:
        found = evaluate(
            unsized(self.prepared), bounds="exact", num_samples=2, progress=False
        ).bounds["exact"]
        return Bound(found, torch.full_like(found.values, torch.inf))

    def _annealed(self, schedule: Schedule) -> dict[str, Bound]:
        """Annealed importance sampling from guide and prior; a base that fails is left out."""
        found = {}
        try:
            found[GUIDE] = self._run(
                unsized(self.prepared), None, replace(schedule, base="guide")
            )
        except ContractError:
            if self.evidence == "ais":
                raise
        # The two bases must have independent chains, so the second has another seed.
        seed = self.prepared.seed + int(GUIDE in found)
        with suppress(ContractError):
            found[PRIOR] = self._from_prior(replace(schedule, base="prior"), seed)
        return found

    def _from_prior(self, schedule: Schedule, seed: int) -> Bound:
        """The bound from the prior for evenly spaced data; NaN for the others."""
        lvm, data, most = self.prepared.lvm, self.prepared.data, self.chains_from_prior
        if not data.divisible or len(data) <= most:
            return self._run(lvm, data, schedule, seed)
        picked = torch.linspace(0, len(data) - 1, most).long()
        bound = self._run(lvm, data.subset(picked), schedule, seed)
        nothing = torch.full((len(data),), torch.nan, dtype=torch.float64)
        values, errors, ess = (
            nothing.index_copy(0, picked, v.double())
            for v in (*bound.estimate, bound.ess)
        )
        return Bound(Estimate(values, errors), ess)

    def _run(
        self, lvm: Any, data: Data | None, schedule: Schedule, seed: int = 0
    ) -> Bound:
        run = ais(lvm, data, schedule, compile=self.compile, seed=seed, progress=False)
        return _log_mean_exp(run.bound, run.ess)


def best_elbo(prepared: Prepared, sizes: Sizes) -> Estimate:
    """The ELBO of the best guide of the family for each datum."""
    found = []
    for batch in prepared.batches:
        local, *_ = fit_local_guide(
            prepared.lvm, batch.x, steps=sizes.steps, seed=prepared.seed
        )
        found.append(evaluated(local, batch, sizes.num_samples, prepared.seed)[0])
    values, errors = (torch.cat(part) for part in zip(*found, strict=True))
    return Estimate(values, errors)


def in_one_batch(prepared: Prepared) -> Prepared:
    """The same pair with all data in one batch, for functions that choose a size."""
    size = len(prepared.data)
    return replace(prepared.cut(size), batch_size=size)


def unsized(prepared: Prepared) -> Prepared:
    """The same pair and data; functions choose their own size of batch."""
    return replace(prepared, batch_size=None)


def choose_bounds(
    bounds: dict[str, Bound], quantile: float, *, margin: float
) -> tuple[Bound, Tensor]:
    """The largest bound of each datum, and its position in `bounds`, shape (num_data,).

    Arguments:
        bounds: bounds by name.
        quantile: standard errors that noise may reach.
        margin: nats by which the best ELBO must be larger.
    """
    first, *others = _by_precision(bounds)
    names, each = list(bounds), list(bounds.values())
    chosen = each[first]
    which = torch.full(chosen.ess.shape, first)
    if EXACT in bounds:
        return chosen, which
    for i in others:
        least = 0.0
        if names[i] == ELBO:
            least = margin  # the best ELBO is chosen only if the other bounds fail
        is_larger = _is_larger(each[i], chosen, least, quantile)
        chosen = _select(is_larger, each[i], chosen)
        which = which.masked_fill(is_larger, i)
    return chosen, which


def _by_precision(bounds: dict[str, Bound]) -> list[int]:
    """The positions of the bounds: the exact one first, the most precise next, the ELBO last.

    A bound that is unknown for some data has an infinite error.
    """
    names = list(bounds)
    errors = [
        b.estimate.errors.mean().nan_to_num(torch.inf).item() for b in bounds.values()
    ]
    return sorted(
        range(len(names)),
        key=lambda i: (names[i] != EXACT, names[i] == ELBO, errors[i]),
    )


def _is_larger(bound: Bound, chosen: Bound, margin: float, quantile: float) -> Tensor:
    """Where a bound replaces a more precise one, because it is larger beyond both errors.

    Where the two agree within their errors, the mean over all data decides.
    """
    above = bound.estimate - chosen.estimate
    noise = quantile * above.errors
    is_known = torch.isfinite(above.errors)
    # clipped, so that no single datum decides the mean
    clipped = Estimate(
        above.values.clamp(-noise, noise)[is_known], above.errors[is_known]
    )
    is_larger_in_mean = (
        bool(is_known.any()) and clipped.mean > margin + 3 * clipped.mc_se
    )
    agrees = above.values.abs() <= noise
    return (above.values > margin + noise) | (agrees & is_larger_in_mean)


def _select(which: Tensor, bound: Bound, other: Bound) -> Bound:
    """A bound where `which` holds, the other one elsewhere."""
    values = torch.where(which, bound.estimate.values, other.estimate.values)
    errors = torch.where(which, bound.estimate.errors, other.estimate.errors)
    return Bound(Estimate(values, errors), torch.where(which, bound.ess, other.ess))


def _log_mean_exp(estimate: Estimate, ess: Tensor) -> Bound:
    """A bound that is a log-mean-exp; its error is unknown below five effective draws."""
    errors = torch.where(ess < FEW, _FEW_ERROR, estimate.errors)
    return Bound(Estimate(estimate.values, errors), ess)
