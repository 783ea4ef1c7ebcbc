"""The public names of ``vilvm``, which imports this file when one of them is first used."""

from vilvm._runtime.distributed import PeerLostError, distributed
from vilvm.data.data import Data
from vilvm.data.interleaved import Interleaved
from vilvm.diagnostics import Diagnosis, Finding, diagnose, diagnose_draws
from vilvm.evaluation import Estimate, Evaluation, Ledger, compare, evaluate
from vilvm.inference import Posterior, infer
from vilvm.lvm import ContractError, LatentVariableModel, NotApplicable, Pair
from vilvm.saving import load, save
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
    "Posterior",
    "Prepared",
    "compare",
    "diagnose",
    "diagnose_draws",
    "distributed",
    "evaluate",
    "fit",
    "infer",
    "load",
    "log_weights",
    "posterior",
    "posterior_mean",
    "predict",
    "prepare",
    "resample",
    "sample",
    "save",
]
