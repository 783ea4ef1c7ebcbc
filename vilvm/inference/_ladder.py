"""The rungs of ``infer``, in their order, and the choice among what they find."""

import copy
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vilvm.data.data import Data
from vilvm.inference._approximations import (
    Approximation,
    Chain,
    Gaussian,
    Mixture,
    composed,
    deviations,
    pair_of,
)
from vilvm.inference._best_gaussian import best_gaussian
from vilvm.inference._chains import SUPERCHAINS, Chains, run_chains
from vilvm.inference._decentre import decentred
from vilvm.inference._fixed_draws import best_skewed
from vilvm.inference._modes import Mode
from vilvm.inference._paths import find_modes, starts
from vilvm.inference._preparation import check_global, target_of
from vilvm.inference._proper import improper_direction
from vilvm.inference._stochastic import fit_in_batches, weigh_in_chunks
from vilvm.inference._target import Target
from vilvm.inference._weighted import Weighted, weigh
from vilvm.inference.flow import flow_of, train
from vilvm.lvm import ContractError

__all__ = ["Clock", "Found", "Rung", "climb", "climb_in_batches"]

_FEW, _SMALL = (
    15,
    50,
)  # dimensions up to which skewed margins are fitted, before chains or not
_GOOD_K = 0.6  # k̂ up to which weights are good enough to look no further
_FAIR_K = 0.7
_ENOUGH = 4000.0  # effective sample size
_SHORT = 15  # steps of a path of a model that has a form in standard units
_FEWEST, _FIRST, _MOST_DRAWS = 200, 4000, 64_000
_SHARES = (
    0.6,
    0.2,
    0.2,
)  # of the fitted, the widened and the paths' Gaussians in a mixture
_WIDER = 1.5  # enlargement times the root of the dimension
_SKEW = 0.7  # share of the skewed components, or of the flow
_LAYERS, _FLOW_STEPS = 6, 1000
_LEAST_FOR_FLOW = 15.0  # seconds

_NOWHERE = (
    "infer: no path found a region where the density is concave, so there is no proper posterior, "
    "or none that infer can find: check the priors and the data."
)


class Rung(NamedTuple):
    """A step of the ladder.

    Arguments:
        name: what was done.
        seconds: how long it took.
        gradients: points at which a gradient was computed, since the start.
        k: Pareto k̂ of the approximation; NaN if it has no weights.
        note: what was found.
    """

    name: str
    seconds: float
    gradients: int
    k: float
    note: str


class Clock:
    """The budget, and what each rung took of it.

    Arguments:
        budget: seconds.
        show: receives a line of progress.
    """

    def __init__(self, budget: float, show: Callable[[str], None] = lambda _: None):
        self.began = self._last = time.monotonic()
        self.budget, self.show = budget, show
        self.history: list[Rung] = []

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    @property
    def left(self) -> float:
        """Seconds left, at least zero."""
        return max(0.0, self.budget - self.elapsed)

    @property
    def is_over(self) -> bool:
        """Whether no time is left."""
        return self.left == 0

    def within(self, share: float) -> Callable[[], bool]:
        """Whether a share of the time that is left now is over, as a function."""
        end = time.monotonic() + share * self.left
        return lambda: time.monotonic() > end

    def record(
        self, name: str, gradients: int, k: float = math.nan, note: str = ""
    ) -> None:
        """Adds a rung that ends now."""
        now = time.monotonic()
        self.history.append(Rung(name, now - self._last, gradients, k, note))
        self._last = now
        self.show(name if math.isnan(k) else f"{name}, k̂ {k:.2f}")


class Candidate(NamedTuple):
    """A parametrisation of the model with the modes found and their Gaussians.

    Arguments:
        model: of this parametrisation.
        target: its log-density.
        modes: regions found by the paths.
        parts: a fitted Gaussian for each mode.
        elbos: their ELBOs, in nats.
    """

    model: Callable[[Any], Any]
    target: Target
    modes: list[Mode]
    parts: list[Approximation]
    elbos: list[float]


class Found(NamedTuple):
    """The result of the ladder.

    Arguments:
        model: in the parametrisation that was chosen.
        target: its log-density.
        modes: the regions found.
        parts, log_probs: the components of the approximation.
        weighted: its draws with weights.
        chains: refined draws; None without refinement.
        is_decentred: whether the model was reparametrised.
    """

    model: Callable[[Any], Any]
    target: Target
    modes: list[Mode]
    parts: list[Approximation]
    log_probs: Tensor
    weighted: Weighted
    chains: Chains | None
    is_decentred: bool


def climb(
    model: Callable[[Any], Any], batch: Any, clock: Clock, refine: bool, skew: bool
) -> Found:
    """Runs the rungs until the answer is good enough, or the time is up.

    Arguments:
        model: see ``model_of``.
        batch: see ``prepare_data``.
        clock: the budget.
        refine: whether chains may follow.
        skew: whether approximations other than Gaussian ones may be fitted.

    Raises:
        ContractError: the model cannot be used, or has no proper posterior.
    """
    other = decentred(model, batch)
    options = []
    if other is not None:
        options.append(_candidate(other, batch, clock, " in standard units"))
    if not clock.is_over or not options:
        # a path of the model as written may lead to a density without bound
        options.append(_candidate(model, batch, clock, "", _SHORT if other else None))
    options = [option for option in options if option.parts]
    if not options:
        raise ContractError(_NOWHERE)
    best = _polished(max(options, key=lambda option: max(option.elbos)), clock)
    target = best.target
    log_probs = torch.tensor(best.elbos, dtype=torch.float64).log_softmax(0)
    parts = best.parts
    weighted = _weighed(target, Mixture(parts, log_probs), clock)
    clock.record("weights", target.gradients, weighted.k, f"ELBO {weighted.elbo:.2f}")
    if weighted.k > _GOOD_K and not clock.is_over:
        defended = _defended(best, log_probs)
        again = _weighed(target, Mixture(*defended), clock)
        clock.record("weights, defended", target.gradients, again.k)
        if again.k < weighted.k:
            (parts, log_probs), weighted = defended, again
    coordinates = best.parts[0]
    most = _FEW if refine else _SMALL
    if skew and _wants_more(weighted) and target.dim <= most and not clock.is_over:
        (parts, log_probs), weighted = _skewed(
            best, (parts, log_probs), weighted, clock
        )
        coordinates = parts[0]
    if skew and not refine and target.dim > 1 and weighted.k > _FAIR_K:
        (parts, log_probs), weighted = _flowing(
            best, batch, (parts, log_probs), weighted, clock
        )
    chains = None
    if refine and _wants_more(weighted) and not clock.is_over:
        superchains = weighted.resampled(SUPERCHAINS)
        chains = run_chains(
            target, coordinates, superchains, clock.within(1.0), clock.show
        )
        clock.record("chains", target.gradients)
        refitted = _refitted(coordinates, chains)
        again = _weighed(target, Mixture(*refitted), clock)
        clock.record("weights after chains", target.gradients, again.k)
        if again.k < weighted.k:
            (parts, log_probs), weighted = refitted, again
    return Found(
        best.model,
        target,
        best.modes,
        parts,
        log_probs,
        weighted,
        chains,
        best.model is not model,
    )


def climb_in_batches(
    model: Callable[[Any], Any], data: Data, size: int, clock: Clock
) -> tuple[Found, float]:
    """The rungs for data that are seen a batch at a time, and the R̂ of the iterates.

    Arguments:
        model: see ``model_of``.
        data: all data, in float64.
        size: data of a batch.
        clock: the budget.

    Raises:
        ContractError: the model cannot be used, or its data are not in a plate of their own.
    """
    first = data.take(torch.randperm(len(data))[:size])
    check_global(model, first.x)
    target = target_of(model, first.x)
    target.see(first.x, len(data) / size)
    found = find_modes(target, is_over=clock.within(0.2))
    _check_proper(target, found)
    if not found:
        raise ContractError(_NOWHERE)
    start, _ = best_gaussian(
        target, found[0].gaussian, 0, clock.within(0.2), rough=True
    )
    clock.record("Gaussian, of one batch", target.gradients)
    best, r_hat = fit_in_batches(target, data, size, start, clock.within(0.6))
    clock.record("Gaussian, of batches", target.gradients, note=f"R̂ {r_hat:.2f}")
    parts = [best, _widened(best)]
    log_probs = torch.tensor([0.7, 0.3], dtype=torch.float64).log()
    remainder = len(data) % size
    rest = None
    if remainder:
        last = torch.arange(len(data) - remainder, len(data))
        rest = target_of(model, data.take(last).x)
    q = Mixture(parts, log_probs)
    each = 0.0
    for _ in range(2):  # the first is slower
        began = clock.elapsed
        weigh_in_chunks(target, rest, q, data.subset(slice(0, size)), size, _FEWEST)
        each = (clock.elapsed - began) * len(data) / (size * _FEWEST)
    num = min(_FIRST, max(_FEWEST, int(clock.left / max(each, 1e-9))))
    weighted = weigh_in_chunks(target, rest, q, data, size, num)
    clock.record("weights, of all data", target.gradients, weighted.k)
    whole = Found(model, target, found, parts, log_probs, weighted, None, False)
    return whole, r_hat


def _wants_more(weighted: Weighted) -> bool:
    return not weighted.k <= _GOOD_K or weighted.ess < _ENOUGH / 2


def _candidate(
    model: Callable[[Any], Any],
    batch: Any,
    clock: Clock,
    label: str,
    steps: int | None = None,
) -> Candidate:
    target = target_of(model, batch)
    limit = {} if steps is None else {"steps": steps}
    found = find_modes(target, is_over=clock.within(0.3), **limit)
    _check_proper(target, found)
    clock.record(f"paths{label}", target.gradients, note=f"{len(found)} modes")
    parts, elbos = [], []
    for mode in found:
        part, value = best_gaussian(
            target, mode.gaussian, 0, clock.within(0.3), rough=True
        )
        parts.append(part)
        elbos.append(value)
    best = f"ELBO {max(elbos):.2f}" if elbos else ""
    clock.record(f"Gaussian{label}", target.gradients, note=best)
    return Candidate(model, target, found, parts, elbos)


def _polished(candidate: Candidate, clock: Clock) -> Candidate:
    """The same with Gaussians fitted on more draws."""
    is_over = clock.within(0.3)
    found = [
        best_gaussian(candidate.target, part, 0, is_over) for part in candidate.parts
    ]
    clock.record("Gaussian, more draws", candidate.target.gradients)
    return candidate._replace(
        parts=[part for part, _ in found], elbos=[elbo for _, elbo in found]
    )


def _check_proper(target: Target, found: list[Mode]) -> None:
    """Raises unless the density falls in every direction, for a model with flat priors."""
    flat = target.joint.layout.improper
    if not flat:
        return
    if found:
        u, scale = found[0].gaussian.loc, deviations(found[0].gaussian)
    else:
        u = starts(target, 1)[0]
        scale = torch.ones_like(u)
    if improper_direction(target, u.detach(), scale.detach()) is not None:
        names = ", ".join(repr(name) for name in flat)
        raise ContractError(
            f"infer: no proper posterior: with flat priors on {names}, the density does not fall "
            "in some direction, so its integral is infinite. Give a proper prior, or more data."
        )


def _weighed(target: Target, q: Mixture, clock: Clock) -> Weighted:
    """Draws of q with their weights, more of them until they suffice."""
    weighted = weigh(target, q, _FIRST)
    is_over = clock.within(0.2)
    num = _FIRST
    while weighted.k < _FAIR_K and weighted.ess < _ENOUGH and num < _MOST_DRAWS:
        if is_over():
            break
        weighted = weighted.joined(weigh(target, q, num))
        num *= 2
    return weighted


def _defended(best: Candidate, log_probs: Tensor) -> tuple[list[Approximation], Tensor]:
    """The fitted Gaussians; beside them wider ones, and the paths' own, with heavier tails."""
    wide = [_widened(part) for part in best.parts]
    parts = [*best.parts, *wide, *(mode.gaussian for mode in best.modes)]
    return parts, torch.cat([log_probs + math.log(share) for share in _SHARES])


def _widened(part: Approximation) -> Approximation:
    """The same with all deviations enlarged, less so in many dimensions."""
    zero = torch.zeros_like(part.loc.detach())
    return Chain(Gaussian(zero, zero + 1 + _WIDER / math.sqrt(len(zero))), part)


def _flowing(
    best: Candidate,
    batch: Any,
    before: tuple[list[Approximation], Tensor],
    weighted: Weighted,
    clock: Clock,
) -> tuple[tuple[list[Approximation], Tensor], Weighted]:
    """A flow beside the other components, if its weights are better and time is left."""
    if clock.left < _LEAST_FOR_FLOW:
        return before, weighted
    flow = flow_of(best.target, copy.deepcopy(best.parts[0]), _LAYERS)
    # half of the steps are averaged; a run that the clock stops earlier keeps its last iterate
    train(pair_of(best.model, batch, [flow]), batch, _FLOW_STEPS, 0, clock.within(0.7))
    old, old_probs = before
    log_probs = torch.cat(
        [old_probs.new_tensor([_SKEW]).log(), old_probs + math.log(1 - _SKEW)]
    )
    parts = [flow, *old]
    again = _weighed(best.target, Mixture(parts, log_probs), clock)
    clock.record("flow", best.target.gradients, again.k)
    if again.k < weighted.k:
        return (parts, log_probs), again
    return before, weighted


def _refitted(
    coordinates: Approximation, chains: Chains
) -> tuple[list[Approximation], Tensor]:
    """The Gaussian with the chains' moments in some coordinates, and a wider one."""
    with torch.no_grad():
        eps = coordinates.inverse(chains.u.flatten(0, 1))
        covariance = eps.T.cov().reshape(eps.shape[1], eps.shape[1])
        factor, info = torch.linalg.cholesky_ex(covariance)
        if info.item():
            factor = torch.diag(eps.std(0))
        part = composed(Gaussian(eps.mean(0), factor), coordinates)
    return [part, _widened(part)], torch.tensor([0.7, 0.3], dtype=torch.float64).log()


def _skewed(
    best: Candidate,
    before: tuple[list[Approximation], Tensor],
    weighted: Weighted,
    clock: Clock,
) -> tuple[tuple[list[Approximation], Tensor], Weighted]:
    """Components with skewed margins beside the others, if their weights are better."""
    skewed: list[Approximation] = [
        best_skewed(best.target, part, 0, clock.within(0.3 / len(best.parts)))[0]
        for part in best.parts
        if isinstance(part, Gaussian)
    ]
    old, old_probs = before
    probs = old_probs.new_full((len(skewed),), 1 / len(skewed)).log()
    parts = [*skewed, *old]
    log_probs = torch.cat([probs + math.log(_SKEW), old_probs + math.log(1 - _SKEW)])
    again = _weighed(best.target, Mixture(parts, log_probs), clock)
    clock.record("skewed margins", best.target.gradients, again.k)
    if again.k < weighted.k:
        return (parts, log_probs), again
    return before, weighted
