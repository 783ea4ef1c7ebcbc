"""Posterior collapse: latents that stay at their prior for every datum.

A unit u is active if its posterior mean moves with the data, by more than a hundredth of its
prior's variance:

    activity_u = Var_x E_q[z_u | x] / Var_p[z_u] > 0.01,

which for a prior of unit variance is the rule of Burda et al. A unit may also carry information by
its spread alone. So what decides is the information of the latents about the datum: the mutual
information I_q(x; z) under p(x) q(z | x), which with the aggregated posterior q(z) = E_x q(z | x)
divides the rate:

    E_x KL(q(z | x) ‖ p(z)) = I_q(x; z) + KL(q(z) ‖ p(z)).

With N data, and z ~ q(z | x_i) where i is among them, two estimates bound I_q(x; z) in expectation,

    log q(z | x_i) − log (1/N) Σ_j q(z | x_j)            from below,
    log q(z | x_i) − log (1/(N−1)) Σ_{j≠i} q(z | x_j)    from above.

The first is the estimator of Hoffman and Johnson, exact for the N data themselves. It cannot
exceed log N, so it saturates if the latents carry more information (if their rate is far above log
N); the distance to the second shows this.

What a mask of the model hides of a latent is left out: a unit is judged by the data that do not
hide it.

If the likelihood does not use z, the exact posterior is the prior, and the guide is right to equal
it. So a collapse concerns the model. A guide that has collapsed although its model's posterior has
not is detected by k̂, the gaps and calibration.

References: Importance Weighted Autoencoders, Burda, Grosse and Salakhutdinov, 2016 (active units);
ELBO surgery: yet another way to carve up the variational evidence lower bound, Matthew D. Hoffman
and Matthew J. Johnson, 2016; On Variational Bounds of Mutual Information, Poole, Ozair, van den
Oord, Alemi and Tucker, 2019 (the two sides).
"""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_probability, check_seed
from vilvm._runtime.random import seeded
from vilvm.data.data import Data, as_data
from vilvm.diagnostics._components import runnable
from vilvm.diagnostics._verdicts.collapse import collapse_finding
from vilvm.diagnostics.finding import Finding
from vilvm.evaluation import Estimate
from vilvm.lvm import ContractError, LatentVariableModel, evaluation_mode, fixed_beside
from vilvm.weights import Layout, find_layout, log_weights, posterior_mean, sample
from vilvm.weights.guide_density import divergences, guide_log_prob
from vilvm.weights.prepared import Prepared, prepared_of
from vilvm.weights.simulation import visible_latents

__all__ = ["Collapse", "Moments", "active_units", "collapse"]

_ROWS = 50_000  # draws × data per pass
_PAIRS = 200_000  # pairs of a latent and a datum per pass
_DRAWS = 50  # draws for a posterior mean that is not known in closed form
_PRIOR_DRAWS = 10_000  # for the prior's variance, whose relative error is then about 1.4 %


class Moments(NamedTuple):
    """Moments of the aggregated posterior and of the prior, each of the latent's event shape.

    Arguments:
        mean: mean of the aggregated posterior.
        variance: variance of the aggregated posterior.
        prior_mean: mean of the prior.
        prior_variance: variance of the prior.

    Example:
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


@dataclass(frozen=True)
class Collapse:
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

    Example:
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
            name: value / self.moments[name].prior_variance for name, value in self.spread.items()
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
        """Whether the bounds on the information differ by over a nat: it is too large for N data."""
        if self.information is None or self.information_above is None:
            return False
        return self.information_above.mean - self.information.mean > 1.0

    @property
    def finding(self) -> Finding:
        """CRITICAL if the latents carry no information, WARNING if one is mostly unused.

        NOTE if a unit is unused, else OK.
        """
        return collapse_finding(self)


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

    Example:
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
    _check("collapse", threshold, lvm, data)
    lvm, fixed, seed = _pair_and_data("collapse", lvm, data, seed)
    with seeded(seed, fixed.device), evaluation_mode(lvm):
        run = _run(lvm, fixed, num_data)
        _check_local(lvm, run.layout, "collapse")
        _check_density(lvm, run.layout)
        return run.collapse(num_samples, threshold)


def _pair_and_data(
    caller: str, lvm: LatentVariableModel | Prepared, data: Any, seed: int
) -> tuple[LatentVariableModel, Data, int]:
    """The pair, its fixed data and the seed.

    Layouts are found here, on other data than those of a ``Prepared``.
    """
    if isinstance(lvm, Prepared):
        prepared = prepared_of(caller, lvm, data, seed=seed)
        return prepared.lvm, prepared.data, prepared.seed
    seed = check_seed(f"{caller}: seed", seed)
    return lvm, fixed_beside(lvm, data, seed), seed


def _check(caller: str, threshold: float, lvm: object, data: Any) -> None:
    check_probability(f"{caller}: threshold, a share of the prior's variance,", threshold)
    if isinstance(lvm, Prepared):
        data = lvm.data
    data = as_data(data)
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


class _Run(NamedTuple):
    """A pair on the data that are run, of which some are used.

    Arguments:
        lvm: the model and guide.
        data: the data that are run.
        layout: their layout.
        columns: which of them are used; None for all.
    """

    lvm: LatentVariableModel
    data: Data
    layout: Layout
    columns: Tensor | None = None

    def collapse(self, num_samples: int, threshold: float) -> Collapse:
        """The collapse from so many draws per datum."""
        kl = self.over_draws(self._divergences, num_samples)
        kl = {name: self._used(value) for name, value in kl.items()}
        weights = log_weights(
            self.lvm, self.data.x, num_samples, chunk=self._at_once, layout=self.layout
        )
        latents = {
            name: self._used(self._by_datum(value, name), 1)
            for name, value in weights.latents.items()
        }
        prior = {
            name: self._used(value, 1) for name, value in self.from_prior(num_samples).items()
        }
        shown = {name: self._used(value) for name, value in self.shown().items()}
        rate = self._used(weights.rate, 1)
        used = rate.shape[1]
        # each draw is compared with all data that are run
        few = max(2, num_samples * used // self.layout.num_data)
        information = self._information({name: value[:few] for name, value in latents.items()})
        return Collapse(
            spread=self._spread_where_known(max(num_samples, _DRAWS), shown),
            threshold=threshold,
            kl={name: value.mean(0).cpu() for name, value in kl.items()},
            kl_se={
                name: (value.std(0) / math.sqrt(len(value))).cpu() for name, value in kl.items()
            },
            rate=_estimate(rate),
            **_information_estimates(information, rate[:few]),
            moments={
                name: Moments(
                    *_moments(value, shown.get(name)), *_moments(prior[name], shown.get(name))
                )
                for name, value in latents.items()
            },
            num_data=used,
        )

    def _used(self, values: Tensor, axis: int = 0) -> Tensor:
        if self.columns is None:
            return values
        return values.index_select(axis, self.columns)

    @property
    def _at_once(self) -> int:
        """Draws per datum in a pass, which bounds the memory."""
        return max(1, _ROWS // self.layout.num_data)

    def _passes(self, num_samples: int) -> list[int]:
        size = self._at_once
        return [min(size, num_samples - done) for done in range(0, num_samples, size)]

    def over_draws(
        self, mean: Callable[[int], dict[str, Tensor]], num_samples: int
    ) -> dict[str, Tensor]:
        """The mean over draws, by name; `mean` gives that over any number of draws."""
        means: dict[str, Tensor] = {}
        for size in self._passes(num_samples):
            means = {
                name: means.get(name, 0.0) + value * (size / num_samples)
                for name, value in mean(size).items()
            }
        return means

    def _divergences(self, num_samples: int) -> dict[str, Tensor]:
        found = divergences(self.lvm, self.data.x, num_samples, layout=self.layout)
        return {name: value.mean(0) for name, value in found.items()}

    def _by_datum(self, draws: Tensor, name: str) -> Tensor:
        """Draws of a latent, shape (num_samples, num_data, *plates, *event)."""
        return draws.movedim(self.layout.data_axes[name], 1)

    def from_prior(self, num_samples: int) -> dict[str, Tensor]:
        """Draws of every latent from its prior, shape (num_samples, num_data, *plates, *event)."""
        pair = runnable(self.lvm, self.data.x)
        drawn = [sample(pair, size, like=self.data.x) for size in self._passes(num_samples)]
        return {
            name: torch.cat([self._by_datum(part[name], name) for part in drawn])
            for name in self.layout.latents
        }

    def shown(self) -> dict[str, Tensor]:
        """Which entries no mask hides, for latents with a mask, (num_data, *plates, *event)."""
        return {
            name: self._by_datum(value.unsqueeze(0), name)[0]
            for name, value in visible_latents(self.lvm, self.data.x, self.layout).items()
        }

    def means(self, num_samples: int) -> dict[str, Tensor]:
        """E_q[z | x] by latent, shape (num_data, *plates, *event)."""
        means = self.over_draws(
            lambda size: posterior_mean(self.lvm, self.data.x, size, layout=self.layout),
            num_samples,
        )
        return {name: self._by_datum(value.unsqueeze(0), name)[0] for name, value in means.items()}

    def _spread_where_known(self, num_samples: int, shown: dict[str, Tensor]) -> dict[str, Tensor]:
        """Var_x E_q[z | x] by latent; none if a latent has no mean."""
        try:
            first, second = (self.means(num_samples) for _ in range(2))
        except ContractError:
            return {}
        return {
            name: _spread(self._used(value), self._used(second[name]), shown.get(name)).cpu()
            for name, value in first.items()
            if not _is_imputed(name, self.layout)
        }

    def _information(self, latents: dict[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        """The bounds on the information of every draw, shape (num_samples, num_data), or None.

        It is None if the guide has no density of given latents.
        """
        below, above, done = [], [], 0
        # (num_samples · num_data, ...)
        rows = {name: value.reshape(-1, *value.shape[2:]) for name, value in latents.items()}
        size = max(1, _PAIRS // self.layout.num_data)
        for part in zip(*(value.split(size) for value in rows.values()), strict=True):
            try:
                log_q = self._density(dict(zip(rows, part, strict=True)))
            except ContractError:
                return None
            low, high = _bounds(log_q, done)
            below.append(low)
            above.append(high)
            done += len(log_q)
        num_data = next(iter(latents.values())).shape[1]
        return torch.cat(below).reshape(-1, num_data), torch.cat(above).reshape(-1, num_data)

    def _density(self, latents: dict[str, Tensor]) -> Tensor:
        """log q(z | x) of every row of latents and every used datum, shape (rows, num_data)."""
        at_all = {
            name: value.unsqueeze(1)
            .expand(-1, self.layout.num_data, *value.shape[1:])
            .movedim(1, self.layout.data_axes[name])
            for name, value in latents.items()
        }
        log_q = guide_log_prob(self.lvm, self.data.x, at_all, layout=self.layout)
        return self._used(log_q, 1)


def _run(lvm: LatentVariableModel, data: Data, num_data: int) -> _Run:
    """The pair on `num_data` random data; on all if the pair knows no other size."""
    found = None
    if data.divisible and len(data) > num_data:
        some = data.subset(torch.randperm(len(data))[:num_data])
        # The guide may have parameters for each datum; any other fault is raised for all data too.
        with suppress(ContractError):
            found = _Run(lvm, some, find_layout(lvm, some.x))
    if found is None:
        found = _Run(lvm, data, find_layout(lvm, data.x))
    columns = torch.randperm(found.layout.num_data)[:num_data].sort().values
    return found._replace(columns=columns.to(found.data.device))


def _bounds(log_q: Tensor, done: int) -> tuple[Tensor, Tensor]:
    """Both estimates of the information, of draws number `done` on, each of shape (rows,).

    Arguments:
        log_q: log q(z | x) of every draw and datum, shape (rows, num_data).
        done: draws before; those of the data follow one another.
    """
    num_data = log_q.shape[1]
    own = torch.arange(done, done + len(log_q), device=log_q.device) % num_data
    own = own.unsqueeze(-1)
    numerator = log_q.gather(1, own).squeeze(-1)
    below = numerator - log_q.logsumexp(-1) + math.log(num_data)
    others = log_q.scatter(1, own, -math.inf)
    return below, numerator - others.logsumexp(-1) + math.log(num_data - 1)


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


def _moments(draws: Tensor, shown: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and variance over draws and data, without what a mask hides."""
    flat = draws.double().flatten(0, 1)
    if shown is None:
        return flat.mean(0).cpu(), flat.var(0).cpu()
    seen = shown.expand(draws.shape).flatten(0, 1)
    count = seen.sum(0)
    mean = torch.where(seen, flat, 0.0).sum(0) / count
    variance = torch.where(seen, (flat - mean).square(), 0.0).sum(0) / (count - 1)
    return mean.cpu(), variance.cpu()


def _is_imputed(name: str, layout: Layout) -> bool:
    """Whether a latent stands for missing data of a site (``obs_mask``), which are no code."""
    site = name.removesuffix("_unobserved")
    return site != name and f"{site}_observed" in layout.observed


def _spread(first: Tensor, second: Tensor, shown: Tensor | None) -> Tensor:
    """Var_x E_q[z | x] without bias, as the covariance of two independent estimates of the mean.

    It is NaN for fewer than two data.
    """
    if shown is None:
        shown = torch.ones_like(first, dtype=torch.bool)
    count = shown.sum(0)
    deviations = []
    for means in (first, second):
        mean = torch.where(shown, means, 0.0).sum(0) / count
        deviations.append(torch.where(shown, means - mean, 0.0).double())
    return torch.where(count > 1, (deviations[0] * deviations[1]).sum(0) / (count - 1), torch.nan)


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

    Example:
        >>> import torch
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.diagnostics.collapse import active_units
        >>> x = torch.randn(50, 3) * torch.tensor([3.0, 1.0, 1.0])
        >>> active_units(PPCA(data_dim=3, latent_dim=1).maximise(x), x)
        {'z': tensor([True])}
    """
    num_samples = check_number("active_units: num_samples", num_samples)
    _check("active_units", threshold, lvm, data)
    prepared = prepared_of(
        "active_units", lvm, data, seed=seed, default_size=max(1, _ROWS // num_samples)
    )
    with prepared.running():
        _check_local(prepared.lvm, prepared.layout, "active_units")
        has_prior = not prepared.layout.improper
        first, second, prior, shown = [], [], [], []
        for number, batch in enumerate(prepared.batches):
            run = _Run(prepared.lvm, batch, prepared.part(number).layout)
            first.append(run.means(num_samples))
            second.append(run.means(num_samples))
            if has_prior:
                prior.append(run.from_prior(math.ceil(_PRIOR_DRAWS / len(prepared.data))))
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
            variance = _moments(torch.cat([part[name] for part in prior], 1), seen)[1]
        active[name] = _spread(one, other, seen) > threshold * variance.to(seen.device)
    return active
