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
    "evaluated",
    "in_one_batch",
]

GUIDE, PRIOR = "ais from the guide", "ais from the prior"
IWAE, ELBO, EXACT = "iwae", "elbo", "exact"
FEW = 5.0  # effective draws, below which the error of a log-mean-exp is unknown
_FEW_ERROR = 2.3  # nats, the error stated then


class Bound(NamedTuple):
    """log p(x), or a lower bound on it.

    Arguments:
        estimate: in nats per datum; NaN for data without an estimate.
        ess: effective number of the draws or chains that determine it, shape (num_data,); ∞ if it
            is exact or a plain mean.

    Example:
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
    """The ELBO and the importance-weighted bound, of as many draws, on all data at once.

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
    """Looks for the largest bound on log p(x).

    Arguments:
        prepared: the pair and its data.
        evidence: "exact", "ais" or "iwae" as the user asked, or None.
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
            found[GUIDE] = self._run(unsized(self.prepared), None, replace(schedule, base="guide"))
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
            nothing.index_copy(0, picked, v.double()) for v in (*bound.estimate, bound.ess)
        )
        return Bound(Estimate(values, errors), ess)

    def _run(self, lvm: Any, data: Data | None, schedule: Schedule, seed: int = 0) -> Bound:
        run = ais(lvm, data, schedule, compile=self.compile, seed=seed, progress=False)
        return _log_mean_exp(run.bound, run.ess)


def best_elbo(prepared: Prepared, sizes: Sizes) -> Estimate:
    """The ELBO of the best guide of the family for each datum."""
    found = []
    for batch in prepared.batches:
        local, *_ = fit_local_guide(prepared.lvm, batch.x, steps=sizes.steps, seed=prepared.seed)
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


def _log_mean_exp(estimate: Estimate, ess: Tensor) -> Bound:
    """A bound by a log-mean-exp, whose error is unknown for fewer than five effective draws."""
    errors = torch.where(ess < FEW, _FEW_ERROR, estimate.errors)
    return Bound(Estimate(estimate.values, errors), ess)
