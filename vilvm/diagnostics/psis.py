"""Pareto k̂: how heavy the tail of a guide's importance weights is, datum by datum.

Of weights w = p(x, z) / q(z | x), z ~ q, moments exist up to order 1/k, k being the shape of the generalised Pareto distribution that
their largest values follow. It is fitted to the 3√S largest of S weights, which are then put at its quantiles (Pareto-smoothed importance
sampling). With k < ½ weights have a variance; above

    k̂ > min(1 − 1/log₁₀ S, 0.7)

S draws are too few for an estimate to be near what it estimates, and the guide is no stand-in for the posterior. A known case: for
q = N(m, s²) and p = N(m, σ²) with s < σ, k = 1 − s²/σ²; with s ≥ σ the weights are bounded.

The weight is a datum's own. One weight over all data, their product, has a tail that grows with their number whatever the guide; it is
looked at only where the data share a latent, so that there is no other.

k̂ is noisy: with M values in the tail its standard error is about (1 + k)/√M · M/(M + 10), 0.14 for k = ½ and S = 1000. Of many data, some
are above the threshold by chance, so an alarm is raised on a test. Its hypothesis: no datum has k > ½. It is rejected if more data are above
the threshold than the binomial law allows, or one is further above ½ than the largest of so many would be; each at half of the stated
false-alarm rate, the second after Bonferroni over the data. It is grave where a quarter of the data are above the threshold.

References: Pareto Smoothed Importance Sampling, Vehtari, Simpson, Gelman, Yao and Gabry, 2024; Yes, but Did It Work?: Evaluating
Variational Inference, Yao, Vehtari, Simpson and Gelman, 2018.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import bdtrc, logsumexp, ndtr, ndtri
from torch import Tensor

from vilvm.data import seeded, tensors_of
from vilvm.diagnostics.finding import Finding, Gravity
from vilvm.evaluation.bounds import in_parts, rows_in_a_pass
from vilvm.lvm import ContractError, LatentVariableModel, check_contract, device_of, evaluation_mode, fixed_beside
from vilvm.weights import Layout, layout, weight_chunks
from vilvm.weights.contract import check_number

__all__ = ["ParetoK", "Smoothed", "check_weighable", "good_k", "pareto_k", "psis"]

SOURCE = "min(1 − 1/log10 S, 0.7): Vehtari et al., 2024; Yao et al., 2018"
_FEWEST = 25  # draws of which a fifth, five, is still a tail
_FLAT = 0.01  # a tail whose log-weights differ by less is that of equal weights and rounding
_LUMP = 0.1  # of S: effective sample size of weights whose tail is one lump, above which they do no harm
_MUCH = 0.25  # share of the data from which the guide, and not the data, is at fault
JOINT_ROWS = 400_000  # draws of all data together in a pass, for a joint weight, which is seldom of a network


class Smoothed(NamedTuple):
    """Pareto-smoothed weights.

    Arguments:
        log_weights: log of the weights, which sum to one over samples, float64 on the CPU, of the shape that was given; −inf throughout
            where every weight is zero.
        k: k̂ of each column, shape (N,), or () for a single one. 0 where the largest weights are all equal, so that there is no tail;
            ∞ where every weight is zero, or where a few ones carry all.
    """

    log_weights: Tensor
    k: Tensor

    @property
    def ess(self) -> Tensor:
        """Effective sample size of the smoothed weights, 1 / Σₛ wₛ², of the shape of `k`; 0 where every weight is zero."""
        squares = (2 * self.log_weights).exp().sum(0)
        return torch.where(squares > 0, 1 / squares, 0.0)


def good_k(num_samples: int) -> float:
    """The k̂ up to which `num_samples` draws are enough: min(1 − 1/log₁₀ S, 0.7)."""
    return min(1 - 1 / math.log10(num_samples), 0.7)


def psis(log_weights: Tensor) -> Smoothed:
    """Pareto-smoothed importance sampling (ArviZ's), for every column of log-weights.

    Arguments:
        log_weights: shape (S, N) or (S,), S at least 25, up to a constant for each column; −inf for a weight of zero.

    Returns:
        Smoothed: normalised log-weights of that shape, and k̂ of shape (N,) or ().

    Raises:
        ValueError: too few samples, or a log-weight is NaN or +∞.

    Reference: Pareto Smoothed Importance Sampling, Vehtari, Simpson, Gelman, Yao and Gabry, 2024.

    Example:
        >>> import torch
        >>> from vilvm.diagnostics.psis import psis
        >>> smoothed = psis(torch.zeros(100, 3))
        >>> smoothed.k.tolist(), smoothed.ess.round().tolist()
        ([0.0, 0.0, 0.0], [100.0, 100.0, 100.0])
    """
    if log_weights.dim() not in (1, 2) or len(log_weights) < _FEWEST:
        raise ValueError(
            f"psis: log-weights must have shape (S, N) or (S,) with at least {_FEWEST} samples S; got {tuple(log_weights.shape)}."
        )
    columns = log_weights.detach().cpu().double().numpy().reshape(len(log_weights), -1).T
    if np.isnan(columns).any() or np.isposinf(columns).any():
        raise ValueError("psis: a log-weight is NaN or +inf; look at the densities that it is made of.")
    smoothed, k = _smooth(columns)
    shape = log_weights.shape[1:]
    return Smoothed(torch.from_numpy(smoothed.T.copy()).reshape(log_weights.shape), torch.from_numpy(k).reshape(shape))


def _smooth(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``psis`` of rows (N, S), those that have no tail to fit taken by themselves."""
    from arviz_stats.base import array_stats  # here, for it takes a second to import

    num_samples = columns.shape[1]
    largest = columns.max(1)
    cutoff = np.partition(columns, -_tail(num_samples) - 1)[:, -_tail(num_samples) - 1]
    dead = np.isneginf(largest)
    flat = ~dead & (largest - np.where(dead, 0.0, cutoff) < _FLAT)
    plain = np.where(dead[:, None], -np.inf, columns - logsumexp(np.where(dead[:, None], 0.0, columns), 1, keepdims=True))
    smoothed, k = plain.copy(), np.where(dead, np.inf, 0.0)
    # A tail of equal values, as discrete latents make them, is a lump too: no distribution can be fitted to it.
    least = np.partition(columns, -_tail(num_samples))[:, -_tail(num_samples)]
    level = ~dead & ~flat & (largest - np.where(dead, 0.0, least) < 1e-9)
    k[level] = np.nan
    rows = ~dead & ~flat & ~level
    if rows.any():
        with np.errstate(all="ignore"):
            smoothed[rows], k[rows] = array_stats.psislw(-columns[rows])  # it is the negative that ArviZ calls a weight
    undone = np.isnan(smoothed).any(1)
    smoothed[undone] = plain[undone]
    # Where the tail is mostly one lump (zeros, or the few weights of a discrete latent), no Pareto distribution fits.
    lumps = np.isnan(k)
    k[lumps] = np.where(1 / np.exp(2 * plain[lumps]).sum(1) < _LUMP * num_samples, np.inf, 0.0)
    return smoothed, k


def _tail(num_samples: int) -> int:
    """How many of the largest weights are the tail."""
    return math.floor(3 * math.sqrt(num_samples)) if num_samples > 225 else num_samples // 5


@dataclass(frozen=True)
class ParetoK:
    """Pareto k̂ of a guide.

    Arguments:
        k: k̂ of each datum, float64, shape (num_data,); of all data together, shape (1,), if they share a latent.
        ess: effective sample size of the smoothed weights, from 0 to num_samples, of the same shape.
        index: which data these are, of the same shape.
        num_samples: draws a datum, S.
        joint: whether the weight is that of all data together.
        false_alarm: how often a guide of which no datum has k > ½ may be given a warning.
    """

    k: Tensor
    ess: Tensor
    index: Tensor
    num_samples: int
    joint: bool
    false_alarm: float = 0.01

    @property
    def threshold(self) -> float:
        """The k̂ up to which so many draws are enough: min(1 − 1/log₁₀ S, 0.7)."""
        return good_k(self.num_samples)

    @property
    def share(self) -> float:
        """The share of data above the threshold."""
        return (self.k > self.threshold).double().mean().item()

    def worst(self, count: int = 10) -> list[tuple[int, float]]:
        """The data of the largest k̂, worst first, as (index, k̂)."""
        order = self.k.argsort(descending=True)[:count]
        return [(int(i), k.item()) for i, k in zip(self.index[order], self.k[order], strict=True)]

    @property
    def by_chance(self) -> bool:
        """Whether noise alone would put so many data above the threshold, and as far, if none had k > ½."""
        num_data, tail = len(self.k), _tail(self.num_samples)
        error = 1.5 / math.sqrt(tail) * tail / (tail + 10)  # towards ½ by the weight of ten, the prior of the fit
        above = int((self.k > self.threshold).sum())
        many = bdtrc(above - 1, num_data, ndtr((0.5 - self.threshold) / error)) < self.false_alarm / 2
        far = self.k.max().item() > 0.5 + error * -ndtri(self.false_alarm / 2 / num_data)
        return not (many or far)

    @property
    def finding(self) -> Finding:
        """The verdict."""
        return self._of_one() if self.joint or len(self.k) == 1 else self._of_many()

    def _of_one(self) -> Finding:
        k, whose = self.k[0].item(), "the joint weight of all data" if self.joint else "the one datum"
        told = f"k̂ of {whose} is {k:.2f}; {self.num_samples} draws are enough up to {self.threshold:.2f}"
        if k > self.threshold:
            return Finding(
                "Pareto k̂", Gravity.GRAVE, f"{told}, so the guide is too far from the posterior to be used for it.", SOURCE, _ADVICE
            )
        if k > 0.5:
            verdict = f"{told}, but above 0.5 the weights have no variance: the guide is not exact, and its weights correct it."
            return Finding("Pareto k̂", Gravity.NOTE, verdict, SOURCE, "Use importance-weighted estimates (vilvm.resample).")
        return Finding("Pareto k̂", Gravity.FINE, f"{told}.", SOURCE)

    def _of_many(self) -> Finding:
        num_data, above = len(self.k), int((self.k > self.threshold).sum())
        told = (
            f"k̂ is above {self.threshold:.2f} for {above} of {num_data} data ({self.share:.1%}); median {self.k.median().item():.2f}, "
            f"largest {self.k.max().item():.2f}"
        )
        source = f"{SOURCE}; alarms by a test of false-alarm rate {self.false_alarm:g}"
        if above == 0 and self.by_chance:
            return Finding("Pareto k̂", Gravity.FINE, f"{told}.", source)
        worst = f"worst of data {', '.join(str(i) for i, _ in self.worst(min(5, max(1, above))))}"
        if self.by_chance:
            verdict = f"{told}, {worst}: no more than the noise of k̂ would make of weights that barely have a variance."
            return Finding(
                "Pareto k̂", Gravity.NOTE, verdict, source, "To be sure of these data, look at them again with more samples."
            )
        gravity = Gravity.GRAVE if self.share > _MUCH else Gravity.WARNING
        return Finding("Pareto k̂", gravity, f"{told}: of these the guide misses part of the posterior, {worst}.", source, _ADVICE)


_ADVICE = (
    "Train on, take a richer guide (full covariance, a flow) or another parametrisation of the model, or see whose fault it is by the gaps "
    "of approximation and amortisation."
)


@torch.no_grad()
def pareto_k(
    lvm: LatentVariableModel,
    data: Any,
    num_samples: int = 1000,
    batch_size: int | None = None,
    seed: int = 0,
    *,
    false_alarm: float = 0.01,
) -> ParetoK:
    """Pareto k̂ and effective sample size of the guide's importance weights, datum by datum.

    Fitting takes about 0.4 ms a datum at 1000 samples, on top of running the pair.

    Arguments:
        lvm: the model and guide.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum a row; a transform is drawn once, from `seed`.
        num_samples: draws a datum, at least 100; the tail is about 3√S of them.
        batch_size: data a pass, 50 by default; a model whose data share a latent is given all of them at once.
        seed: of samples and transform.
        false_alarm: how often a guide of which no datum has k > ½ may be given a warning.

    Returns:
        ParetoK, with a finding.

    Raises:
        ValueError: num_samples is below 100, or batch_size below 1.
        ContractError: the guide is degenerate, a prior is flat, or the pair breaks the contract.

    Reference: Yes, but Did It Work?: Evaluating Variational Inference, Yao, Vehtari, Simpson and Gelman, 2018.

    Example:
        >>> import torch
        >>> from models.ppca import PPCA
        >>> from vilvm.diagnostics.psis import pareto_k
        >>> x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
        >>> found = pareto_k(PPCA(4, 2).maximise(x), x)
        >>> found.k.shape, found.finding.gravity.name
        (torch.Size([30]), 'FINE')
    """
    check_contract(lvm)
    check_number("pareto_k: num_samples", num_samples, 100)
    if batch_size is not None:
        check_number("pareto_k: batch_size", batch_size)
    fixed = fixed_beside(lvm, data, seed)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    start = 0
    with seeded(seed, device_of(lvm, fixed.device)), evaluation_mode(lvm):
        parts, plan = in_parts(lvm, fixed, batch_size)
        check_weighable("pareto_k", lvm, plan)
        for part in parts:
            here = plan if part is parts[0] else layout(lvm, part.x, plate=plan.data_plate)
            smoothed, index = _of_part(lvm, part.x, num_samples, here)
            found.append((smoothed.k, smoothed.ess, index + start))
            start += len(part)
    k, ess, index = (torch.cat(p) for p in zip(*found, strict=True))
    return ParetoK(k, ess, index, num_samples, not plan.local, false_alarm)


def _of_part(lvm: LatentVariableModel, batch: Any, num_samples: int, plan: Layout) -> tuple[Smoothed, Tensor]:
    """The smoothed weights of one batch, one column a datum, and which data of the batch they are of."""
    rows = rows_in_a_pass(tensors_of(batch)[0].device) if plan.local else JOINT_ROWS
    logs, drawn = [], None
    for weights in weight_chunks(lvm, batch, num_samples, max(1, rows // max(plan.num_data, 1)), plan=plan):
        logs.append(weights.log_weight.cpu())
        drawn = weights.indices
    log_w = torch.cat(logs)
    smoothed = psis(log_w if plan.local else log_w.reshape(num_samples, 1))
    return smoothed, drawn.cpu() if drawn is not None and plan.local else torch.arange(len(smoothed.k))


def check_weighable(what: str, lvm: object, plan: Layout) -> None:
    """Raises ContractError if draws of the guide have no weight, for want of a density."""
    if plan.degenerate:
        raise ContractError(
            f"{what}: the guide of {type(lvm).__name__} puts latent {plan.degenerate[0]!r} on one point (a Delta), where it has no density and its "
            "draws no weight: give it a guide with a density (vilvm.guides.fit_guide)."
        )
    if plan.improper:
        raise ContractError(
            f"{what}: the prior of latent {plan.improper[0]!r} of {type(lvm).__name__} is flat: give it a proper one (vilvm.priors.fit_prior)."
        )
