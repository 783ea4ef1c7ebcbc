"""The plots that go with a diagnosis, one for each finding that has something to show."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from matplotlib.figure import Figure

from vilvm.diagnostics import SBC, TARP, Collapse, Convergence, Gaps, ParetoK, PredictiveCheck
from vilvm.plots.findings import (
    coverage_curve,
    elbo_tail,
    gap_bars,
    kl_bars,
    pareto_k,
    predictive_check,
    rank_ecdf,
)

__all__ = ["diagnosis_figures"]


def diagnosis_figures(results: Mapping[str, Any], history: Any = None) -> dict[str, Figure]:
    """Figures by the name of the finding they belong to.

    Arguments:
        results: those of a ``Diagnosis``.
        history: of the training, for the finding on its convergence.

    Example:
        >>> import torch, vilvm
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.plots import diagnosis_figures
        >>> x = torch.randn(50, 4)
        >>> sorted(diagnosis_figures({"Pareto k̂": vilvm.diagnostics.pareto_k(PPCA(4, 2).maximise(x), x)}))
        ['Pareto k̂']
    """
    drawn = {
        r.finding.name: plot(r)
        for r in results.values()
        if (plot := _PLOTS.get(type(r))) is not None
    }
    for result in results.values():
        if isinstance(result, Convergence) and history is not None and result.trend is not None:
            records = getattr(history, "history", history)
            drawn[result.finding.name] = elbo_tail(
                records[result.column], result.num_records, records["step"]
            )
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _weights(found: ParetoK) -> Figure | None:
    return None if len(found.k) == 1 else pareto_k(found.k, found.threshold, found.index)


def _ranks(found: SBC) -> Figure | None:
    # a latent that a mask hides in some simulations has fewer ranks, and so another band
    whole = (found.ranks >= 0).all(0)
    names = [name for name, kept in zip(found.names, whole.tolist(), strict=True) if kept]
    return (
        rank_ecdf(found.ranks[:, whole], found.num_draws, names, found.false_alarm)
        if names
        else None
    )


def _coverage(found: TARP) -> Figure:
    # How far from the reference the truth lies among the draws, as the share of them that is
    # nearer: uniform, if all is well.
    level = torch.linspace(0, 1, 101, dtype=torch.float64)
    shares = (found.ranks.double() + 0.5) / (found.num_draws + 1)
    reached = torch.searchsorted(shares.sort().values, level, right=True).double() / len(shares)
    return coverage_curve(level, reached, len(shares), found.false_alarm)


def _gaps(found: Gaps) -> Figure:
    bars = {
        "inference gap": found.total,
        "of the family": found.approximation,
        "of amortisation" if found.has_amortisation else "of training": found.amortisation,
    }
    unit = "nats per datum" if len(found.total.values) > 1 else "nats"
    return gap_bars({name: (e.mean, e.se) for name, e in bars.items()}, unit)


def _divergences(found: Collapse) -> Figure | None:
    name, kl = max(found.kl.items(), key=lambda item: item[1].numel())
    if kl.numel() == 1:
        return None
    active = found.active.get(name)
    return kl_bars(
        kl.flatten(), None if active is None or active.shape != kl.shape else active.flatten()
    )


def _replicates(found: PredictiveCheck) -> Figure:
    name, p = min(found.adjusted.items(), key=lambda item: item[1].min().item())
    i = int(p.flatten().argmin())
    replicated = found.replicated[name].reshape(found.num_draws, -1)[:, i]
    return predictive_check(replicated, found.observed[name].flatten()[i].item(), name)


_PLOTS: dict[type, Callable[[Any], Figure | None]] = {
    ParetoK: _weights,
    SBC: _ranks,
    TARP: _coverage,
    Gaps: _gaps,
    Collapse: _divergences,
    PredictiveCheck: _replicates,
}
