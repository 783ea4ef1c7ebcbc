"""Evaluation: bounds on the evidence, reconstructions, how well draws pass for data, and the
ledger that compares models.
"""

from vilvm.evaluation.ais import AISResult, BDMCResult, Schedule, ais, bdmc
from vilvm.evaluation.evaluate import Estimate, Evaluation, evaluate
from vilvm.evaluation.ledger import Ledger, compare
from vilvm.evaluation.ledger_rows import Difference, Protocol, Row
from vilvm.evaluation.reconstruction import Decibels, psnr, reconstruct, squared_error
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
    "Decibels",
    "Difference",
    "Estimate",
    "Evaluation",
    "Features",
    "Ledger",
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
    "psnr",
    "reconstruct",
    "squared_error",
    "two_sample_test",
]
