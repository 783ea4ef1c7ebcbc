"""The rungs of ``infer``, in their order, and the choice among what they find."""

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vilvm.inference._approximations import (
    Approximation,
    Chain,
    Gaussian,
    Mixture,
    composed,
)
from vilvm.inference._candidates import Candidate, best_candidate
from vilvm.inference._chains import SUPERCHAINS, Chains, run_chains
from vilvm.inference._clock import Clock
from vilvm.inference._fixed_draws import best_skewed
from vilvm.inference._flow import flow_of, train
from vilvm.inference._modes import Mode
from vilvm.inference._target import Target
from vilvm.inference._weighted import RELIABLE_K, Weighted, weigh

__all__ = ["LEAST_TO_COMPILE", "Found", "climb", "mixed", "widened"]

_FEW, _SMALL = (
    15,
    50,
)  # dimensions up to which skewed margins are fitted, before chains or not
_GOOD_K = 0.6  # k̂ up to which weights are good enough to look no further
_ENOUGH = 4000.0  # effective sample size
_FIRST, _MOST_DRAWS = 4000, 64_000
# shares of the time left
_MORE_DRAWS, _CHAINS = 0.2, 0.9
_SHARES = (
    0.6,
    0.2,
    0.2,
)  # of the fitted, the widened and the paths' Gaussians in a mixture
_WIDER = 1.5  # enlargement times the root of the dimension
_NEW = 0.7  # share of new components beside the old ones
_LAYERS, _FLOW_STEPS = 6, 1000
_LEAST_FOR_FLOW, LEAST_TO_COMPILE = 15.0, 20.0  # seconds

Components = tuple[
    list[Approximation], Tensor
]  # with their log-probabilities, shape (K,)


class Found(NamedTuple):
    """The result of the ladder.

    Arguments:
        model: in the parametrisation that was chosen.
        target: its log-density.
        modes: the regions found.
        parts, log_probs: the components of the approximation.
        weighted: its draws with weights.
        chains: refined draws; None without chains.
        before: the weighted draws that the chains started from; None without chains.
    """

    model: Callable[[Any], Any]
    target: Target
    modes: list[Mode]
    parts: list[Approximation]
    log_probs: Tensor
    weighted: Weighted
    chains: Chains | None = None
    before: Weighted | None = None


class _Choice:
    """The components whose weights are the best so far.

    Arguments:
        target: the log-density.
        clock: the budget.
        components: the first ones.
    """

    def __init__(self, target: Target, clock: Clock, components: Components):
        self.target, self.clock = target, clock
        self.components = components
        self.weighted = self._weighed(components)
        note = f"ELBO {self.weighted.elbo:.2f}"
        clock.record("weights", target.gradients, self.weighted.k, note)

    def consider(self, name: str, components: Components) -> None:
        """Takes these components, if the k̂ of their weights is smaller."""
        weighted = self._weighed(components)
        self.clock.record(name, self.target.gradients, weighted.k)
        if weighted.k < self.weighted.k:
            self.components, self.weighted = components, weighted

    def _weighed(self, components: Components) -> Weighted:
        """Draws with their weights, more of them until they suffice."""
        q, num = Mixture(*components), _FIRST
        began = self.clock.elapsed
        weighted = weigh(self.target, q, num)
        each = (self.clock.elapsed - began) / num
        end = self.clock.elapsed + _MORE_DRAWS * self.clock.left
        while weighted.k < RELIABLE_K and weighted.ess < _ENOUGH and num < _MOST_DRAWS:
            began = self.clock.elapsed
            if began + each * num > end:
                break
            weighted = weighted.joined(weigh(self.target, q, num))
            each = (self.clock.elapsed - began) / num
            num *= 2
        return weighted

    @property
    def is_good(self) -> bool:
        """Whether the weights are good enough to look no further."""
        return self.weighted.k <= _GOOD_K and self.weighted.ess >= _ENOUGH / 2

    @property
    def is_done(self) -> bool:
        """Whether to look no further, or the time is up."""
        return self.is_good or self.clock.is_over


def climb(
    model: Callable[[Any], Any], batch: Any, clock: Clock, refine: bool, skew: bool
) -> Found:
    """Runs the rungs until the answer is good enough, or the time is up.

    Arguments:
        model: see ``own_model``.
        batch: see ``prepare_data``.
        clock: the budget.
        refine: whether chains may follow.
        skew: whether approximations other than Gaussian ones may be fitted.

    Raises:
        ContractError: the model cannot be used, or has no proper posterior.
    """
    best = best_candidate(model, batch, clock)
    choice = _Choice(best.target, clock, (best.parts, best.log_probs))
    if not choice.is_done:
        choice.consider("weights, defended", _defended(best))
    coordinates = best.parts[0]
    most = _FEW if refine else _SMALL
    if skew and best.target.dim <= most and not choice.is_done:
        skewed = _skewed(best, clock)
        choice.consider("skewed margins", mixed(skewed, choice.components))
        coordinates = [*skewed, coordinates][0]
    chains, before = None, None
    if refine and not choice.is_done:
        before = choice.weighted
        chains = _chains(choice, coordinates)
    elif skew:
        _consider_flow(choice, best)
    found = best.model, best.target, best.modes
    return Found(*found, *choice.components, choice.weighted, chains, before)


def _chains(choice: _Choice, coordinates: Approximation) -> Chains:
    """Chains from the weighted draws; then, for the evidence, weights of their moments."""
    clock = choice.clock
    chains = run_chains(
        choice.target,
        coordinates,
        choice.weighted.distinct(SUPERCHAINS),
        clock.within(_CHAINS),
        report=clock.show,
        compile=clock.left > LEAST_TO_COMPILE,
    )
    clock.record("chains", choice.target.gradients)
    choice.consider("weights after chains", _refitted(coordinates, chains.u))
    return chains


def _defended(best: Candidate) -> Components:
    """The fitted Gaussians; beside them wider ones, and the paths' own, with heavier tails."""
    wide = [widened(part) for part in best.parts]
    parts = [*best.parts, *wide, *(mode.gaussian for mode in best.modes)]
    return parts, torch.cat([best.log_probs + math.log(share) for share in _SHARES])


def widened(part: Approximation) -> Approximation:
    """The same with all deviations enlarged, less so in many dimensions."""
    zero = torch.zeros_like(part.loc.detach())
    return Chain(Gaussian(zero, zero + 1 + _WIDER / math.sqrt(len(zero))), part)


def mixed(new: list[Approximation], old: Components) -> Components:
    """New components beside old ones."""
    if not new:
        return old
    parts, log_probs = old
    each = log_probs.new_full((len(new),), _NEW / len(new)).log()
    return [*new, *parts], torch.cat([each, log_probs + math.log(1 - _NEW)])


def _skewed(best: Candidate, clock: Clock) -> list[Approximation]:
    """A component with skewed margins for each Gaussian of full rank."""
    return [
        best_skewed(best.target, part, 0, clock.within(0.3 / len(best.parts)))[0]
        for part in best.parts
        if isinstance(part, Gaussian)
    ]


def _consider_flow(choice: _Choice, best: Candidate) -> None:
    """Considers a flow in the coordinates of the best Gaussian, if it is needed and affordable."""
    clock = choice.clock
    is_needed = choice.weighted.k > RELIABLE_K and best.target.dim > 1
    if not is_needed or clock.left < _LEAST_FOR_FLOW:
        return
    flow = flow_of(best.target, copy.deepcopy(best.parts[0]), _LAYERS)
    train(best.target, flow, _FLOW_STEPS, clock.within(0.7))
    choice.consider("flow", mixed([flow], choice.components))


def _refitted(coordinates: Approximation, u: Tensor) -> Components:
    """The Gaussian with the moments of draws u, in some coordinates, and a wider one."""
    with torch.no_grad():
        eps = coordinates.inverse(u.flatten(0, 1))
        covariance = eps.T.cov().reshape(eps.shape[1], eps.shape[1])
        factor, info = torch.linalg.cholesky_ex(covariance)
        if info.item():
            factor = torch.diag(eps.std(0))
        part = composed(Gaussian(eps.mean(0), factor), coordinates)
    return mixed([part], ([widened(part)], covariance.new_zeros(1)))
