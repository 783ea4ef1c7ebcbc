"""The plots that go with a diagnosis: one for each finding that a plot can show."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from matplotlib.figure import Figure

from vilvm.diagnostics import (
    SBC,
    TARP,
    Collapse,
    Convergence,
    Gaps,
    ParetoK,
    PredictiveCheck,
)
from vilvm.plots._style import Figures
from vilvm.plots.calibration import coverage_curve, rank_ecdf
from vilvm.plots.diagnostics import (
    elbo_tail,
    gap_bars,
    kl_bars,
    pareto_k,
    predictive_check,
)

__all__ = ["diagnosis_figures"]


def diagnosis_figures(results: Mapping[str, Any], history: Any = None) -> Figures:
    """The figures of a diagnosis, by the name of their finding.

    Arguments:
        results: of a ``Diagnosis``.
        history: of the training, for the finding on its convergence.

    Returns:
        The figures, a dict; a finding without a plot has none.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics import pareto_k
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.plots import diagnosis_figures
        >>> x = torch.randn(50, 4)
        >>> sorted(diagnosis_figures({"Pareto k̂": pareto_k(PPCA(4, 2).maximise(x), x)}))
        ['Pareto k̂']
    """
    drawn: dict[str, Figure | None] = {}
    for result in results.values():
        if type(result) in _PLOTS:
            drawn[result.finding.name] = _PLOTS[type(result)](result)
        if isinstance(result, Convergence):
            drawn[result.finding.name] = _convergence(result, history)
    return Figures({n: figure for n, figure in drawn.items() if figure is not None})


def _convergence(found: Convergence, history: Any) -> Figure | None:
    if history is None or found.trend is None:
        return None
    records = getattr(history, "history", history)
    return elbo_tail(records[found.column], found.num_records, records["step"])


def _pareto_k(found: ParetoK) -> Figure | None:
    if len(found.k) == 1:
        return None
    return pareto_k(found.k, found.threshold, found.index)


def _ranks(found: SBC) -> Figure | None:
    # A latent that is masked in some simulations has fewer ranks, and needs another band.
    complete = (found.ranks >= 0).all(0)
    names = [
        name for name, kept in zip(found.names, complete.tolist(), strict=True) if kept
    ]
    if not names:
        return None
    return rank_ecdf(
        found.ranks[:, complete], found.num_draws, names, found.false_alarm
    )


def _coverage(found: TARP) -> Figure:
    # The share of draws that are nearer to the reference than the truth is uniform under
    # calibration.
    level = torch.linspace(0, 1, 101, dtype=torch.float64)
    shares = (found.ranks.double() + 0.5) / (found.num_draws + 1)
    reached = torch.searchsorted(
        shares.sort().values, level, right=True
    ).double() / len(shares)
    return coverage_curve(level, reached, len(shares), found.false_alarm)


def _gaps(found: Gaps) -> Figure:
    rest = "of amortisation" if found.has_amortisation else "of training"
    bars = {"inference gap": found.total}
    if found.is_divided:
        bars |= {"of the family": found.approximation, rest: found.amortisation}
    unit = "nats per datum" if len(found.total.values) > 1 else "nats"
    return gap_bars({name: (e.mean, e.se) for name, e in bars.items()}, unit)


def _divergences(found: Collapse) -> Figure | None:
    """The bars of the latent with the most dimensions."""
    name, kl = max(found.kl.items(), key=lambda item: item[1].numel())
    if kl.numel() == 1:
        return None
    active = found.active.get(name)
    if active is None or active.shape != kl.shape:
        return kl_bars(kl.flatten())
    return kl_bars(kl.flatten(), active.flatten())


def _replicates(found: PredictiveCheck) -> Figure:
    """The statistic with the smallest adjusted p-value."""
    name, p = min(found.adjusted.items(), key=lambda item: item[1].min().item())
    i = int(p.flatten().argmin())
    replicated = found.replicated[name].reshape(found.num_draws, -1)[:, i]
    return predictive_check(
        replicated, found.observed[name].flatten()[i].item(), found.label(name, i)
    )


_PLOTS: dict[type, Callable[[Any], Figure | None]] = {
    ParetoK: _pareto_k,
    SBC: _ranks,
    TARP: _coverage,
    Gaps: _gaps,
    Collapse: _divergences,
    PredictiveCheck: _replicates,
}
