"""Evaluation of a pair, by its log-weights and by its draws.

Bounds on the evidence, reconstructions, tests of draws against data, interpolations, and the
ledger that compares models. Training optimises a Pyro ELBO; every bound reported here is a
function of the log-weights.
"""

from vilvm.evaluation.ais import AISResult, ais
from vilvm.evaluation.bdmc import BDMCResult, bdmc
from vilvm.evaluation.disentanglement import InformationGap, mig
from vilvm.evaluation.estimates import Bounds, Estimate, Evaluation
from vilvm.evaluation.evaluate import evaluate
from vilvm.evaluation.interpolation import Path, great_circle, interpolate, line
from vilvm.evaluation.ledger import Ledger, compare
from vilvm.evaluation.ledger_rows import Difference, Protocol, Row
from vilvm.evaluation.reconstruction import Decibels, psnr, reconstruct, squared_error
from vilvm.evaluation.schedule import Schedule
from vilvm.evaluation.two_sample import (
    Features,
    TwoSample,
    fit_features,
    frechet_distance,
    two_sample_test,
)

__all__ = [
    "AISResult",
    "BDMCResult",
    "Bounds",
    "Decibels",
    "Difference",
    "Estimate",
    "Evaluation",
    "Features",
    "InformationGap",
    "Ledger",
    "Path",
    "Protocol",
    "Row",
    "Schedule",
    "TwoSample",
    "ais",
    "bdmc",
    "compare",
    "evaluate",
    "fit_features",
    "frechet_distance",
    "great_circle",
    "interpolate",
    "line",
    "mig",
    "psnr",
    "reconstruct",
    "squared_error",
    "two_sample_test",
]
