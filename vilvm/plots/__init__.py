"""Figures of a run, of models side by side and of findings."""

from vilvm.plots.diagnosis_figures import diagnosis_figures
from vilvm.plots.figures import (
    curves,
    elbo_curves,
    interpolations,
    interpolations_by_model,
    latent_scatter,
    manifold,
    planes,
    prior_samples,
    reconstructions,
    restorations,
    samples_by_model,
)
from vilvm.plots.findings import (
    coverage_curve,
    elbo_tail,
    gap_bars,
    kl_bars,
    pareto_k,
    predictive_check,
    rank_ecdf,
    rank_histograms,
)
from vilvm.plots.grid import picture_rows

__all__ = [
    "coverage_curve",
    "curves",
    "diagnosis_figures",
    "elbo_curves",
    "elbo_tail",
    "gap_bars",
    "interpolations",
    "interpolations_by_model",
    "kl_bars",
    "latent_scatter",
    "manifold",
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
]
