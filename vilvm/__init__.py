"""Variational inference for latent variable models, on Pyro."""

from vilvm.data import Data
from vilvm.lvm import ContractError, LatentVariableModel, Pair
from vilvm.weights import LogWeights, log_weights, posterior, posterior_mean, predict, sample

__all__ = [
    "ContractError",
    "Data",
    "LatentVariableModel",
    "LogWeights",
    "Pair",
    "log_weights",
    "posterior",
    "posterior_mean",
    "predict",
    "sample",
]
