"""Inference: a posterior in one call, and the rungs of its ladder."""

from vilvm.inference.infer import infer
from vilvm.inference.posterior import Posterior, Summary

__all__ = ["Posterior", "Summary", "infer"]
