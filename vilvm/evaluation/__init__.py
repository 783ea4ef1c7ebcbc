"""Evaluation: bounds on the evidence, and reconstructions."""

from vilvm.evaluation.bounds import Estimate, Evaluation, evaluate
from vilvm.evaluation.reconstruction import psnr, reconstruct, squared_error

__all__ = ["Estimate", "Evaluation", "evaluate", "psnr", "reconstruct", "squared_error"]
