"""Diagnostics: whether a posterior can be trusted, and how a model uses its latents.

Each result has a ``finding``, its verdict in a few sentences.
"""

from vilvm.diagnostics._verdicts.diagnosis import Judgement
from vilvm.diagnostics.chains import Chains, chains
from vilvm.diagnostics.collapse import Collapse, active_units, collapse
from vilvm.diagnostics.collapse_alarm import CollapseAlarm
from vilvm.diagnostics.convergence import Converged, Convergence, convergence
from vilvm.diagnostics.correction import Correction, correction
from vilvm.diagnostics.diagnose import Diagnosis, diagnose
from vilvm.diagnostics.diagnose_draws import diagnose_draws
from vilvm.diagnostics.finding import Finding, Severity
from vilvm.diagnostics.gaps import Bound, Gaps, gaps
from vilvm.diagnostics.gradient_snr import GradientSNR, gradient_snr
from vilvm.diagnostics.loo import LOO, loo
from vilvm.diagnostics.pareto_k import ParetoK, Recheck, pareto_k
from vilvm.diagnostics.posterior_table import PosteriorTable, Scalar
from vilvm.diagnostics.predictive_check import PredictiveCheck, predictive_check
from vilvm.diagnostics.psis import psis
from vilvm.diagnostics.rates import Rates, rates
from vilvm.diagnostics.sbc import SBC, sbc
from vilvm.diagnostics.stein import Stein, stein
from vilvm.diagnostics.tarp import TARP, tarp
from vilvm.diagnostics.vsbc import VSBC, vsbc
from vilvm.diagnostics.weighted_evidence import WeightedEvidence, weighted_evidence

__all__ = [
    "LOO",
    "SBC",
    "TARP",
    "VSBC",
    "Bound",
    "Chains",
    "Collapse",
    "CollapseAlarm",
    "Converged",
    "Convergence",
    "Correction",
    "Diagnosis",
    "Finding",
    "Gaps",
    "GradientSNR",
    "Judgement",
    "ParetoK",
    "PosteriorTable",
    "PredictiveCheck",
    "Rates",
    "Recheck",
    "Scalar",
    "Severity",
    "Stein",
    "WeightedEvidence",
    "active_units",
    "chains",
    "collapse",
    "convergence",
    "correction",
    "diagnose",
    "diagnose_draws",
    "gaps",
    "gradient_snr",
    "loo",
    "pareto_k",
    "predictive_check",
    "psis",
    "rates",
    "sbc",
    "stein",
    "tarp",
    "vsbc",
    "weighted_evidence",
]
