"""Evaluation: how good a model is, in nats per datum, with standard errors."""

from vilvm.evaluation.bounds import Estimate, Evaluation, evaluate

__all__ = ["Estimate", "Evaluation", "evaluate"]
