"""PSIS leave-one-out prediction: how well the posterior given the others predicts each datum.

Where data share latents z, the expected log predictive density of datum i given all others is

    elpd_i = log p(x_i | x_{−i}) = log ( Σ_s r_s p(x_i | z_s) / Σ_s r_s ),    r_s ∝ w_s / p(x_i | z_s),   w_s = p(x, z_s) / q(z_s | x),

for draws z_s of the guide: their weight w makes draws of the posterior of them, and the division
takes datum i out again; the r are Pareto-smoothed, and k̂_i says whether that can be done with so
many draws. What is summed is elpd = Σ_i elpd_i; the effective number of parameters is p = Σ_i log
p(x_i | x) − elpd.

Where every latent belongs to one datum, leaving a datum out leaves nothing to know it by: given
the model's parameters p(x_i | x_{−i}) = p(x_i), which is what ``evaluate`` estimates, on data that
were not trained on.

References: Practical Bayesian Model Evaluation Using Leave-One-Out Cross-Validation and WAIC,
Vehtari, Gelman and Gabry, 2017; Bayesian Leave-One-Out Cross-Validation for Large Data, Magnusson,
Andersen, Jonasson and Vehtari, 2019 (draws of an approximate posterior).
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from scipy.special import ndtri
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_seed
from vilvm._runtime.random import seeded
from vilvm.diagnostics._tail import tail_error
from vilvm.diagnostics._time_budget import TimeBudget, affordable_draws
from vilvm.diagnostics.finding import Finding, Severity
from vilvm.diagnostics.pareto_k import JOINT_ROWS, check_weighable, good_k, psis
from vilvm.lvm import ContractError, LatentVariableModel, device_of, evaluation_mode, fixed_beside
from vilvm.weights import Layout, LogWeights, find_layout, weight_chunks

__all__ = ["LOO", "loo"]

# draws that know k̂, and how often fewer may raise a false alarm about any datum
_KNOWN, _CHANCE = 10_000, 0.01

_KEPT = 20_000_000  # draws times data that are held at a time
_WORKED = 4_000_000  # of these, at a time


@dataclass(frozen=True)
class LOO:
    """Leave-one-out prediction, in nats.

    Arguments:
        elpd: expected log predictive density, all data together.
        se: its standard error over the data.
        p: effective number of parameters.
        elpd_i: of each datum, shape (num_data,).
        k: Pareto k̂ of each datum's weights, shape (num_data,).
        joint_k: Pareto k̂ of the guide's own weights, no datum left out.
        num_samples: S.
        cut: what was cut short for want of time.
        own: whether data have latents of their own, of which weights seldom know what they were
            without their datum.
    """

    elpd: float
    se: float
    p: float
    elpd_i: Tensor
    k: Tensor
    joint_k: float
    num_samples: int
    cut: str = ""
    own: bool = False

    @property
    def threshold(self) -> float:
        """The k̂ up to which so many draws are enough: min(1 − 1/log₁₀ S, 0.7)."""
        return good_k(self.num_samples)

    @property
    def _certain(self) -> float:
        """The k̂ above which a datum moves the posterior, whatever the number of draws: of few,
        whose threshold is below 0.7, beyond their noise.
        """
        if self.threshold >= good_k(_KNOWN):
            return self.threshold
        return good_k(_KNOWN) + float(-ndtri(_CHANCE / len(self.k))) * tail_error(self.num_samples)

    @property
    def finding(self) -> Finding:
        """The verdict: CRITICAL if the guide is too far from the posterior; WARNING if single data
        move it so much that they cannot be left out by weights.

        NOTE if it is most of the data, or each has a latent of its own: then it is not they that
        stand apart; or if few draws leave it open.
        """
        name, source = (
            "Leave-one-out prediction",
            "min(1 − 1/log10 S, 0.7): Vehtari et al., 2017 and 2024",
        )
        if self.joint_k > self.threshold:
            verdict = (
                f"k̂ of the guide's own weights is {self.joint_k:.2f}, so draws of it cannot "
                "stand for the posterior, with or without a datum."
            )
            return Finding(name, Severity.CRITICAL, verdict, source, "Take a richer guide first.")
        bad = (self.k > self.threshold).nonzero()[:, 0].tolist()
        told = (
            f"elpd is {self.elpd:.1f} ± {self.se:.1f} nats over {len(self.k)} data, with "
            f"{self.p:.1f} effective parameters"
        )
        if not bad:
            return Finding(
                name,
                Severity.OK,
                f"{told}; no datum's k̂ is above {self.threshold:.2f}.",
                source,
                about="model",
            )
        if self.own or 2 * len(bad) > len(self.k) or not bool((self.k > self._certain).any()):
            verdict = (
                f"{told}, but k̂ is above {self.threshold:.2f} for {len(bad)} of them, so that "
                "the number is not known: these data cannot be left out by weights."
            )
            advice = (
                "Take more draws (num_samples=...); or, to compare models, fit anew without some "
                "of the data and evaluate on these."
            )
            return Finding(name, Severity.NOTE, verdict, source, advice, "model")
        worst = sorted(bad, key=lambda i: -self.k[i].item())[:5]
        return Finding(
            name,
            Severity.WARNING,
            f"{told}, but k̂ is above {self.threshold:.2f} for {len(bad)} data "
            f"({', '.join(map(str, worst))} the worst): each moves the posterior so "
            "much that it cannot be left out by weights.",
            source,
            "Look at these data, take a likelihood with heavier tails, or fit anew without each "
            "of them.",
            "model",
        )


@torch.no_grad()
def loo(
    lvm: LatentVariableModel,
    data: Any,
    *,
    num_samples: int = 10_000,
    budget: float | None = None,
    seed: int = 0,
) -> LOO:
    """PSIS leave-one-out prediction of a model whose data share latents, smoothed by ArviZ.

    Arguments:
        lvm: the model and guide, its data in a plate.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum a row.
        num_samples: draws of the guide, at least 100.
        budget: seconds after which it makes do with fewer draws; see `cut`.
        seed: of the draws, and of the data's transform.

    Raises:
        ContractError: every latent belongs to one datum; some observed site is outside the plate
            over the data, or is one of all data together; or the guide is degenerate, a prior
            flat.

    Example:
        >>> import torch
        >>> from vilvm.models.eight_schools import EightSchools, eight_schools
        >>> from vilvm.diagnostics import loo
        >>> loo(EightSchools(guide="mean_field"), eight_schools(), num_samples=500).elpd_i.shape
        torch.Size([8])
    """
    seed = check_seed("loo: seed", seed)
    num_samples = check_number("loo: num_samples", num_samples, 100)
    clock, wanted = TimeBudget(budget), num_samples
    fixed = fixed_beside(lvm, data, seed)
    device = device_of(lvm, fixed.device)
    with seeded(seed, device), evaluation_mode(lvm):
        layout = find_layout(lvm, fixed.x)
        _check(lvm, layout)
        _check_sites(lvm, layout, next(weight_chunks(lvm, fixed.x, 1, 1, layout=layout)))
        if clock.is_limited:

            def drawn(size: int) -> None:
                for _ in weight_chunks(lvm, fixed.x, size, size, layout=layout):
                    pass

            num_samples = affordable_draws(drawn, 100, wanted, clock.left / 2)
        width, chunk = max(1, _KEPT // num_samples), max(1, JOINT_ROWS // max(layout.num_data, 1))
        found, sums, whole = [], None, None
        for start in range(0, layout.num_data, width):
            columns = slice(start, start + width)
            with seeded(seed, device):  # so that each pass has the same draws
                passes = [
                    _densities(w, columns)
                    for w in weight_chunks(lvm, fixed.x, num_samples, chunk, layout=layout)
                ]
            log_p = torch.cat([p for p, _ in passes])
            if sums is None or whole is None:
                sums = _Sums(
                    *(torch.cat(column) for column in zip(*(s for _, s in passes), strict=True))
                )
                whole = psis(sums.joint)
            found += [
                _left_out(block, whole.log_weights, sums)
                for block in log_p.split(max(1, _WORKED // num_samples), 1)
            ]
    assert whole is not None
    elpd, fitted, k = (torch.cat(column) for column in zip(*found, strict=True))
    return LOO(
        elpd=elpd.sum().item(),
        se=(elpd.std() * math.sqrt(len(elpd))).item() if len(elpd) > 1 else math.nan,
        p=(fitted - elpd).sum().item(),
        elpd_i=elpd,
        k=k,
        joint_k=whole.k.item(),
        num_samples=num_samples,
        cut=f"{num_samples} of {wanted} draws" if num_samples < wanted else "",
        own=bool(layout.data_axes),
    )


class _Sums(NamedTuple):
    """Of every draw, each of shape (S,): the joint log-weight; its part that is of no datum;
    log-likelihoods of all data that are finite; how many are not.
    """

    joint: Tensor
    rest: Tensor
    finite: Tensor
    impossible: Tensor


def _densities(weights: LogWeights, columns: slice) -> tuple[Tensor, _Sums]:
    """log p(x_i | z) of some of the data, shape (S, some), and the sums over all of them."""
    log_p = weights.log_likelihood.double()
    impossible = log_p.isneginf()
    finite = log_p.masked_fill(impossible, 0.0).sum(1)
    sums = _Sums(weights.log_weight, -weights.rate, finite, impossible.sum(1))
    # a view would keep them all
    return log_p[:, columns].cpu().clone(), _Sums(*(s.cpu() for s in sums))


def _left_out(log_p: Tensor, whole: Tensor, sums: _Sums) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x_i | x_{−i}), log p(x_i | x) and k̂ of some data: the weight without a datum is made
    of the others, for −∞ cannot be taken off again.
    """
    impossible = log_p.isneginf()
    others = sums.finite[:, None] - log_p.masked_fill(impossible, 0.0)
    others = others.masked_fill(sums.impossible[:, None] > impossible.long(), -math.inf)
    without = psis(sums.rest[:, None] + others)
    elpd = (without.log_weights + log_p).logsumexp(0)
    return elpd, (whole[:, None] + log_p).logsumexp(0), without.k


def _check(lvm: object, layout: Layout) -> None:
    check_weighable("loo", lvm, layout)
    name = type(lvm).__name__
    if layout.local:
        raise ContractError(
            f"loo: every latent of {name} belongs to one datum, so that p(x_i | the others) is "
            "p(x_i): see evaluate, on data that were not trained on."
        )
    if layout.data_plate is None:
        raise ContractError(
            f"loo: {name} has no plate over its data in which all of its observed sites stand "
            f"({', '.join(map(repr, layout.observed))}), so no datum can be "
            "left out: observe each of them in one pyro.plate, one datum a row."
        )
    if layout.subsample:
        raise ContractError(
            f"loo: {name} subsamples its plate {next(iter(layout.subsample))!r} at random; take a "
            "model that sees all of it."
        )


def _check_sites(lvm: object, layout: Layout, weights: LogWeights) -> None:
    """Every log-likelihood is that of single data."""
    for site, term in weights.log_likelihoods.items():
        if term.dim() != 2:
            raise ContractError(
                f"loo: site {site!r} of {type(lvm).__name__} depends on a latent that is summed "
                f"over for all data of the plate {layout.data_plate!r} together, "
                "so no datum can be left out of it: let the guide draw that latent, or give each "
                "datum one of its own."
            )
