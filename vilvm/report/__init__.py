"""Figures of a run."""

from vilvm.report.figures import elbo_curves, interpolations, latent_scatter, manifold, prior_samples, reconstructions

__all__ = ["elbo_curves", "interpolations", "latent_scatter", "manifold", "prior_samples", "reconstructions"]
