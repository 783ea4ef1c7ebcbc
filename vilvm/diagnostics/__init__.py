"""Diagnostics: whether a posterior can be trusted, and what a model makes of its latents."""

from vilvm.diagnostics.collapse import active_units

__all__ = ["active_units"]
