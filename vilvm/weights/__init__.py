"""A pair run and its traces read: log-weights, draws, and how the pair is laid out. No other room reads a Pyro trace."""

from vilvm.weights.layout import Layout, layout
from vilvm.weights.log_weights import LogWeights, log_weights, one_pass, weigh, weight_chunks
from vilvm.weights.sampling import observed, posterior, posterior_mean, predict, replicate, resample, sample
from vilvm.weights.simulation import Simulation, simulate

__all__ = [
    "Layout",
    "LogWeights",
    "Simulation",
    "layout",
    "log_weights",
    "observed",
    "one_pass",
    "posterior",
    "posterior_mean",
    "predict",
    "replicate",
    "resample",
    "sample",
    "simulate",
    "weigh",
    "weight_chunks",
]
