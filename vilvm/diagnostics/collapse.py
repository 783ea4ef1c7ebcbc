"""Posterior collapse: latents that stay at their prior for every datum.

A unit u is active if its posterior mean moves with the data, by more than a hundredth of its
prior's variance:

    activity_u = Var_x E_q[z_u | x] / Var_p[z_u] > 0.01,

which for a prior of unit variance is the rule of Burda et al. A unit may also carry information by
its spread alone. The verdict therefore rests on the information of the latents about the datum:
the mutual information I_q(x; z) under p(x) q(z | x). With the aggregated posterior q(z) = E_x
q(z | x), it divides the rate:

    E_x KL(q(z | x) ‖ p(z)) = I_q(x; z) + KL(q(z) ‖ p(z)).

With N data, and z ~ q(z | x_i) where i is among them, two estimates bound I_q(x; z) in
expectation,

    log q(z | x_i) − log (1/N) Σ_j q(z | x_j)            from below,
    log q(z | x_i) − log (1/(N−1)) Σ_{j≠i} q(z | x_j)    from above.

The first is the estimator of Hoffman and Johnson, exact for the N data themselves. It cannot
exceed log N, so it saturates if the latents carry more information (if their rate is far above log
N); the distance to the second shows this.

Entries that a mask of the model hides are left out: a unit is judged by the data in which it is
visible.

If the likelihood does not use z, the exact posterior is the prior, and a guide that equals it is
right. So a collapse concerns the model. If only the guide has collapsed and the posterior has not,
k̂, the gaps and calibration detect it.

References: Importance Weighted Autoencoders, Burda, Grosse and Salakhutdinov, 2016 (active units);
ELBO surgery: yet another way to carve up the variational evidence lower bound, Matthew D. Hoffman
and Matthew J. Johnson, 2016; On Variational Bounds of Mutual Information, Poole, Ozair, van den
Oord, Alemi and Tucker, 2019 (the two sides).
"""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_probability
from vilvm._runtime.random import seeded
from vilvm._runtime.results import Result, frame_of
from vilvm.data.data import Data
from vilvm.diagnostics._components import indexed
from vilvm.diagnostics._latent_runs import ROWS, LatentRun, moments, spread
from vilvm.diagnostics._verdicts.collapse import collapse_finding
from vilvm.diagnostics.finding import Finding
from vilvm.evaluation import Estimate
from vilvm.lvm import (
    ContractError,
    LatentVariableModel,
    data_beside,
    evaluation_mode,
)
from vilvm.weights import Layout, find_layout, log_weights
from vilvm.weights.prepared import Prepared, pair_and_data, prepared_of

__all__ = ["Collapse", "Moments", "active_units", "collapse"]

_DRAWS = 50  # draws for a posterior mean that is not known in closed form
_PRIOR_DRAWS = 10_000  # give the prior's variance a relative error of about 1.4 %


class Moments(NamedTuple):
    """Moments of the aggregated posterior and of the prior, each of the latent's event shape.

    Arguments:
        mean: mean of the aggregated posterior.
        variance: variance of the aggregated posterior.
        prior_mean: mean of the prior.
        prior_variance: variance of the prior.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics.collapse import Moments
        >>> zero, one = torch.zeros(2), torch.ones(2)
        >>> Moments(zero, one, zero, one).prior_variance
        tensor([1., 1.])
    """

    mean: Tensor
    variance: Tensor
    prior_mean: Tensor
    prior_variance: Tensor


@dataclass(frozen=True, repr=False)
class Collapse(Result):
    """How much the latents depend on the datum; all in nats per datum.

    Arguments:
        spread: Var_x E_q[z | x] by latent, of its event shape after the plates within a datum.
            Latents without a mean and missing data (``obs_mask``) are left out; NaN for a unit
            that a mask hides in all data but one.
        threshold: activity above which a unit is active.
        kl: E_x KL(q(z_d | x) ‖ p(z_d)) by latent: shaped as `spread` if guide and prior factorise,
            else a single number.
        kl_se: standard errors of `kl`, including the spread of the data.
        rate: E_x KL(q(z | x) ‖ p(z)), all latents jointly.
        information: I_q(x; z) from below, at most log num_data; None if the guide has no density
            of given latents.
        information_above: I_q(x; z) from above; None likewise.
        marginal_kl: KL(q(z) ‖ p(z)) = rate − information, from above; None likewise.
        moments: moments of the aggregated posterior and the prior, by latent.
        num_data: number of data used.

    Examples:
        >>> import torch
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.diagnostics.collapse import collapse
        >>> x = torch.randn(50, 3) * torch.tensor([3.0, 1.0, 1.0])
        >>> collapse(PPCA(data_dim=3, latent_dim=1).maximise(x), x).any_active
        True
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
        """Var_x E_q[z | x] / Var_p[z] by latent, shaped as `spread`."""
        return {
            name: value / self.moments[name].prior_variance
            for name, value in self.spread.items()
        }

    @property
    def active(self) -> dict[str, Tensor]:
        """Which units are active, by latent, shaped as `spread`."""
        return {name: value > self.threshold for name, value in self.activity.items()}

    @property
    def any_active(self) -> bool:
        """Whether any unit of any latent is active."""
        return any(bool(a.any()) for a in self.active.values())

    @property
    def saturated(self) -> bool:
        """Whether the bounds on the information differ by over a nat: there are too few data."""
        if self.information is None or self.information_above is None:
            return False
        return self.information_above.mean - self.information.mean > 1.0

    @property
    def finding(self) -> Finding:
        """CRITICAL if the latents carry no information, WARNING if one is mostly unused.

        NOTE if a unit is unused, else OK.
        """
        return collapse_finding(self)

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row a unit, such as "z[3]".

        Columns: unit; activity, a ratio of variances; active; kl and its standard error kl_se, in
        nats per datum. If guide and prior do not factorise, the latent has a row of its own with
        the divergence of all units jointly.
        """
        rows = [row for name in self.kl for row in self._rows(name)]
        names = ("unit", "activity", "active", "kl", "kl_se")
        return frame_of({n: [row.get(n) for row in rows] for n in names})

    def _rows(self, name: str) -> Iterator[dict[str, Any]]:
        """The rows of one latent in the frame."""
        kl, kl_se, activity = self.kl[name], self.kl_se[name], self.activity.get(name)
        together = activity is None or activity.shape != kl.shape
        for index in np.ndindex(*(kl if activity is None else activity).shape):
            row: dict[str, Any] = {"unit": indexed(name, index)}
            if activity is not None:
                row["activity"] = activity[index].item()
                row["active"] = bool(self.active[name][index])
            if activity is None or not together:
                row |= {"kl": kl[index].item(), "kl_se": kl_se[index].item()}
            yield row
        if together and activity is not None:
            yield {"unit": name, "kl": kl.sum().item(), "kl_se": kl_se.max().item()}


@torch.no_grad()
def collapse(
    lvm: LatentVariableModel | Prepared,
    data: Any = None,
    *,
    num_samples: int = 10,
    num_data: int = 1000,
    threshold: float = 0.01,
    seed: int = 0,
) -> Collapse:
    """Active units, KL by dimension, mutual information, and the aggregated posterior.

    Standard errors of the mutual information treat the data as independent, although all share the
    aggregated posterior.

    Arguments:
        lvm: the model and guide, all of whose latents are in the plate over the data; or a
            ``Prepared``, which holds the data too.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum per row; a transform
            is drawn once.
        num_samples: draws per datum.
        num_data: data to use, drawn from `seed` if there are more; the work grows with its square.
            A guide with parameters for each datum is run on all of them, with fewer draws for the
            information.
        threshold: activity above which a unit is active, between 0 and 1.
        seed: seed of draws, transform and choice of data; torch's generators are not changed.

    Returns:
        Collapse, in nats per datum.

    Raises:
        ValueError: num_samples below 2, fewer than two data, or a threshold that is not between 0
            and 1.
        ContractError: the data share a latent, the guide puts one on a point, or a prior is flat.

    Reference: ELBO surgery: yet another way to carve up the variational evidence lower bound,
    Hoffman and Johnson, 2016.

    Examples:
        >>> import torch
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.diagnostics.collapse import collapse
        >>> x = torch.randn(200, 3) * torch.tensor([3.0, 1.0, 1.0])
        >>> found = collapse(PPCA(data_dim=3, latent_dim=1).maximise(x), x)
        >>> found.active, found.kl["z"].shape, found.finding.severity.name
        ({'z': tensor([True])}, torch.Size([1]), 'OK')
    """
    num_samples = check_number("collapse: num_samples", num_samples, 2)
    num_data = check_number("collapse: num_data", num_data, 2)
    pair, fixed, seed = pair_and_data("collapse", lvm, data, seed=seed)
    _check("collapse", threshold, fixed)
    with seeded(seed, fixed.device), evaluation_mode(pair):
        run = _run(pair, fixed, num_data)
        _check_local(pair, run.layout, "collapse")
        _check_density(pair, run.layout)
        return _collapse(run, num_samples, threshold)


def _check(caller: str, threshold: float, data: Data) -> None:
    check_probability(
        f"{caller}: threshold, a share of the prior's variance,", threshold
    )
    if len(data) < 2:
        raise ValueError(f"{caller} needs at least two data; got {len(data)}.")


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


def _collapse(run: LatentRun, num_samples: int, threshold: float) -> Collapse:
    """The collapse from `num_samples` draws per datum."""
    kl = run.over_draws(run.divergences, num_samples)
    kl = {name: run.used(value) for name, value in kl.items()}
    weights = log_weights(
        run.lvm, run.data.x, num_samples, chunk=run.at_once, layout=run.layout
    )
    latents = {
        name: run.used(run.by_datum(value, name), 1)
        for name, value in weights.latents.items()
    }
    prior = {
        name: run.used(value, 1) for name, value in run.from_prior(num_samples).items()
    }
    shown = {name: run.used(value) for name, value in run.shown().items()}
    rate = run.used(weights.rate, 1)
    used = rate.shape[1]
    # Each draw is compared with all data that the pair runs on.
    few = max(2, num_samples * used // run.layout.num_data)
    information = run.information(
        {name: value[:few] for name, value in latents.items()}
    )
    return Collapse(
        spread=run.spread(max(num_samples, _DRAWS), shown),
        threshold=threshold,
        kl={name: value.mean(0).cpu() for name, value in kl.items()},
        kl_se={
            name: (value.std(0) / math.sqrt(len(value))).cpu()
            for name, value in kl.items()
        },
        rate=_estimate(rate),
        **_information_estimates(information, rate[:few]),
        moments={
            name: Moments(
                *moments(value, shown.get(name)), *moments(prior[name], shown.get(name))
            )
            for name, value in latents.items()
        },
        num_data=used,
    )


def _run(lvm: LatentVariableModel, data: Data, num_data: int) -> LatentRun:
    """The pair on `num_data` random data; on all if the pair accepts no other size."""
    found = None
    if data.divisible and len(data) > num_data:
        some = data.subset(torch.randperm(len(data))[:num_data])
        # A guide with parameters for each datum refuses a subset; other faults recur on all data.
        with suppress(ContractError):
            found = LatentRun(lvm, some, find_layout(lvm, some.x))
    if found is None:
        found = LatentRun(lvm, data, find_layout(lvm, data.x))
    columns = torch.randperm(found.layout.num_data)[:num_data].sort().values
    return found._replace(columns=columns.to(found.data.device))


def _information_estimates(
    information: tuple[Tensor, Tensor] | None, rate: Tensor
) -> dict[str, Estimate | None]:
    """Both estimates of the information, and the rest of the rate, as fields of ``Collapse``."""
    if information is None:
        return dict.fromkeys(("information", "information_above", "marginal_kl"))
    below, above = information
    return {
        "information": _estimate(below),
        "information_above": _estimate(above),
        "marginal_kl": _estimate(rate - below),
    }


def _estimate(terms: Tensor) -> Estimate:
    """Mean and standard error of terms of shape (num_samples, num_data)."""
    return Estimate(terms.mean(0).cpu(), (terms.std(0) / math.sqrt(len(terms))).cpu())


@torch.no_grad()
def active_units(
    lvm: LatentVariableModel | Prepared,
    data: Any = None,
    threshold: float = 0.01,
    num_samples: int = _DRAWS,
    *,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Which units of each latent are active: Var_x E_q[z | x] > threshold · Var_p[z].

    If the guide's mean is not known in closed form, its variance over the data is estimated
    without bias, as the covariance of two independent estimates. A flat prior has no variance;
    then 1 replaces it.

    Arguments:
        lvm: the model and guide, all of whose latents are in the plate over the data; or a
            ``Prepared``, which holds the data too.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum per row; a transform
            is drawn once.
        threshold: share of the prior's variance, between 0 and 1; Burda et al. used 0.01 with a
            prior of unit variance.
        num_samples: draws of latents on which others depend, for each of the two estimates.
        seed: seed of draws and transform; torch's generators are not changed.

    Returns:
        By latent, a Boolean tensor of the latent's event shape after the plates within a datum;
        its sum is the number of active units.

    Raises:
        ValueError: fewer than two data, which have no variance, or a threshold that is not between
            0 and 1.
        ContractError: the data share a latent, or a latent has no mean.

    Reference: Importance Weighted Autoencoders, Burda, Grosse and Salakhutdinov, 2016.

    Examples:
        >>> import torch
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.diagnostics.collapse import active_units
        >>> x = torch.randn(50, 3) * torch.tensor([3.0, 1.0, 1.0])
        >>> active_units(PPCA(data_dim=3, latent_dim=1).maximise(x), x)
        {'z': tensor([True])}
    """
    num_samples = check_number("active_units: num_samples", num_samples)
    given = lvm.data if isinstance(lvm, Prepared) else data_beside(lvm, data)
    _check("active_units", threshold, given)
    prepared = prepared_of(
        "active_units", lvm, data, seed=seed, default_size=max(1, ROWS // num_samples)
    )
    with prepared.running():
        _check_local(prepared.lvm, prepared.layout, "active_units")
        has_prior = not prepared.layout.improper
        first, second, prior, shown = [], [], [], []
        for number, batch in enumerate(prepared.batches):
            run = LatentRun(prepared.lvm, batch, prepared.part(number).layout)
            first.append(run.means(num_samples))
            second.append(run.means(num_samples))
            if has_prior:
                prior.append(
                    run.from_prior(math.ceil(_PRIOR_DRAWS / len(prepared.data)))
                )
            masks = run.shown()
            shown.append(
                {
                    name: masks.get(name, torch.ones_like(value, dtype=torch.bool))
                    for name, value in first[-1].items()
                }
            )
    active = {}
    for name in prepared.layout.latents:
        one, other, seen = (
            torch.cat([part[name] for part in each]) for each in (first, second, shown)
        )
        variance = torch.ones(())
        if has_prior:
            variance = moments(torch.cat([part[name] for part in prior], 1), seen)[1]
        active[name] = spread(one, other, seen) > threshold * variance.to(seen.device)
    return active
