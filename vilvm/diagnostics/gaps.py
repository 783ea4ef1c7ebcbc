"""How far the bound is from the evidence, and whose fault it is.

The inference gap of a datum is the divergence of its guide from its posterior, and it falls in two:

    log p(x) − ELBO(q)  =  [log p(x) − ELBO(q*)]  +  [ELBO(q*) − ELBO(q)]  =  KL(q ‖ p(z | x)),
                            approximation gap         amortisation gap

q* the best guide of the same family for this datum alone. The first is the fault of the family, which a richer one would mend; the second that of the
encoder, which more capacity or more training would. In a guide without amortisation the second is what training has left undone.

log p(x) is exact where the model knows it, else a lower bound, by annealed importance sampling or from importance weights, so that the approximation
gap may be larger than it is said to be; q* is found by descent, so that the amortisation gap may be too.

Reference: Inference Suboptimality in Variational Autoencoders, Chris Cremer, Xuechen Li and David Duvenaud, 2018.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from vilvm.data import Data, seeded
from vilvm.diagnostics.finding import Finding, Gravity
from vilvm.diagnostics.psis import check_weighable
from vilvm.evaluation import Estimate, Schedule, ais, evaluate
from vilvm.evaluation.bounds import exact_log_evidence, in_parts
from vilvm.guides import fit_local_guide
from vilvm.lvm import ContractError, LatentVariableModel, fixed_beside
from vilvm.weights.contract import check_number

__all__ = ["Gaps", "gaps"]

_SMALL, _LARGE = 0.1, 1.0  # nats
_BATCH = 250
SOURCE = "Cremer, Li and Duvenaud, 2018; a divergence of 0.1 nats moves no probability by more than √(KL/2) = 0.22, one of 1 nat by 0.71 (Pinsker)"


@dataclass(frozen=True)
class Gaps:
    """The inference gap of every datum, in its two parts, in nats per datum (of all data together if they share a latent).

    Arguments:
        evidence: log p(x), or a lower bound on it.
        evidence_by: "exact", "ais" or "iwae".
        best: ELBO of the best guide of the family for each datum.
        amortised: ELBO of the guide.
        has_amortisation: whether the guide serves data by an encoder; else the second gap is one of training.
    """

    evidence: Estimate
    evidence_by: str
    best: Estimate
    amortised: Estimate
    has_amortisation: bool = True

    @property
    def approximation(self) -> Estimate:
        """evidence − best: what the family costs."""
        return self.evidence - self.best

    @property
    def amortisation(self) -> Estimate:
        """best − amortised: what the encoder costs."""
        return self.best - self.amortised

    @property
    def total(self) -> Estimate:
        """evidence − amortised: KL(q(z | x) ‖ p(z | x))."""
        return self.evidence - self.amortised

    def worst(self, count: int = 10) -> list[tuple[int, float]]:
        """The data of the largest gap, worst first, as (index, nats)."""
        order = self.total.values.argsort(descending=True)[:count]
        return [(int(i), self.total.values[i].item()) for i in order]

    @property
    def finding(self) -> Finding:
        """The verdict."""
        total, approximation, amortisation = self.total, self.approximation, self.amortisation
        second = "amortisation" if self.has_amortisation else "what training has left undone"
        by = {
            "exact": "exact",
            "ais": "by annealed importance sampling, a lower bound",
            "iwae": "by importance weights, a lower bound",
        }[self.evidence_by]
        told = (
            f"The guide is {_told(total)} nats {'per datum ' if len(total.values) > 1 else ''}from the posterior: {_told(approximation)} is its family's "
            f"(approximation gap), {_told(amortisation)} {second}{' gap' if self.has_amortisation else ''}; log p(x) {by}."
        )
        certain = total.mean - 3 * total.mc_se  # of these data: their spread is no doubt about them
        if certain <= _SMALL:
            return Finding("Inference gap", Gravity.FINE, told, SOURCE)
        if self.has_amortisation and amortisation.mean > approximation.mean:
            advice = "Train longer, give the encoder more capacity, or refine the guide for the data that matter (vilvm.guides.fit_local_guide)."
        elif amortisation.mean > approximation.mean:
            advice = "Train longer, or with a smaller learning rate at the end."
        else:
            advice = "Take a richer family: a full covariance, a flow, or more than one latent layer."
        if self._lopsided:
            told += f" A tenth of the data hold {self._share_of_tenth:.0%} of it: {', '.join(str(i) for i, _ in self.worst(5))} are the worst."
        return Finding("Inference gap", Gravity.WARNING if certain > _LARGE else Gravity.NOTE, told, SOURCE, advice)

    @property
    def _share_of_tenth(self) -> float:
        values = self.total.values.clamp(min=0).sort(descending=True).values
        return (values[: max(1, len(values) // 10)].sum() / values.sum().clamp(min=1e-12)).item()

    @property
    def _lopsided(self) -> bool:
        return len(self.total.values) >= 20 and self._share_of_tenth > 0.3


def _told(estimate: Estimate) -> str:
    return f"{estimate.mean:.2f} ± {estimate.se:.2f}"


def gaps(
    lvm: LatentVariableModel,
    data: Any,
    *,
    evidence: Literal["exact", "ais", "iwae"] | None = None,
    num_samples: int = 1000,
    steps: int = 400,
    schedule: Schedule | None = None,
    batch_size: int = _BATCH,
    seed: int = 0,
) -> Gaps:
    """The gap between log p(x) and the ELBO, and how much of it is due to the guide's family and how much to amortisation.

    Arguments:
        lvm: the model and guide, a ``torch.nn.Module``; left as it is.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum a row; a few hundred tell enough.
        evidence: where log p(x) is taken from: by default the model itself, if it has ``exact_log_evidence``, else AIS, else importance
            weights of ten times as many samples, for latents that no chain can move.
        num_samples: draws a datum for each ELBO.
        steps: by which the guide of each datum is optimised.
        schedule: of annealed importance sampling.
        batch_size: data that are optimised in parallel.
        seed: of the draws, and of the data's transform.

    Returns:
        Gaps, with a finding.

    Raises:
        ContractError: the guide is degenerate, a prior is flat, or the guide's parameters cannot be optimised (a discrete latent in it).

    Example:
        >>> import torch
        >>> from models.ppca import PPCA
        >>> from vilvm.diagnostics import gaps
        >>> x = torch.randn(40, 4)
        >>> found = gaps(PPCA(4, 2).maximise(x), x, num_samples=100, steps=20)
        >>> found.evidence_by, abs(found.total.mean) < 1e-3
        ('exact', True)
    """
    if evidence not in (None, "exact", "ais", "iwae"):
        raise ValueError(f"gaps: unknown evidence={evidence!r}; choose 'exact', 'ais' or 'iwae'.")
    for name, value in (("num_samples", num_samples), ("steps", steps), ("batch_size", batch_size)):
        check_number(f"gaps: {name}", value)
    if not isinstance(lvm, torch.nn.Module):
        raise ContractError(
            f"gaps: {type(lvm).__name__} is no torch.nn.Module, which is needed to copy it; wrap it as vilvm.Pair(model, guide)."
        )
    fixed = fixed_beside(lvm, data, seed)
    with seeded(seed, fixed.device):
        parts, plan = in_parts(lvm, fixed, batch_size)
        check_weighable("gaps", lvm, plan)
        found, by = _evidence(lvm, fixed, evidence, num_samples, schedule, seed)
        best = [_elbo(fit_local_guide(lvm, part.x, steps=steps, seed=seed)[0], part, num_samples, seed) for part in parts]
    return Gaps(found, by, _joined(best), _elbo(lvm, fixed, num_samples, seed), plan.local)


def _elbo(lvm: Any, data: Data, num_samples: int, seed: int) -> Estimate:
    size = len(data) if data.divisible else None  # a guide for each datum knows its batch by the places in it
    return evaluate(lvm, data, bounds="elbo", num_samples=num_samples, batch_size=size, seed=seed, progress=False).bounds["elbo"]


def _evidence(
    lvm: LatentVariableModel, data: Data, wanted: str | None, num_samples: int, schedule: Schedule | None, seed: int
) -> tuple[Estimate, str]:
    if wanted == "exact" or (wanted is None and exact_log_evidence(lvm) is not None):
        return evaluate(lvm, data, bounds="exact", num_samples=2, seed=seed, progress=False).bounds["exact"], "exact"
    if wanted in (None, "ais"):
        try:
            return ais(lvm, data, schedule, seed=seed, progress=False).bound, "ais"
        except ContractError:
            if wanted == "ais":
                raise
    return evaluate(lvm, data, bounds="iwae", num_samples=10 * num_samples, seed=seed, progress=False).bounds["iwae"], "iwae"


def _joined(estimates: list[Estimate]) -> Estimate:
    values, errors = (torch.cat(part) for part in zip(*estimates, strict=True))
    return Estimate(values, errors)
