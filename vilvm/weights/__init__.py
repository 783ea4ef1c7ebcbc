"""Log-weights of a latent variable model, draws of it, and its layout on a batch.

Everything that vilvm reports about a model is a function of its log-weights; training optimises a
Pyro ELBO. Only this room reads Pyro traces.
"""

from vilvm.weights.guide_draws import posterior, resample
from vilvm.weights.guide_means import Means, posterior_mean
from vilvm.weights.layout import Layout, find_layout
from vilvm.weights.log_weights import (
    LogWeights,
    log_weights,
    sample_pass,
    weigh,
    weight_chunks,
)
from vilvm.weights.prediction import observed, predict, replicate
from vilvm.weights.prepared import Prepared, prepare
from vilvm.weights.sampling import sample
from vilvm.weights.simulation import Simulation, simulate

__all__ = [
    "Layout",
    "LogWeights",
    "Means",
    "Prepared",
    "Simulation",
    "find_layout",
    "log_weights",
    "observed",
    "posterior",
    "posterior_mean",
    "predict",
    "prepare",
    "replicate",
    "resample",
    "sample",
    "sample_pass",
    "simulate",
    "weigh",
    "weight_chunks",
]
