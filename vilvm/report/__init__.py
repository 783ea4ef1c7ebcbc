"""Figures of a run, of models side by side and of findings; and the page, which holds them all."""

from vilvm.report.diagnosis import diagnosis_figures
from vilvm.report.figures import (
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
from vilvm.report.findings import (
    coverage_curve,
    elbo_tail,
    gap_bars,
    kl_bars,
    pareto_k,
    predictive_check,
    rank_ecdf,
    rank_histograms,
)
from vilvm.report.grid import picture_rows
from vilvm.report.page import Page, Table
from vilvm.report.provenance import command, environment

__all__ = [
    "Page",
    "Table",
    "command",
    "coverage_curve",
    "curves",
    "diagnosis_figures",
    "elbo_curves",
    "elbo_tail",
    "environment",
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
