"""Inference: a posterior in one call, and the rungs of its ladder."""

from vilvm.inference.flow import fit_flow
from vilvm.inference.gaussian import fit_gaussian
from vilvm.inference.infer import infer
from vilvm.inference.laplace import laplace
from vilvm.inference.pathfinder import pathfinder
from vilvm.inference.posterior import Posterior, Summary
from vilvm.inference.refine import refine

__all__ = [
    "Posterior",
    "Summary",
    "fit_flow",
    "fit_gaussian",
    "infer",
    "laplace",
    "pathfinder",
    "refine",
]
