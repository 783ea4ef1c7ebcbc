"""Posterior collapse: latents that stay at their prior, whatever the datum.

A unit u is active if its posterior mean moves with the data, by more than a hundredth of its
prior's variance:

    activity_u = Var_x E_q[z_u | x] / Var_p[z_u] > 0.01,

which for a prior of unit variance is the rule of Burda et al. A unit may also tell of its datum by
its spread alone, so that what decides is how much the latents log: the mutual information I_q(x;
z) under p(x) q(z | x), which with the aggregated posterior q(z) = E_x q(z | x) takes the rate
apart:

    E_x KL(q(z | x) ‖ p(z)) = I_q(x; z) + KL(q(z) ‖ p(z)).

Of N data, with z ~ q(z | x_i) and i among them, two estimates lie in expectation on either side of
I_q(x; z),

    log q(z | x_i) − log (1/N) Σ_j q(z | x_j)  below,    log q(z | x_i) − log (1/(N−1)) Σ_{j≠i} q(z | x_j)  above.

The first is the estimator of Hoffman and Johnson, exact for the N data themselves. It cannot
exceed log N, so a latent that tells more (its rate is far above log N) saturates it; the second
then says how little the first means.

What a mask of the model hides of a latent is left out: of a unit, the data are those of which it
is not hidden.

Where the likelihood makes no use of z, the exact posterior is the prior, and the guide is right to
say so. So a collapse is said of the model. That a guide has collapsed and its model's posterior
has not shows in k̂, in the gaps and in calibration.

References: Importance Weighted Autoencoders, Burda, Grosse and Salakhutdinov, 2016 (active units);
ELBO surgery: yet another way to carve up the variational evidence lower bound, Matthew D. Hoffman
and Matthew J. Johnson, 2016; On Variational Bounds of Mutual Information, Poole, Ozair, van den
Oord, Alemi and Tucker, 2019 (the two sides).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_probability, check_seed
from vilvm._runtime.random import seeded
from vilvm.data.data import Data
from vilvm.diagnostics._components import runnable
from vilvm.diagnostics.finding import Finding, Severity
from vilvm.evaluation.evaluate import Estimate, in_parts
from vilvm.lvm import ContractError, LatentVariableModel, evaluation_mode, fixed_beside
from vilvm.weights import Layout, find_layout, log_weights, posterior_mean, sample
from vilvm.weights.guide_density import divergences, guide_log_prob
from vilvm.weights.simulation import visible_latents

__all__ = ["Collapse", "Moments", "active_units", "collapse"]

_ROWS = 50_000  # draws of latents, of all data together, in a pass
_PAIRS = 200_000  # of a latent and a datum in a pass
_DRAWS = 50  # for a posterior mean that is not known in closed form
_PRIOR_DRAWS = 10_000  # for the prior's variance, whose relative error is then some 1.4 %
_SHARE = 0.25  # of the units of a latent: where fewer are used, it is called mostly unused
_NOTHING = 0.01  # nats: what tells less of the datum tells nothing


class Moments(NamedTuple):
    """Of the aggregated posterior beside the prior, from draws of both; each of the latent's event
    shape.
    """

    mean: Tensor
    variance: Tensor
    prior_mean: Tensor
    prior_variance: Tensor


@dataclass(frozen=True)
class Collapse:
    """What ``collapse`` found; all in nats per datum.

    Arguments:
        spread: Var_x E_q[z | x] by latent, of its event shape, plates within a datum before it;
            without latents that have no mean, and without missing data (``obs_mask``); NaN for a
            unit that a mask hides of all data but one.
        threshold: activity above which a unit is active.
        kl: E_x KL(q(z_d | x) ‖ p(z_d)) by latent: shaped as `spread` where guide and prior
            factorise, else a single number.
        kl_se: standard errors of `kl`, the data's spread included.
        rate: E_x KL(q(z | x) ‖ p(z)), all latents together.
        information: I_q(x; z) from below, at most log num_data. None where the guide has no
            density of given latents.
        information_above: I_q(x; z) from above; likewise.
        marginal_kl: KL(q(z) ‖ p(z)) = rate − information, from above; likewise.
        moments: of the aggregated posterior and the prior, by latent.
        num_data: data that were looked at.
    """

    spread: dict[str, Tensor]
    threshold: float
    kl: dict[str, Tensor]
    kl_se: dict[str, Tensor]
    rate: Estimate
    information: Estimate | None
    information_above: Estimate | None
    marginal_kl: Estimate | None
    moments: dict[str, Moments]
    num_data: int

    @property
    def activity(self) -> dict[str, Tensor]:
        """Var_x E_q[z | x] / Var_p[z] by latent, shaped as `spread`: of a prior of unit variance,
        the activity of Burda et al.
        """
        return {
            name: value / self.moments[name].prior_variance for name, value in self.spread.items()
        }

    @property
    def active(self) -> dict[str, Tensor]:
        """Which units are active, by latent, shaped as `spread`."""
        return {name: value > self.threshold for name, value in self.activity.items()}

    @property
    def saturated(self) -> bool:
        """Whether the two sides of the mutual information are more than a nat apart: it is too
        large for so few data.
        """
        if self.information is None or self.information_above is None:
            return False
        return self.information_above.mean - self.information.mean > 1.0

    @property
    def finding(self) -> Finding:
        """CRITICAL if the latents tell nothing of the datum, WARNING if one is mostly unused, NOTE
        if a unit is, else OK.
        """
        severity = self._severity()
        active = self.active
        units = (
            ", ".join(
                f"{int(a.sum())} of {int(self.spread[name].isfinite().sum())} units of {name!r}"
                for name, a in active.items()
            )
            or "no latent with a mean"
        )
        by_spread = active and severity < Severity.CRITICAL and not self._any_active
        return Finding(
            name="Posterior collapse",
            severity=severity,
            verdict=f"Active: {units}; the rate is {self.rate.mean:.3g} nats per "
            f"datum{self._of_information()}."
            + (
                " No mean moves with the datum: what the latents tell of it, they tell by their "
                "spread."
                if by_spread
                else ""
            ),
            source=f"activity above {self.threshold:g} of the prior's variance, which for a prior of "
            "unit variance is the rule of Burda et al. 2016; "
            "that less than 0.01 nats tell nothing, and a warning below a quarter of a latent's "
            "units, are ours",
            advice=_ADVICE[severity],
            about="model",
        )

    def _severity(self) -> Severity:
        told = self.rate if self.information is None else self.information
        tells = told.mean - 3 * told.mc_se > _NOTHING
        if not (tells or self._any_active):
            return Severity.CRITICAL
        idle = [
            share.double().mean().item()
            for name in self.spread
            if (share := self._idle(name)).numel()
        ]
        if any(share > 1 - _SHARE for share in idle):
            return Severity.WARNING
        return Severity.NOTE if any(idle) else Severity.OK

    @property
    def _any_active(self) -> bool:
        return any(bool(a.any()) for a in self.active.values())

    def _idle(self, name: str) -> Tensor:
        """Units of a latent whose mean does not move and whose divergence, which bounds what they
        log, is as small as at the threshold.
        """
        active = self.active[name]
        # what a Gaussian unit tells whose mean has this share of its variance
        at_threshold = -0.5 * math.log1p(-self.threshold)
        # the latents may have a divergence together only
        key = name if name in self.kl else " and ".join(self.moments)
        tells = self.kl[key] - 3 * self.kl_se[key] > at_threshold
        # a divergence of all units together is that of those that are active, if there are any
        if tells.shape != active.shape:
            tells = tells & ~active.any()
        return ~(active | tells)[self.spread[name].isfinite()]

    def _of_information(self) -> str:
        if self.information is None:
            return ""
        if self.saturated:
            return (
                f", the mutual information at least {self.information.mean:.3g} (saturated: "
                f"{self.num_data} data show at most "
                f"log {self.num_data} = {math.log(self.num_data):.3g})"
            )
        assert self.marginal_kl is not None
        return (
            f", of which {self.information.mean:.3g} tell of the datum and at most "
            f"{self.marginal_kl.mean:.3g} are the aggregated posterior's distance from the prior"
        )


_ADVICE = {
    Severity.OK: "",
    Severity.NOTE: "Unused units do no harm; a smaller latent would do as well.",
    Severity.WARNING: "Try KL warm-up (vilvm.objectives.Annealed), a weaker decoder, or a smaller "
    "latent.",
}
_ADVICE[Severity.CRITICAL] = _ADVICE[Severity.WARNING]


@torch.no_grad()
def collapse(
    lvm: LatentVariableModel,
    data: Any,
    *,
    num_samples: int = 10,
    num_data: int = 1000,
    threshold: float = 0.01,
    seed: int = 0,
) -> Collapse:
    """What the latents of a model tell of its data: active units, KL per dimension, mutual
    information, and the aggregated posterior.

    Standard errors of the mutual information treat the data as independent, though all share the
    aggregated posterior.

    Arguments:
        lvm: the model and guide; every latent stands in the plate over the data.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum a row; a transform
            is drawn once.
        num_samples: draws a datum.
        num_data: data looked at, drawn from `seed` if there are more; the work grows with its
            square. A guide that takes all data or none (one with parameters for each datum) is run
            on all of them, and these are looked at, by fewer draws for the information.
        threshold: activity above which a unit is active, between 0 and 1.
        seed: of draws, transform and choice of data; torch's generators are left as they were.

    Returns:
        Collapse, in nats per datum.

    Raises:
        ValueError: num_samples below 2, fewer than two data, or a threshold that is not between 0
            and 1.
        ContractError: a latent is shared by the data, is put on one point by the guide, or has a
            flat prior.

    Example:
        >>> import torch
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.diagnostics.collapse import collapse
        >>> x = torch.randn(200, 3) * torch.tensor([3.0, 1.0, 1.0])
        >>> found = collapse(PPCA(data_dim=3, latent_dim=1).maximise(x), x)
        >>> found.active, found.kl["z"].shape, found.finding.severity.name
        ({'z': tensor([True])}, torch.Size([1]), 'OK')
    """
    seed = check_seed("collapse: seed", seed)
    num_samples = check_number("collapse: num_samples", num_samples, 2)
    num_data = check_number("collapse: num_data", num_data, 2)
    fixed = _checked(fixed_beside(lvm, data, seed), threshold, "collapse")
    with seeded(seed, fixed.device), evaluation_mode(lvm):
        run, layout = _as_run(lvm, fixed, num_data)
        _check_local(lvm, layout, "collapse")
        _check_density(lvm, layout)
        columns = torch.randperm(layout.num_data)[:num_data].sort().values.to(run.device)
        kl = _over_draws(
            lambda size: _mean_divergences(lvm, run, size, layout), num_samples, layout
        )
        kl = {name: value[columns] for name, value in kl.items()}
        weights = log_weights(lvm, run.x, num_samples, chunk=_at_once(layout), layout=layout)
        latents = {
            name: _by_datum(value, name, layout)[:, columns]
            for name, value in weights.latents.items()
        }
        prior = {
            name: value[:, columns]
            for name, value in _prior(lvm, run, num_samples, layout).items()
        }
        shown = {name: value[columns] for name, value in _shown(lvm, run, layout).items()}
        rate = weights.rate[:, columns]
        # each draw is held against all data that are run
        few = max(2, num_samples * len(columns) // layout.num_data)
        below, above = _information(
            lvm, run, {name: value[:few] for name, value in latents.items()}, layout, columns
        )
        return Collapse(
            spread=_spread_where_known(lvm, run, max(num_samples, _DRAWS), layout, columns, shown),
            threshold=threshold,
            kl={name: value.mean(0).cpu() for name, value in kl.items()},
            kl_se={
                name: (value.std(0) / math.sqrt(len(value))).cpu() for name, value in kl.items()
            },
            rate=_estimate(rate),
            information=None if below is None else _estimate(below),
            information_above=None if above is None else _estimate(above),
            marginal_kl=None if below is None else _estimate(rate[:few] - below),
            moments={
                n: Moments(*_moments(v, shown.get(n)), *_moments(prior[n], shown.get(n)))
                for n, v in latents.items()
            },
            num_data=len(columns),
        )


def _as_run(lvm: LatentVariableModel, data: Data, num_data: int) -> tuple[Data, Layout]:
    """`num_data` of the data, at random, or all where the pair knows no other size; and their
    layout.
    """
    if data.divisible and len(data) > num_data:
        some = data.subset(torch.randperm(len(data))[:num_data])
        try:
            return some, find_layout(lvm, some.x)
        # parameters for each datum; if it is another fault, all data have it too
        except ContractError:
            pass
    return data, find_layout(lvm, data.x)


def _checked(data: Data, threshold: float, caller: str) -> Data:
    check_probability(f"{caller}: threshold, a share of the prior's variance,", threshold)
    if len(data) < 2:
        raise ValueError(f"{caller} needs at least two data; got {len(data)}.")
    return data


def _check_local(lvm: object, layout: Layout, caller: str) -> None:
    if not layout.local:
        raise ContractError(
            f"{caller}: {type(lvm).__name__} has a latent that its data share, which cannot move "
            "with a datum."
        )


def _check_density(lvm: object, layout: Layout) -> None:
    for names, why in (
        (layout.degenerate, "is put on one point by the guide"),
        (layout.improper, "has a flat prior"),
    ):
        if names:
            raise ContractError(
                f"collapse: latent {names[0]!r} of {type(lvm).__name__} {why}, so it has no rate; "
                "see active_units."
            )


def _estimate(terms: Tensor) -> Estimate:
    """Of terms of shape (num_samples, num_data)."""
    return Estimate(terms.mean(0).cpu(), (terms.std(0) / math.sqrt(len(terms))).cpu())


def _at_once(layout: Layout) -> int:
    """Draws a datum in a pass, so that memory is bounded."""
    return max(1, _ROWS // layout.num_data)


def _passes(num_samples: int, layout: Layout) -> list[int]:
    size = _at_once(layout)
    return [min(size, num_samples - done) for done in range(0, num_samples, size)]


def _over_draws(
    mean: Callable[[int], dict[str, Tensor]], num_samples: int, layout: Layout
) -> dict[str, Tensor]:
    """The mean over `num_samples` draws, by name, of what `mean` gives as that over any number of
    them.
    """
    means: dict[str, Tensor] = {}
    for size in _passes(num_samples, layout):
        means = {
            name: means.get(name, 0.0) + value * (size / num_samples)
            for name, value in mean(size).items()
        }
    return means


def _mean_divergences(
    lvm: LatentVariableModel, data: Data, num_samples: int, layout: Layout
) -> dict[str, Tensor]:
    return {
        name: value.mean(0)
        for name, value in divergences(lvm, data.x, num_samples, layout=layout).items()
    }


def _by_datum(draws: Tensor, name: str, layout: Layout) -> Tensor:
    """Draws of a latent, shape (num_samples, num_data, *plates, *event)."""
    return draws.movedim(layout.data_axes[name], 1)


def _prior(
    lvm: LatentVariableModel, data: Data, num_samples: int, layout: Layout
) -> dict[str, Tensor]:
    """Draws of every latent from its prior, shape (num_samples, num_data, *plates, *event)."""
    runs = runnable(lvm, data.x)
    drawn = [sample(runs, size, like=data.x) for size in _passes(num_samples, layout)]
    return {
        name: torch.cat([_by_datum(part[name], name, layout) for part in drawn])
        for name in layout.latents
    }


def _shown(lvm: LatentVariableModel, data: Data, layout: Layout) -> dict[str, Tensor]:
    """Which entries no mask hides, by latent of which one hides some, shape (num_data, *plates,
    *event).
    """
    return {
        n: _by_datum(v.unsqueeze(0), n, layout)[0]
        for n, v in visible_latents(lvm, data.x, layout).items()
    }


def _moments(draws: Tensor, shown: Tensor | None) -> tuple[Tensor, Tensor]:
    flat = draws.double().flatten(0, 1)
    if shown is None:
        return flat.mean(0).cpu(), flat.var(0).cpu()
    seen = shown.expand(draws.shape).flatten(0, 1)
    count = seen.sum(0)
    mean = torch.where(seen, flat, 0.0).sum(0) / count
    variance = torch.where(seen, (flat - mean).square(), 0.0).sum(0) / (count - 1)
    return mean.cpu(), variance.cpu()


def _information(
    lvm: LatentVariableModel,
    data: Data,
    latents: dict[str, Tensor],
    layout: Layout,
    columns: Tensor,
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Both sides of the mutual information for every draw, shape (num_samples, num_data); None
    without a density of given latents.
    """
    n = len(columns)
    below, above = [], []
    # (num_samples · num_data, ...)
    rows = {name: value.reshape(-1, *value.shape[2:]) for name, value in latents.items()}
    total = len(next(iter(rows.values())))
    size = max(1, _PAIRS // layout.num_data)
    for start in range(0, total, size):
        part = {
            name: value[start : start + size]
            .unsqueeze(1)
            .expand(-1, layout.num_data, *value.shape[1:])
            .movedim(1, layout.data_axes[name])
            for name, value in rows.items()
        }
        try:
            # a row a draw, a column a datum
            log_q = guide_log_prob(lvm, data.x, part, layout=layout)[:, columns]
        except ContractError:
            return None, None
        own = (torch.arange(start, start + len(log_q), device=log_q.device) % n).unsqueeze(-1)
        numerator = log_q.gather(1, own).squeeze(-1)
        below.append(numerator - log_q.logsumexp(-1) + math.log(n))
        above.append(numerator - log_q.scatter(1, own, -math.inf).logsumexp(-1) + math.log(n - 1))
    return torch.cat(below).reshape(-1, n), torch.cat(above).reshape(-1, n)


def _spread_where_known(
    lvm: LatentVariableModel,
    data: Data,
    num_samples: int,
    layout: Layout,
    columns: Tensor,
    shown: dict[str, Tensor],
) -> dict[str, Tensor]:
    try:
        first, second = (_means(lvm, data, num_samples, layout) for _ in range(2))
    except ContractError:  # a latent has no mean
        return {}
    codes = [name for name in first if not _is_imputed(name, layout)]
    return {
        name: _spread(first[name][columns], second[name][columns], shown.get(name)).cpu()
        for name in codes
    }


def _is_imputed(name: str, layout: Layout) -> bool:
    """Whether a latent is what ``obs_mask`` hides of a site: missing data, which are no code of
    the datum.
    """
    site = name.removesuffix("_unobserved")
    return site != name and f"{site}_observed" in layout.observed


def _means(
    lvm: LatentVariableModel, data: Data, num_samples: int, layout: Layout
) -> dict[str, Tensor]:
    """E_q[z | x] by latent, shape (num_data, *plates, *event)."""
    means = _over_draws(
        lambda size: posterior_mean(lvm, data.x, size, layout=layout), num_samples, layout
    )
    return {name: _by_datum(value.unsqueeze(0), name, layout)[0] for name, value in means.items()}


def _spread(first: Tensor, second: Tensor, shown: Tensor | None) -> Tensor:
    """Var_x E_q[z | x] without bias: the covariance over the data of two estimates of the mean, of
    independent draws; NaN of fewer than two data.
    """
    seen = torch.ones_like(first, dtype=torch.bool) if shown is None else shown
    count = seen.sum(0)
    deviations = []
    for means in (first, second):
        mean = torch.where(seen, means, 0.0).sum(0) / count
        deviations.append(torch.where(seen, means - mean, 0.0).double())
    return torch.where(count > 1, (deviations[0] * deviations[1]).sum(0) / (count - 1), torch.nan)


@torch.no_grad()
def active_units(
    lvm: LatentVariableModel,
    data: Any,
    threshold: float = 0.01,
    num_samples: int = _DRAWS,
    *,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Which units of each latent are active on these data: those with Var_x E_q[z | x] > threshold
    · Var_p[z].

    Where the guide's mean is not known in closed form, its variance over the data is estimated
    without bias, as the covariance of two estimates of independent draws. A flat prior has no
    variance: beside one, 1 stands in its place.

    Arguments:
        lvm: the model and guide; every latent stands in the plate over the data.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum a row; a transform
            is drawn once.
        threshold: share of the prior's variance, between 0 and 1; Burda et al. took 0.01 of a
            prior of unit variance.
        num_samples: draws of latents on which others depend, for each of the two estimates.
        seed: of draws and transform; torch's generators are left as they were.

    Returns:
        By latent, a Boolean tensor of the latent's event shape, plates within a datum before it;
        its sum is the number of active units.

    Raises:
        ValueError: fewer than two data, which have no variance, or a threshold that is not between
            0 and 1.
        ContractError: a latent is shared by the data, or has no mean.
    """
    seed = check_seed("active_units: seed", seed)
    num_samples = check_number("active_units: num_samples", num_samples)
    fixed = _checked(fixed_beside(lvm, data, seed), threshold, "active_units")
    with seeded(seed, fixed.device), evaluation_mode(lvm):
        parts, layout = in_parts(lvm, fixed, max(1, _ROWS // num_samples))
        _check_local(lvm, layout, "active_units")
        first, second, prior, shown = [], [], [], []
        for part in parts:
            # The plate over the data is found once: of the last part, which may be smaller,
            # another might have the size.
            here = (
                layout if part is parts[0] else find_layout(lvm, part.x, plate=layout.data_plate)
            )
            first.append(_means(lvm, part, num_samples, here))
            second.append(_means(lvm, part, num_samples, here))
            prior.append(
                {}
                if layout.improper
                else _prior(lvm, part, math.ceil(_PRIOR_DRAWS / len(fixed)), here)
            )
            hides = _shown(lvm, part, here)
            shown.append(
                {
                    n: hides.get(n, torch.ones_like(v, dtype=torch.bool))
                    for n, v in first[-1].items()
                }
            )
    active = {}
    for name in layout.latents:
        one, other = (torch.cat([part[name] for part in each]) for each in (first, second))
        seen = torch.cat([part[name] for part in shown])
        variance = (
            1.0
            if layout.improper
            else _moments(torch.cat([part[name] for part in prior], 1), seen)[1].to(seen.device)
        )
        active[name] = _spread(one, other, seen) > threshold * variance
    return active
