"""A pair run and its traces read: log-weights, draws, and how the pair is laid out.

No other room reads a Pyro trace.
"""

from vilvm.weights.layout import Layout, find_layout
from vilvm.weights.log_weights import LogWeights, log_weights, sample_pass, weigh, weight_chunks
from vilvm.weights.prepared import Prepared, prepare
from vilvm.weights.sampling import (
    observed,
    posterior,
    posterior_mean,
    predict,
    replicate,
    resample,
    sample,
)
from vilvm.weights.simulation import Simulation, simulate

__all__ = [
    "Layout",
    "LogWeights",
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
