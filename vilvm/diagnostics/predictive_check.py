"""Predictive checks: whether data that the model makes look like the data that it was given.

With statistics T₁ … T_K of a whole data set, the data are replicated,

    posterior:  z ~ q(z | x),  x_rep ~ p(x | z);      prior:  z ~ p(z),  x_rep ~ p(x | z),

and T(x) is held against the D values T(x_rep). The two-sided p-value of a statistic is twice the
smaller of the shares of replicates on either side of it, the data counted among them.

Of K statistics some are extreme by chance. With the D + 1 data sets on one footing, a statistic's
deviation from the median is measured in units of the distance of the 95 % (5 %, below) quantile
from it, and a data set's is the largest over its statistics, M. The adjusted p-value of T_k(x) is
the share of data sets with M at least as large as the deviation of T_k(x) (max-T), so that the
model is rejected by any statistic with no more than the stated false-alarm rate, without the many
replicates that Bonferroni would ask for.

The rate is exact for the prior check, where the model is given; with a posterior, data are used
twice: p-values keep to the middle (conservative: rather no alarm than a false one), and are at
most twice too small. What a model of a datum's own latents gets wrong in their distribution shows
in the prior check; what it gets wrong in its likelihood, in the posterior one.

References: Bayesianly Justifiable and Relevant Frequency Calculations for the Applied
Statistician, Donald B. Rubin, 1984; Posterior Predictive Assessment of Model Fitness via Realized
Discrepancies, Gelman, Meng and Stern, 1996; Posterior Predictive p-Values, Xiao-Li Meng, 1994 (at
most twice); Resampling-Based Multiple Testing, Westfall and Young, 1993 (max-T).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_probability, check_seed, optional
from vilvm._runtime.random import seeded
from vilvm.data.data import Data
from vilvm.diagnostics._time_budget import TimeBudget
from vilvm.diagnostics.finding import Finding, Severity
from vilvm.evaluation.evaluate import in_parts
from vilvm.lvm import (
    ContractError,
    LatentVariableModel,
    NotApplicable,
    check_contract,
    device_of,
    evaluation_mode,
    fixed_beside,
)
from vilvm.weights import Layout, observed, posterior, replicate, sample
from vilvm.weights.simulation import undrawable

__all__ = ["PredictiveCheck", "default_statistics", "predictive_check"]

Statistic = Callable[[Tensor], Tensor | float]

_NUMBERS = 20_000_000  # replicated at a time
_ROWS = 10_000
_ADVICE = {
    "mean": "Look for a missing intercept or covariate, or for a fit stopped too early.",
    "sd": "Take a likelihood with a spread of its own (a negative binomial for a Poisson, a learnt "
    "scale).",
    "minimum": "Take a likelihood with the right support and tails.",
    "maximum": "Take a likelihood with heavier or lighter tails (Student t for a Gaussian).",
    "skewness": "Take a skewed likelihood, or transform the data.",
    "kurtosis": "Take a likelihood with heavier or lighter tails (Student t for a Gaussian).",
    "zeros": "Take a likelihood with the right share of zeros (zero-inflated).",
    "sd of row means": "The latents do not carry what a datum's components share: look at collapse and at the "
    "size of the latents.",
    "neighbours": "The components of a datum depend on one another otherwise than through the "
    "latents.",
}


@dataclass(frozen=True)
class PredictiveCheck:
    """Statistics of the data and of replicated data, by name.

    Arguments:
        observed: T(x), shape (...) of the statistic, float64.
        replicated: T(x_rep), shape (num_draws, ...).
        kind: "posterior" or "prior".
        false_alarm: how often a right model may be given a warning, all statistics together.
        cut: what was cut short for want of time; of fewer than 1 / false_alarm replicates no
            statistic stands out.
    """

    observed: dict[str, Tensor]
    replicated: dict[str, Tensor]
    kind: str
    false_alarm: float = 0.01
    cut: str = ""

    @property
    def num_draws(self) -> int:
        """How many data sets were replicated."""
        return len(next(iter(self.replicated.values())))

    @property
    def p_values(self) -> dict[str, Tensor]:
        """Two-sided p-value of each statistic by itself, of the statistic's shape."""
        found = {}
        for name, value in self._all.items():
            shares = torch.stack(
                [(value >= value[0]).double().mean(0), (value <= value[0]).double().mean(0)]
            )
            found[name] = (2 * shares.amin(0)).clamp(max=1)
        return found

    @property
    def adjusted(self) -> dict[str, Tensor]:
        """p-value of each statistic as one of so many (max-T), of the statistic's shape."""
        deviations = {name: _deviations(value) for name, value in self._all.items()}
        largest = torch.stack([d.reshape(len(d), -1).amax(1) for d in deviations.values()]).amax(0)
        return {
            name: (largest.reshape(-1, *[1] * (d.dim() - 1)) >= d[0]).double().mean(0)
            for name, d in deviations.items()
        }

    @property
    def _all(self) -> dict[str, Tensor]:
        """The data's statistics first, the replicates' below, shape (num_draws + 1, ...)."""
        return {
            name: torch.cat([value.unsqueeze(0), self.replicated[name]])
            for name, value in self.observed.items()
        }

    @property
    def finding(self) -> Finding:
        """The verdict."""
        name, severity = f"{self.kind.capitalize()} predictive check", Severity.OK
        source = (
            f"max-T over all statistics, false-alarm rate {self.false_alarm:g}: Westfall and "
            "Young, 1993"
        )
        if self.kind == "posterior":
            source += "; posterior p-values are conservative: Gelman, Meng and Stern, 1996"
        smallest = {n: p.min().item() for n, p in self.adjusted.items()}
        failing = sorted(
            (n for n, p in smallest.items() if p < self.false_alarm), key=lambda n: smallest[n]
        )
        if not failing:
            least = min(smallest, key=lambda n: smallest[n])
            verdict = (
                f"None of {len(smallest)} statistics tells the data from {self.num_draws} "
                f"replicates (least likely: {least}, adjusted p = "
                f"{smallest[least]:.2g})."
            )
            return Finding(name, severity, verdict, source, about="model")
        told = "; ".join(self._told(n, smallest[n]) for n in failing[:4])
        advice = dict.fromkeys(
            _ADVICE[key] for n in failing if (key := n.split(": ")[-1]) in _ADVICE
        )
        return Finding(
            name,
            Severity.WARNING,
            f"The data are not like what the model makes: {told}.",
            source,
            " ".join([*advice][:2]),
            "model",
        )

    def _told(self, name: str, p: float) -> str:
        observed, replicated = (
            self.observed[name].flatten(),
            self.replicated[name].reshape(self.num_draws, -1),
        )
        i = int(self.adjusted[name].flatten().argmin())
        low, high = replicated[:, i].quantile(torch.tensor([0.005, 0.995]).double()).tolist()
        where = f"{name}[{i}]" if len(observed) > 1 else name
        return (
            f"{where} is {observed[i].item():.3g}, of replicates {low:.3g} to {high:.3g} "
            f"(adjusted p = {p:.2g})"
        )


def _deviations(values: Tensor) -> Tensor:
    """How far each data set is from the median, in units of the distance of the 95 % or 5 %
    quantile on its side.
    """
    low, median, high = values.quantile(torch.tensor([0.05, 0.5, 0.95]).to(values), 0)
    off = values - median

    def unit(quantile: Tensor, side: Tensor) -> Tensor:
        # A statistic that is one and the same for most data sets has no quantile to measure in;
        # its mean square then.
        return torch.where(quantile > 0, quantile, side.square().mean(0).sqrt())

    units = torch.where(
        off > 0, unit(high - median, off.clamp(min=0)), unit(median - low, off.clamp(max=0))
    )
    return torch.where(off == 0, 0.0, off.abs() / units)


@torch.no_grad()
def predictive_check(
    lvm: LatentVariableModel,
    data: Any,
    statistics: Mapping[str, Statistic] | None = None,
    num_draws: int = 200,
    seed: int = 0,
    kind: Literal["posterior", "prior"] = "posterior",
    *,
    false_alarm: float = 0.01,
    batch_size: int | None = None,
    budget: float | None = None,
) -> PredictiveCheck:
    """Holds statistics of the data against those of data that the model replicates.

    Arguments:
        lvm: the model and guide.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum a row; a transform
            is drawn once, from `seed`.
        statistics: functions by name, each called with all data of an observed site, a tensor of
            shape (num_data, ...), and returning a number or a tensor; by default those of
            ``default_statistics``. With several observed sites, each is taken of every one.
        num_draws: replicated data sets, at least 1 / false_alarm.
        seed: of draws and transform.
        kind: "posterior" draws latents from the guide, given these data; "prior" from the prior.
        false_alarm: how often a right model may be given a warning, all statistics together; with
            "posterior", about or below.
        batch_size: data a pass, 10,000 by default; a model whose data share a latent is given all
            of them at once.
        budget: seconds after which no more data sets are replicated; see `cut`.

    Returns:
        PredictiveCheck, with a finding.

    Raises:
        ValueError: an unknown kind, too few draws, or a statistic that is not finite or not of one
            shape.
        NotApplicable: a ContractError: the model observes nothing but factors, or a likelihood
            cannot be drawn from.
        ContractError: a site is scored in part only, a plate subsamples its data, the prior is
            flat (with "prior"), or the pair breaks the contract.

    Reference: Posterior Predictive Assessment of Model Fitness via Realized Discrepancies, Gelman,
    Meng and Stern, 1996.

    Example:
        >>> import torch
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.diagnostics.predictive_check import predictive_check
        >>> x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
        >>> check = predictive_check(PPCA(4, 2).maximise(x), x, {"range": lambda x: x.max() - x.min()}, num_draws=100)
        >>> check.replicated["range"].shape, check.finding.severity.name
        (torch.Size([100]), 'OK')
    """
    seed = check_seed("predictive_check: seed", seed)
    false_alarm = check_probability("predictive_check: false_alarm", false_alarm)
    check_contract(lvm)
    if kind not in ("posterior", "prior"):
        raise ValueError(f"predictive_check: kind must be 'posterior' or 'prior'; got {kind!r}.")
    num_draws = check_number("predictive_check: num_draws", num_draws, math.ceil(1 / false_alarm))
    batch_size = optional(check_number, "predictive_check: batch_size", batch_size)
    clock, fixed = TimeBudget(budget), fixed_beside(lvm, data, seed)
    with seeded(seed, device_of(lvm, fixed.device)), evaluation_mode(lvm):
        parts, layout = in_parts(lvm, fixed, batch_size or _ROWS)
        _check_replicable(lvm, layout, parts[0].x)
        if layout.data_dim != -layout.nesting:
            parts = [
                fixed.loaded()
                # another plate stands left of the data's, so that parts cannot be joined along the
                # first dimension
            ]
        seen = _joined([observed(lvm, part.x) for part in parts], 0)
        chosen = {site: statistics or default_statistics(x) for site, x in seen.items()}
        told = _measure(chosen, seen)
        draws = []
        for x in _replicates(lvm, parts, num_draws, kind if layout.latents else "prior", seen):
            draws.append(_measure(chosen, x))
            if clock.is_spent:
                break
    replicated = {}
    for name, value in told.items():
        if any(d[name].shape != value.shape for d in draws):
            raise ValueError(
                f"predictive_check: statistic {name!r} has not one and the same shape for all "
                "data sets."
            )
        replicated[name] = torch.stack([d[name] for d in draws])
    cut = f"{len(draws)} of {num_draws} replicates" if len(draws) < num_draws else ""
    return PredictiveCheck(told, replicated, kind, false_alarm, cut)


def _check_replicable(lvm: LatentVariableModel, layout: Layout, batch: Any) -> None:
    if all(family == "Unit" for family in layout.families.values()):
        raise NotApplicable(
            f"predictive_check: {type(lvm).__name__} observes nothing but factors, so there are "
            "no data to replicate."
        )
    if still := undrawable(lvm, batch):
        raise NotApplicable(
            f"predictive_check: the distribution of site {still[0]!r} of {type(lvm).__name__} "
            "cannot be drawn from, so its data cannot be replicated: "
            "give it a method sample."
        )
    if layout.subsample:
        raise ContractError(
            f"predictive_check: {type(lvm).__name__} subsamples its plate "
            f"{next(iter(layout.subsample))!r} at random, so that replicates would be of "
            "other data: check a model whose plate takes all of it."
        )
    partly = [name for name, words in layout.families.items() if " in part, mask " in words]
    if partly:
        raise ContractError(
            f"predictive_check: site {partly[0]!r} of {type(lvm).__name__} is scored in part only "
            "(a mask), so that not all of its values are data: "
            "check the model without the mask, or on data that are whole."
        )


def _replicates(
    lvm: LatentVariableModel,
    parts: Sequence[Data],
    num_draws: int,
    kind: str,
    seen: dict[str, Tensor],
) -> Iterator[dict[str, Tensor]]:
    """Replicated data by site, one data set after the other, as many at once as memory likes."""
    at_once = max(1, _NUMBERS // sum(x.numel() for x in seen.values()))
    for done in range(0, num_draws, at_once):
        size, pieces = min(at_once, num_draws - done), []
        for part in parts:
            if kind == "prior":
                drawn = sample(lvm, size, like=part.x)
                pieces.append({site: drawn[site] for site in seen})
            else:
                pieces.append(replicate(lvm, posterior(lvm, part.x, size), like=part.x))
        whole = _joined(pieces, 1)
        yield from ({site: x[i] for site, x in whole.items()} for i in range(size))


def _joined(pieces: list[dict[str, Tensor]], axis: int) -> dict[str, Tensor]:
    return {
        site: torch.cat([p[site] for p in pieces], axis) if len(pieces) > 1 else pieces[0][site]
        for site in pieces[0]
    }


def _measure(
    chosen: Mapping[str, Mapping[str, Statistic]], sites: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Every statistic of one data set, float64, on the CPU."""
    told = {}
    for site, statistics in chosen.items():
        for name, statistic in statistics.items():
            label = name if len(chosen) == 1 else f"{site}: {name}"
            value = torch.as_tensor(statistic(sites[site])).double().cpu()
            if not bool(value.isfinite().all()):
                raise ValueError(
                    f"predictive_check: statistic {label!r} is not finite for all data sets; give "
                    "one that is."
                )
            told[label] = value
    return told


def default_statistics(x: Tensor) -> dict[str, Statistic]:
    """Statistics that suit data of shape (num_data, ...).

    Over all entries: mean, sd, minimum, maximum, skewness, kurtosis and the share of zeros; for
    zeros and ones, the mean alone, for it tells the rest. Where a datum has several components
    also the sd over data of their mean, and the correlation of neighbouring ones.
    """
    found: dict[str, Statistic] = {"mean": lambda x: x.double().mean()}
    if not bool(((x == 0) | (x == 1)).all()):
        found |= {
            "sd": lambda x: x.double().std(correction=0),
            "minimum": torch.min,
            "maximum": torch.max,
            "skewness": lambda x: _moment(x, 3),
            "kurtosis": lambda x: _moment(x, 4),
            "zeros": lambda x: (x == 0).double().mean(),
        }
    if x.dim() > 1 and x[0].numel() > 1 and len(x) > 1:
        found |= {
            "sd of row means": lambda x: x.double().flatten(1).mean(1).std(correction=0),
            "neighbours": _neighbours,
        }
    return found


def _moment(x: Tensor, order: int) -> Tensor:
    """The central moment in units of the sd; 0 for data that are all equal."""
    centred = x.double() - x.double().mean()
    sd = centred.square().mean().sqrt()
    return (centred / torch.where(sd > 0, sd, 1.0)).pow(order).mean()


def _neighbours(x: Tensor) -> Tensor:
    """Correlation over data of neighbouring components, all pairs together; 0 for data that are
    all equal.
    """
    centred = x.double().flatten(1) - x.double().flatten(1).mean(0)
    square = centred.square().mean()
    return (centred[:, 1:] * centred[:, :-1]).mean() / torch.where(square > 0, square, 1.0)
