"""A pair run and its traces read: log-weights, draws, and how the pair is laid out. No other room reads a Pyro trace."""

from vilvm.weights.densities import LogWeights, log_weights, weight_chunks
from vilvm.weights.draws import posterior, posterior_mean, predict, resample, sample
from vilvm.weights.structure import Layout, layout

__all__ = [
    "Layout",
    "LogWeights",
    "layout",
    "log_weights",
    "posterior",
    "posterior_mean",
    "predict",
    "resample",
    "sample",
    "weight_chunks",
]
