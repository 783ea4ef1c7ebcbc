"""Many short chains from an approximation, and whether they have converged.

Chains start in groups ("superchains") at draws of the approximation, chosen by their weights; at
different ones, because superchains that start at one point agree before they have moved. If
the means of superchains agree, then all have forgotten their start (nested R̂). With C chains the
variance of the chains' means gives the Monte Carlo error without a model of the autocorrelation:

    MCSE² = Var_c(mean of chain c) / C,    ESS = Var / MCSE².

References: Nested R̂: Assessing the Convergence of Markov Chain Monte Carlo When Running Many
Short Chains, Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari and Gelman, 2024.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vilvm.inference._approximations import Approximation
from vilvm.inference._hmc import Sampler
from vilvm.inference._target import Target

__all__ = [
    "DRIFT",
    "ENOUGH",
    "R_HAT",
    "SUPERCHAINS",
    "Chains",
    "Convergence",
    "convergence",
    "run_chains",
    "worst_of",
]

SUPERCHAINS = 16
# chains of a superchain, up to some number of dimensions times data
_EACH = ((8, 2000), (4, 20_000), (2, math.inf))
_STAGES = (25, 25, 40)  # transitions of the stages of the warm-up
_ROUND = 25  # transitions between two tests
ENOUGH = 1500.0  # effective sample size
R_HAT = 1.01
DRIFT = 5.0  # standard errors


class Convergence(NamedTuple):
    """How well chains agree on the means of some quantities, each of shape (K,).

    Arguments:
        r_hat: nested R̂.
        ess: effective sample size.
        mcse: Monte Carlo standard error of the mean.
        drift: difference between the halves of the chains, in standard errors.
    """

    r_hat: Tensor
    ess: Tensor
    mcse: Tensor
    drift: Tensor


class Chains(NamedTuple):
    """Draws of chains after their warm-up.

    Arguments:
        u: shape (T, C, D); the chains of a superchain are neighbours.
        acceptance: mean acceptance probability.
        divergences: share of transitions whose energy error was over 1,000 nats.
        converged: nested R̂, effective size and drift are as they should be.
    """

    u: Tensor
    acceptance: float
    divergences: float
    converged: bool


def convergence(x: Tensor) -> Convergence:
    """How well chains agree on the mean of each quantity.

    Arguments:
        x: shape (T, C, K), C a multiple of the number of superchains.
    """
    length, chains, _ = x.shape
    mean = x.mean(0)
    total = x.flatten(0, 1).var(0)
    within = x.var(0).mean(0) if length > 1 else total
    groups = mean.unflatten(0, (SUPERCHAINS, -1))
    between = groups.mean(1).var(0)
    inside = groups.var(1).mean(0) if groups.shape[1] > 1 else torch.zeros_like(between)
    r_hat = (1 + between / (inside + within).clamp(min=1e-300)).sqrt()
    of_mean = mean.var(0) / chains
    ess = (total / of_mean.clamp(min=1e-300)).clamp(max=length * chains)
    half = length // 2
    change = x[:half].mean(0) - x[length - half :].mean(0) if half else 0 * mean
    error = change.std(0) / chains**0.5
    drift = change.mean(0) / error.clamp(min=1e-300)
    constant = total == 0
    return Convergence(
        torch.where(constant, 1.0, r_hat),
        torch.where(constant, float(length * chains), ess),
        of_mean.sqrt(),
        torch.where(constant, 0.0, drift),
    )


def run_chains(
    target: Target,
    map_: Approximation,
    starts: Tensor,
    is_over: Callable[[], bool],
    *,
    report: Callable[[str], None] = lambda _: None,
    compile: bool = False,
) -> Chains:
    """Warms up and runs chains until they agree, or the time is up.

    Arguments:
        target: the log-density.
        map_: coordinates in which the posterior is nearly standard normal.
        starts: positions of the superchains, shape (16, D).
        is_over: whether the time is up.
        report: receives a line of progress.
        compile: whether to compile the gradient.
    """
    each = _chains_at_once(target)
    u = starts.repeat_interleave(each, 0)
    if compile:
        report("chains are compiled")
        target.compile(u)
    sampler = Sampler(target, map_, u)
    _warm_up(sampler, is_over, report)
    rounds: list[Tensor] = []
    rates: list[float] = []
    agrees = False
    while not rounds or not (agrees or is_over()):
        new, rate = sampler.run(_ROUND, False, is_over)
        rounds.append(new)
        rates.append(rate)
        # what came before may belong to the warm-up still
        u = torch.cat(rounds[len(rounds) // 4 :])
        agrees, worst = _agrees(u)
        report(f"R̂ {worst:.3f}")
    kept = sum(len(r) for r in rounds)
    return Chains(
        u=u,
        acceptance=sum(rates) / len(rates),
        divergences=sampler.divergences / (kept * len(u[0])),
        converged=agrees,
    )


def _warm_up(
    sampler: Sampler, is_over: Callable[[], bool], report: Callable[[str], None]
) -> None:
    """Adapts the sampler."""
    for stage, length in enumerate(_STAGES):
        warm, _ = sampler.run(length, True, is_over)
        if stage < len(_STAGES) - 1 and not is_over():
            sampler.rewhiten(warm[len(warm) // 2 :].flatten(0, 1))
        report(f"warm-up, {sampler.leapfrogs:.0f} steps")
    sampler.divergences = 0


def _chains_at_once(target: Target) -> int:
    """Chains of a superchain: more of them for a small model.

    The time of a call for a small model is that of its operations, whatever the number of points.
    """
    size = target.dim * max(1, target.joint.layout.num_data)
    return next(each for each, most in _EACH if size <= most)


def worst_of(u: Tensor) -> tuple[float, float, float]:
    """Over means and variances of u, shape (T, C, D): the largest nested R̂, the least effective
    sample size, and the largest drift.
    """
    centred = u - u.mean((0, 1))
    found = convergence(torch.cat([u, centred.square()], -1))
    return (
        found.r_hat.max().item(),
        found.ess.min().item(),
        found.drift.abs().max().item(),
    )


def _agrees(u: Tensor) -> tuple[bool, float]:
    """Whether means and variances have converged, and the largest nested R̂."""
    r_hat, size, drift = worst_of(u)
    return r_hat <= R_HAT and size >= ENOUGH and drift < DRIFT, r_hat
