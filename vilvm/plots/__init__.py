"""Figures of a run, of models side by side and of diagnostics; the extra ``plots``."""

# ruff: noqa: E402

from vilvm._runtime.extras import require

require("matplotlib", extra="plots")

from vilvm.plots._style import Figures
from vilvm.plots.calibration import coverage_curve, rank_ecdf, rank_histograms
from vilvm.plots.curves import curves, elbo_curves
from vilvm.plots.diagnosis_figures import diagnosis_figures
from vilvm.plots.diagnostics import (
    elbo_tail,
    gap_bars,
    kl_bars,
    pareto_k,
    predictive_check,
)
from vilvm.plots.latents import latent_scatter, planes
from vilvm.plots.ledger_bounds import ledger_bounds
from vilvm.plots.pictures import (
    interpolations,
    interpolations_by_model,
    manifold,
    picture_rows,
    prior_samples,
    reconstructions,
    restorations,
    samples_by_model,
    traversal,
)
from vilvm.plots.posterior import forest, pairs

__all__ = [
    "Figures",
    "coverage_curve",
    "curves",
    "diagnosis_figures",
    "elbo_curves",
    "elbo_tail",
    "forest",
    "gap_bars",
    "interpolations",
    "interpolations_by_model",
    "kl_bars",
    "latent_scatter",
    "ledger_bounds",
    "manifold",
    "pairs",
    "pareto_k",
    "picture_rows",
    "planes",
    "predictive_check",
    "prior_samples",
    "rank_ecdf",
    "rank_histograms",
    "reconstructions",
    "restorations",
    "samples_by_model",
    "traversal",
]
