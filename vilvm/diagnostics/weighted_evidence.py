"""The evidence, and the gap to the ELBO, from the importance weights of draws.

With log-weights log wₛ = log p(x, zₛ) − log q(zₛ), zₛ ~ q,

    ELBO = (1/S) Σ log wₛ,    log p(x) ≈ log (1/S) Σ wₛ,    KL(q ‖ p(z | x)) ≈ log p(x) − ELBO.

The second is a lower bound in expectation, and low by little where k̂ is small. Weights describe p
only where draws are: a mode without draws is missing from the evidence, and nothing here shows it.

Reference: Importance Weighted Autoencoders, Burda, Grosse and Salakhutdinov, 2016.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vilvm._runtime.results import Result, frame_of
from vilvm.diagnostics._tail import good_k
from vilvm.diagnostics._verdicts.weighted_evidence import weighted_evidence_finding
from vilvm.diagnostics.finding import Finding
from vilvm.diagnostics.psis import psis
from vilvm.evaluation import Estimate
from vilvm.evaluation.estimates import log_mean_error

__all__ = ["WeightedEvidence", "weighted_evidence"]


@dataclass(frozen=True, repr=False)
class WeightedEvidence(Result):
    """The evidence and the ELBO of draws of q, in nats, of all data jointly.

    Arguments:
        log_evidence: log p(x), of one value.
        elbo: the ELBO, of one value.
        k: Pareto k̂ of the weights.
        num_draws: S.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics import weighted_evidence
        >>> weighted_evidence(torch.zeros(200)).gap
        0.0
    """

    log_evidence: Estimate
    elbo: Estimate
    k: float
    num_draws: int

    @property
    def gap(self) -> float:
        """log p(x) less the ELBO, an estimate of KL(q ‖ p(z | x)), in nats."""
        return self.log_evidence.mean - self.elbo.mean

    @property
    def reliable(self) -> bool:
        """Whether k̂ is at most min(1 − 1/log₁₀ S, 0.7)."""
        return self.k <= good_k(self.num_draws)

    @property
    def finding(self) -> Finding:
        """OK, or NOTE if k̂ is too large for an estimate."""
        return weighted_evidence_finding(self)

    def to_frame(self) -> Any:
        """A pandas DataFrame of log-evidence and ELBO: quantity, value and error, in nats."""
        both = {"log_evidence": self.log_evidence, "elbo": self.elbo}
        return frame_of(
            {
                "quantity": list(both),
                "value": [found.mean for found in both.values()],
                "error": [found.mc_se for found in both.values()],
            }
        )


def weighted_evidence(log_weights: Tensor) -> WeightedEvidence:
    """The evidence and the ELBO from log-weights.

    Arguments:
        log_weights: log p(x, z) − log q(z) of draws z ~ q, shape (S,), S at least 25.

    Returns:
        WeightedEvidence, in nats.

    Raises:
        ValueError: another shape, too few draws, or a log-weight that is NaN or +∞.

    Reference: Importance Weighted Autoencoders, Burda, Grosse and Salakhutdinov, 2016.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics import weighted_evidence
        >>> found = weighted_evidence(torch.full((200,), -3.0))  # q is the posterior
        >>> found.log_evidence.mean, found.elbo.mean
        (-3.0, -3.0)
    """
    if log_weights.dim() != 1:
        raise ValueError(
            "weighted_evidence: log_weights must have shape (S,); got "
            f"{tuple(log_weights.shape)}."
        )
    log_w, num = log_weights.detach().double().cpu(), len(log_weights)
    smoothed = psis(log_w)
    value = log_w.logsumexp(0) - torch.tensor(float(num)).double().log()
    ess = (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp()
    error = log_mean_error(ess, num)
    elbo, elbo_error = log_w.mean(), log_w.std() / num**0.5
    return WeightedEvidence(
        Estimate(value[None], error[None]),
        Estimate(elbo[None], elbo_error[None]),
        smoothed.k.item(),
        num,
    )
