"""Figures of a run, and of models side by side."""

from vilvm.report.figures import (
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
from vilvm.report.grid import picture_rows

__all__ = [
    "elbo_curves",
    "interpolations",
    "interpolations_by_model",
    "latent_scatter",
    "manifold",
    "picture_rows",
    "planes",
    "prior_samples",
    "reconstructions",
    "restorations",
    "samples_by_model",
]
