"""Posterior collapse: latents that the guide leaves at their prior, whatever the datum.

A unit u is active if its posterior mean moves with the data, Var_x E_q[z_u | x] > 0.01. How much a latent tells of its datum is
the mutual information I_q(x; z) under p(x) q(z | x), which with the aggregated posterior q(z) = E_x q(z | x) takes the rate apart:

    E_x KL(q(z | x) ‖ p(z)) = I_q(x; z) + KL(q(z) ‖ p(z)).

Of N data, with z ~ q(z | x_i) and i among them, two estimates lie in expectation on either side of I_q(x; z),

    log q(z | x_i) − log (1/N) Σ_j q(z | x_j)  below,    log q(z | x_i) − log (1/(N−1)) Σ_{j≠i} q(z | x_j)  above.

The first is the estimator of Hoffman and Johnson, exact for the N data themselves. It cannot exceed log N, so a latent that tells
more (its rate is far above log N) saturates it; the second then says how little the first means.

References: Importance Weighted Autoencoders, Burda, Grosse and Salakhutdinov, 2016 (active units); ELBO surgery: yet another way to
carve up the variational evidence lower bound, Matthew D. Hoffman and Matthew J. Johnson, 2016; On Variational Bounds of Mutual
Information, Poole, Ozair, van den Oord, Alemi and Tucker, 2019 (the two sides).
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vilvm.data import Data, seeded
from vilvm.diagnostics.finding import Finding, Gravity
from vilvm.evaluation.bounds import Estimate
from vilvm.lvm import ContractError, LatentVariableModel, evaluation_mode, fixed_beside
from vilvm.weights import Layout, layout, log_weights, posterior_mean, sample
from vilvm.weights.contract import check_number
from vilvm.weights.guided import divergences, guide_log_prob

__all__ = ["Collapse", "Moments", "active_units", "collapse"]

_ROWS = 50_000
_PAIRS = 200_000  # of a latent and a datum in a pass
_SHARE = 0.25  # of active units, below which a latent is called mostly unused


class Moments(NamedTuple):
    """Of the aggregated posterior beside the prior, from draws of both; each of the latent's event shape."""

    mean: Tensor
    variance: Tensor
    prior_mean: Tensor
    prior_variance: Tensor


@dataclass(frozen=True)
class Collapse:
    """What ``collapse`` found; all in nats per datum.

    Arguments:
        activity: Var_x E_q[z | x] by latent, of its event shape; without latents that have no mean.
        threshold: activity above which a unit is active.
        kl: E_x KL(q(z_d | x) ‖ p(z_d)) by latent: of its event shape where guide and prior factorise, else a single number.
        kl_se: standard errors of `kl`, the data's spread included.
        rate: E_x KL(q(z | x) ‖ p(z)), all latents together.
        information: I_q(x; z) from below, at most log num_data. None where the guide has no density of given latents.
        information_above: I_q(x; z) from above; likewise.
        marginal_kl: KL(q(z) ‖ p(z)) = rate − information, from above; likewise.
        moments: of the aggregated posterior and the prior, by latent.
        num_data: data that were looked at.
    """

    activity: dict[str, Tensor]
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
    def active(self) -> dict[str, Tensor]:
        """Which units are active, by latent, of its event shape."""
        return {name: value > self.threshold for name, value in self.activity.items()}

    @property
    def saturated(self) -> bool:
        """Whether the two sides of the mutual information are more than a nat apart: it is too large for so few data."""
        if self.information is None or self.information_above is None:
            return False
        return self.information_above.mean - self.information.mean > 1.0

    @property
    def finding(self) -> Finding:
        """GRAVE if nothing is active, WARNING if a latent is mostly unused, NOTE if some units are, else FINE."""
        counts = {name: (int(a.sum()), a.numel()) for name, a in self.active.items()}
        gravity = _gravity(counts, self.rate.mean)
        units = ", ".join(f"{on} of {n} units of {name!r}" for name, (on, n) in counts.items()) or "no latent with a mean"
        advice = ""
        if gravity >= Gravity.WARNING:
            advice = "Try KL warm-up (vilvm.objectives.Annealed), a weaker decoder, or a smaller latent."
        elif gravity == Gravity.NOTE:
            advice = "Unused units do no harm; a smaller latent would do as well."
        return Finding(
            name="Posterior collapse",
            gravity=gravity,
            verdict=f"Active: {units}; the rate is {self.rate.mean:.3g} nats per datum{self._of_information()}.",
            source=f"activity above {self.threshold:g}, Burda et al. 2016; a warning below a quarter of a latent's units is ours",
            advice=advice,
        )

    def _of_information(self) -> str:
        if self.information is None:
            return ""
        if self.saturated:
            return (
                f", the mutual information at least {self.information.mean:.3g} (saturated: {self.num_data} data show at most "
                f"log {self.num_data} = {math.log(self.num_data):.3g})"
            )
        assert self.marginal_kl is not None
        return f", of which {self.information.mean:.3g} tell of the datum and at most {self.marginal_kl.mean:.3g} are the aggregated posterior's distance from the prior"


def _gravity(counts: dict[str, tuple[int, int]], rate: float) -> Gravity:
    if not any(on for on, _ in counts.values()):
        # Where no latent has a mean, the rate is all there is to judge by: it bounds the mutual information.
        return Gravity.GRAVE if counts or rate < 0.01 else Gravity.FINE
    if any(on < _SHARE * n for on, n in counts.values()):
        return Gravity.WARNING
    return Gravity.NOTE if any(on < n for on, n in counts.values()) else Gravity.FINE


@torch.no_grad()
def collapse(
    lvm: LatentVariableModel, data: Any, *, num_samples: int = 10, num_data: int = 1000, threshold: float = 0.01, seed: int = 0
) -> Collapse:
    """What the latents of a model tell of its data: active units, KL per dimension, mutual information, and the aggregated posterior.

    Standard errors of the mutual information treat the data as independent, though all share the aggregated posterior.

    Arguments:
        lvm: the model and guide; every latent stands in the plate over the data.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum a row; a transform is drawn once.
        num_samples: draws a datum.
        num_data: data looked at, drawn from `seed` if there are more; the work grows with its square.
        threshold: activity above which a unit is active.
        seed: of draws, transform and choice of data; torch's generators are left as they were.

    Returns:
        Collapse, in nats per datum.

    Raises:
        ValueError: num_samples below 2, or fewer than two data.
        ContractError: a latent is shared by the data, is put on one point by the guide, or has a flat prior.

    Example:
        >>> import torch
        >>> from models.ppca import PPCA
        >>> from vilvm.diagnostics.collapse import collapse
        >>> x = torch.randn(200, 3) * torch.tensor([3.0, 1.0, 1.0])
        >>> found = collapse(PPCA(data_dim=3, latent_dim=1).maximise(x), x)
        >>> found.active, found.kl["z"].shape, found.finding.gravity.name
        ({'z': tensor([True])}, torch.Size([1]), 'FINE')
    """
    check_number("collapse: num_samples", num_samples, 2)
    check_number("collapse: num_data", num_data, 2)
    fixed = _checked(fixed_beside(lvm, data, seed), "collapse")
    with seeded(seed, fixed.device), evaluation_mode(lvm):
        if len(fixed) > num_data:
            fixed = fixed.subset(torch.randperm(len(fixed))[:num_data])
        plan = layout(lvm, fixed.x)
        _check_local(lvm, plan, "collapse")
        _check_density(lvm, plan)
        kl = divergences(lvm, fixed.x, num_samples, plan=plan)
        kl = {name: value.mean(0) for name, value in kl.items()}
        weights = log_weights(lvm, fixed.x, num_samples, plan=plan)
        rate = weights.rate
        below, above = _information(lvm, fixed, weights.latents, plan)
        return Collapse(
            activity=_activity_where_known(lvm, fixed, num_samples),
            threshold=threshold,
            kl={name: value.mean(0).cpu() for name, value in kl.items()},
            kl_se={name: (value.std(0) / math.sqrt(len(value))).cpu() for name, value in kl.items()},
            rate=_estimate(rate),
            information=None if below is None else _estimate(below),
            information_above=None if above is None else _estimate(above),
            marginal_kl=None if below is None else _estimate(rate - below),
            moments=_moments(lvm, fixed, weights.latents, plan),
            num_data=len(fixed),
        )


def _checked(data: Data, caller: str) -> Data:
    if len(data) < 2:
        raise ValueError(f"{caller} needs at least two data; got {len(data)}.")
    return data


def _check_local(lvm: object, plan: Layout, caller: str) -> None:
    if not plan.local:
        raise ContractError(f"{caller}: {type(lvm).__name__} has a latent that its data share, which cannot move with a datum.")


def _check_density(lvm: object, plan: Layout) -> None:
    for names, why in ((plan.degenerate, "is put on one point by the guide"), (plan.improper, "has a flat prior")):
        if names:
            raise ContractError(
                f"collapse: latent {names[0]!r} of {type(lvm).__name__} {why}, so it has no rate; see active_units."
            )


def _estimate(terms: Tensor) -> Estimate:
    """Of terms of shape (num_samples, num_data)."""
    return Estimate(terms.mean(0).cpu(), (terms.std(0) / math.sqrt(len(terms))).cpu())


def _information(
    lvm: LatentVariableModel, data: Data, latents: dict[str, Tensor], plan: Layout
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Both sides of the mutual information for every draw, shape (num_samples, num_data); None without a density of given latents."""
    n = len(data)
    below, above = [], []
    by_draw = {name: value.movedim(plan.data_axes[name], 1) for name, value in latents.items()}
    rows = {name: value.reshape(-1, *value.shape[2:]) for name, value in by_draw.items()}  # (num_samples · num_data, ...)
    total = len(next(iter(rows.values())))
    size = max(1, _PAIRS // n)
    for start in range(0, total, size):
        part = {
            name: value[start : start + size].unsqueeze(1).expand(-1, n, *value.shape[1:]).movedim(1, plan.data_axes[name])
            for name, value in rows.items()
        }
        try:
            log_q = guide_log_prob(lvm, data.x, part, plan=plan)  # a row a draw, a column a datum
        except ContractError:
            return None, None
        own = (torch.arange(start, start + len(log_q), device=log_q.device) % n).unsqueeze(-1)
        numerator = log_q.gather(1, own).squeeze(-1)
        below.append(numerator - log_q.logsumexp(-1) + math.log(n))
        above.append(numerator - log_q.scatter(1, own, -math.inf).logsumexp(-1) + math.log(n - 1))
    return torch.cat(below).reshape(-1, n), torch.cat(above).reshape(-1, n)


def _moments(lvm: LatentVariableModel, data: Data, latents: dict[str, Tensor], plan: Layout) -> dict[str, Moments]:
    prior = sample(lvm, len(next(iter(latents.values()))), like=data.x)

    def moments(name: str, draws: Tensor) -> tuple[Tensor, Tensor]:
        flat = draws.double().movedim(plan.data_axes[name], 1).flatten(0, 1)
        return flat.mean(0).cpu(), flat.var(0).cpu()

    return {name: Moments(*moments(name, value), *moments(name, prior[name])) for name, value in latents.items()}


def _activity_where_known(lvm: LatentVariableModel, data: Data, num_samples: int) -> dict[str, Tensor]:
    try:
        return {name: value.cpu() for name, value in _activity(lvm, data, num_samples).items()}
    except ContractError:  # a latent has no mean
        return {}


@torch.no_grad()
def active_units(lvm: LatentVariableModel, data: Any, threshold: float = 0.01, num_samples: int = 50) -> dict[str, Tensor]:
    """Which units of each latent are active on these data.

    Where the guide's mean is not known in closed form, its variance over the data is estimated without bias, as the covariance of
    two estimates of independent draws.

    Arguments:
        lvm: the model and guide; every latent stands in the plate over the data.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum a row; a transform is drawn once.
        threshold: variance over the data of the posterior mean above which a unit is active.
        num_samples: draws of latents on which others depend, for each of the two estimates.

    Returns:
        By latent, a Boolean tensor of the latent's event shape; its sum is the number of active units.

    Raises:
        ValueError: fewer than two data, which have no variance.
        ContractError: a latent is shared by the data, or has no mean.
    """
    fixed = _checked(fixed_beside(lvm, data), "active_units")
    _check_local(lvm, layout(lvm, fixed.x), "active_units")
    return {name: value > threshold for name, value in _activity(lvm, fixed, num_samples).items()}


def _activity(lvm: LatentVariableModel, data: Data, num_samples: int) -> dict[str, Tensor]:
    """Var_x E_q[z | x] by latent, without bias."""
    first, second = (_deviations(lvm, data, num_samples) for _ in range(2))
    return {name: (first[name] * second[name]).sum(0) / (len(data) - 1) for name in first}


def _deviations(lvm: LatentVariableModel, data: Data, num_samples: int) -> dict[str, Tensor]:
    """Posterior means less their mean over the data, by latent, shape (num_data, ...)."""
    rows = max(1, _ROWS // num_samples)
    means = [posterior_mean(lvm, part.x, num_samples) for part in data.parts(rows)]
    joined = {name: torch.cat([m[name] for m in means]) for name in means[0]}
    return {name: value - value.mean(0) for name, value in joined.items()}
