"""Variational inference for latent variable models, on Pyro."""

from vilvm._runtime.distributed import PeerLostError, distributed
from vilvm.data.data import Data
from vilvm.data.interleaved import Interleaved
from vilvm.diagnostics import Diagnosis, Finding, diagnose
from vilvm.evaluation import Estimate, Evaluation, Ledger, compare, evaluate
from vilvm.lvm import ContractError, LatentVariableModel, NotApplicable, Pair
from vilvm.training import CheckpointError, Event, Fit, History, NonFiniteLossError, fit
from vilvm.weights import (
    LogWeights,
    Prepared,
    log_weights,
    posterior,
    posterior_mean,
    predict,
    prepare,
    resample,
    sample,
)

__all__ = [
    "CheckpointError",
    "ContractError",
    "Data",
    "Diagnosis",
    "Estimate",
    "Evaluation",
    "Event",
    "Finding",
    "Fit",
    "History",
    "Interleaved",
    "LatentVariableModel",
    "Ledger",
    "LogWeights",
    "NonFiniteLossError",
    "NotApplicable",
    "Pair",
    "PeerLostError",
    "Prepared",
    "compare",
    "diagnose",
    "distributed",
    "evaluate",
    "fit",
    "log_weights",
    "posterior",
    "posterior_mean",
    "predict",
    "prepare",
    "resample",
    "sample",
]
