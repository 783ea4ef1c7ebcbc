"""What the results of ``infer`` say about its posterior."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from vilvm.diagnostics._components import indexed
from vilvm.diagnostics._tail import tail_shape
from vilvm.diagnostics.finding import Finding, Severity
from vilvm.inference._chains import DRIFT, ENOUGH, R_HAT, Chains, worst_of
from vilvm.inference._clock import Clock
from vilvm.inference._ladder import Found
from vilvm.inference._stochastic import R_HAT as ITERATES_R_HAT
from vilvm.inference._weighted import RELIABLE_K, Weighted

__all__ = ["findings_of"]

_VEHTARI = "Vehtari et al. 2024"
_DHAKA = "Dhaka et al. 2020"
_MARGOSSIAN = "Margossian et al. 2024"
_LEAST_SIZE = 400.0
_LEAST_DRAWS = 100  # of a tail
_NAMED = 3  # scalars in a message
_DIVERGENT = 0.005  # share of transitions


def findings_of(
    found: Found,
    draws: Mapping[str, Tensor],
    clock: Clock,
    is_refined: bool,
    r_hat: float | None = None,
) -> list[Finding]:
    """The findings, the most severe first.

    Arguments:
        found: what the ladder found.
        draws: what is handed over, by site, shape (S, *event).
        clock: the budget.
        is_refined: whether refinement was allowed.
        r_hat: of the iterates, if the data were seen in batches.
    """
    if found.chains is None:
        findings = [_weights(found.weighted, is_refined)]
    else:
        findings = [_chains(found.chains), _divergences(found.chains)]
    if found.before is not None:
        converged = found.chains is not None and found.chains.converged
        findings.append(_refinement(found.before, *_draws(found), converged))
    if r_hat is not None:
        findings.append(_iterates(r_hat))
    if len(found.modes) > 1:
        findings.append(_modes(found))
    findings += _heavy_tails(draws)
    if clock.is_over:
        findings.append(
            Finding(
                "Budget",
                Severity.NOTE,
                f"The budget of {clock.budget:.0f} s ended before the last rung was finished.",
                "budget",
                "Give more time (budget=...).",
            )
        )
    return sorted(findings, key=lambda finding: -finding.severity)


def _iterates(r_hat: float) -> Finding:
    numbers = f"R̂ of the iterates is {r_hat:.2f} (threshold {ITERATES_R_HAT})"
    if r_hat < ITERATES_R_HAT:
        return Finding("Iterates", Severity.OK, f"{numbers}.", _DHAKA)
    return Finding(
        "Iterates",
        Severity.NOTE,
        f"{numbers}: the fit to batches was not stationary.",
        _DHAKA,
        "Give more time (budget=...), or larger batches.",
    )


def _weights(weighted: Weighted, is_refined: bool) -> Finding:
    k, size = weighted.k, weighted.ess
    numbers = f"k̂ of the weights is {k:.2f}, their effective number {size:.0f}"
    refine = "" if is_refined else "Allow refinement (refine=True)."
    if not k <= RELIABLE_K:
        return Finding(
            "Pareto k̂",
            Severity.CRITICAL,
            f"{numbers}: no correction of the approximation is reliable (threshold {RELIABLE_K}).",
            _VEHTARI,
            refine or "Give more time (budget=...), or reparametrise the model.",
        )
    if size < _LEAST_SIZE:
        return Finding(
            "Pareto k̂",
            Severity.WARNING,
            f"{numbers}, below {_LEAST_SIZE:.0f}: the errors of means are not small.",
            _VEHTARI,
            refine or "Give more time (budget=...).",
        )
    severity = Severity.OK if k <= 0.5 else Severity.NOTE
    return Finding(
        "Pareto k̂", severity, f"{numbers}: the weighted draws are reliable.", _VEHTARI
    )


def _draws(found: Found) -> tuple[Tensor, Tensor]:
    """The draws u that are handed over, shape (S, D), and their weights, (S,)."""
    if found.chains is None:
        return found.weighted.u, found.weighted.weight
    u = found.chains.u.flatten(0, 1)
    return u, u.new_full((len(u),), 1 / len(u))


def _refinement(
    before: Weighted, u: Tensor, weight: Tensor, converged: bool
) -> Finding:
    """How far the approximation was off, by the draws after the chains."""
    with torch.no_grad():
        mean = weight @ u
        sd = (weight @ (u - mean).square()).sqrt()
        shift = ((before.u.mean(0) - mean) / sd).abs().max().item()
        ratio = (before.u.std(0) / sd).log().abs().max().exp().item()
    sizes = (
        f"by up to {shift:.2f} posterior standard deviations, its standard deviations by a factor "
        f"of up to {ratio:.2f}"
    )
    if not converged:
        return Finding(
            "Refinement",
            Severity.NOTE,
            f"Chains began to refine the approximation (k̂ {before.k:.2f}) and have not "
            f"converged. By their draws so far its means are off {sizes}.",
            "chains",
        )
    return Finding(
        "Refinement",
        Severity.OK,
        f"Chains refined the approximation (k̂ {before.k:.2f}). Its means were off {sizes}.",
        "chains",
    )


def _chains(chains: Chains) -> Finding:
    r_hat, size, drift = worst_of(chains.u)
    numbers = f"Nested R̂ is at most {r_hat:.3f}, the effective sample size at least {size:.0f}"
    # else the chains are far apart, and errors too large to compare halves
    if r_hat <= R_HAT:
        numbers += f", the change between halves at most {drift:.1f} standard errors"
    if chains.converged:
        return Finding("Chains", Severity.OK, f"{numbers}.", _MARGOSSIAN)
    severity = Severity.CRITICAL if r_hat > 1.05 else Severity.WARNING
    return Finding(
        "Chains",
        severity,
        f"{numbers}: the chains have not converged (thresholds {R_HAT}, {ENOUGH:,.0f} and "
        f"{DRIFT:.0f}).",
        _MARGOSSIAN,
        "Give more time (budget=...), or reparametrise the model.",
    )


def _divergences(chains: Chains) -> Finding:
    share = chains.divergences
    if share <= _DIVERGENT:
        return Finding(
            "Divergences", Severity.OK, f"{share:.2%} of transitions diverged.", "HMC"
        )
    return Finding(
        "Divergences",
        Severity.WARNING,
        f"{share:.2%} of transitions diverged: regions of strong curvature may be missed.",
        "Betancourt 2017",
        "Reparametrise the model, or give tighter priors of scales.",
    )


def _heavy_tails(draws: Mapping[str, Tensor]) -> list[Finding]:
    """A note if the draws do not give the standard deviation of a scalar."""
    shapes = {}
    for site, x in draws.items():
        if len(x) < _LEAST_DRAWS:
            return []
        scalars = x.double().flatten(1) if x.dim() > 1 else x.double()[:, None]
        k = tail_shape((scalars - scalars.mean(0)).square()).tolist()
        names = (indexed(site, index) for index in np.ndindex(*x.shape[1:]))
        shapes |= dict(zip(names, k, strict=True))
    heavy = sorted(
        (n for n in shapes if shapes[n] > RELIABLE_K), key=shapes.__getitem__
    )
    if not heavy:
        return []
    worst = heavy[-1]
    return [
        Finding(
            "Heavy tails",
            Severity.NOTE,
            f"Few extreme draws decide the standard deviation of {_listed(heavy[::-1])}: k̂ of "
            f"the squared distance from the mean is up to {shapes[worst]:.2f} (threshold "
            f"{RELIABLE_K}).",
            _VEHTARI,
            "Report medians and quantiles instead.",
        )
    ]


def _listed(names: list[str]) -> str:
    """The first names, and how many more there are."""
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _modes(found: Found) -> Finding:
    weights = mode_weights(found)
    listed = ", ".join(f"{w:.2f}" for w in weights)
    return Finding(
        "Modes",
        Severity.NOTE,
        f"The posterior has {len(weights)} modes, of weights {listed}: means over all draws "
        "describe none of them.",
        "paths of Newton's method",
        "Order exchangeable latents, or summarise each mode separately.",
    )


def mode_weights(found: Found) -> list[float]:
    """The share of the posterior's draws nearest to each mode."""
    u, weight = _draws(found)
    with torch.no_grad():
        distance = torch.stack(
            [mode.gaussian.inverse(u).square().sum(1) for mode in found.modes]
        )
    nearest = distance.argmin(0)
    return [weight[nearest == m].sum().item() for m in range(len(found.modes))]
