"""Variational inference for latent variable models, on Pyro.

A latent variable model is any object with two Pyro callables: ``model(batch)``, which is
p(x | z) p(z), and ``guide(batch)``, which is q(z | x). There are three verbs: ``fit`` trains the
pair, ``evaluate`` bounds its evidence with standard errors, and ``diagnose`` reports whether the
guide approximates the posterior.

Examples:
    >>> import torch, vilvm
    >>> from vilvm.models.ppca import PPCA
    >>> lvm, x = PPCA(data_dim=3, latent_dim=1), torch.randn(50, 3)
    >>> vilvm.fit(lvm, x, steps=20).stopped
    'finished'
    >>> sorted(vilvm.evaluate(lvm, x, num_samples=10).bounds)
    ['elbo', 'exact', 'iwae']
    >>> diagnosis = vilvm.diagnose(lvm, x)  # doctest: +SKIP
"""

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
