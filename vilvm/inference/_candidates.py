"""The Gaussians from which ``infer`` goes on, in the better of two parametrisations."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vilvm.inference._approximations import Approximation, deviations
from vilvm.inference._best_gaussian import best_gaussian
from vilvm.inference._clock import Clock
from vilvm.inference._decentre import decentred
from vilvm.inference._modes import Mode
from vilvm.inference._paths import find_modes, starts
from vilvm.inference._preparation import target_of
from vilvm.inference._proper import improper_direction
from vilvm.inference._target import Target
from vilvm.lvm import ContractError

__all__ = ["NOWHERE", "Candidate", "best_candidate", "check_proper"]

_PATHS, _FIT = 0.15, 0.15  # shares of the time left
_AGAIN = 0.6  # for paths, if none has found a region so far
_SHORT = 15  # steps of a path of a model that has a form in standard units
NOWHERE = (
    "infer: no path found a region where the density is concave, so there is no proper posterior, "
    "or none that infer can find: check the priors and the data."
)

_TOO_SHORT = (
    "infer: the budget ended before a path reached a region where the density is concave: give "
    "more time (budget=...)."
)


class Candidate(NamedTuple):
    """A parametrisation of the model with the modes found and their Gaussians.

    Arguments:
        model: of this parametrisation.
        target: its log-density.
        modes: regions found by the paths.
        parts: a fitted Gaussian for each mode.
        elbos: their ELBOs, in nats.
        is_cut: whether the time of the paths ended before they found a region.
    """

    model: Callable[[Any], Any]
    target: Target
    modes: list[Mode]
    parts: list[Approximation]
    elbos: list[float]
    is_cut: bool

    @property
    def log_probs(self) -> Tensor:
        """Log-probabilities of the parts in a mixture, by their ELBOs; shape (K,)."""
        return torch.tensor(self.elbos, dtype=torch.float64).log_softmax(0)


def best_candidate(model: Callable[[Any], Any], batch: Any, clock: Clock) -> Candidate:
    """The model as written, or in standard units, by the larger ELBO of its Gaussians.

    Arguments:
        model: see ``own_model``.
        batch: see ``prepare_data``.
        clock: the budget.

    Raises:
        ContractError: the model cannot be used, or has no proper posterior.
    """
    other = decentred(model, batch)
    options = []
    if other is not None:
        options.append(_candidate(other, batch, clock, " in standard units"))
    if not clock.is_over or not options:
        # a path of the model as written may lead to a density without bound
        short = _SHORT if other else None
        options.append(_candidate(model, batch, clock, "", steps=short))
    if not any(option.parts for option in options):
        options = [_again(model, batch, clock, options[-1])]
    usable = [option for option in options if option.parts]
    return _polished(max(usable, key=lambda option: max(option.elbos)), clock)


def _again(
    model: Callable[[Any], Any], batch: Any, clock: Clock, before: Candidate
) -> Candidate:
    """The model as written, with more time if this ended the paths before.

    Raises:
        ContractError: no path has found a region where the density is concave.
    """
    if not before.is_cut:
        raise ContractError(NOWHERE)
    found = _candidate(model, batch, clock, ", again", share=_AGAIN)
    if not found.parts:
        raise ContractError(_TOO_SHORT if found.is_cut else NOWHERE)
    return found


def _candidate(
    model: Callable[[Any], Any],
    batch: Any,
    clock: Clock,
    label: str,
    *,
    steps: int | None = None,
    share: float = _PATHS,
) -> Candidate:
    target = target_of(model, batch)
    limit = {} if steps is None else {"steps": steps}
    is_over = clock.within(share)
    found = find_modes(target, is_over=is_over, **limit)
    is_cut = is_over() and not found
    check_proper(target, found)
    clock.record(f"paths{label}", target.gradients, note=f"{len(found)} modes")
    parts, elbos = [], []
    for mode in found:
        part, value = best_gaussian(
            target, mode.gaussian, 0, clock.within(_FIT), rough=True
        )
        parts.append(part)
        elbos.append(value)
    best = f"ELBO {max(elbos):.2f}" if elbos else ""
    clock.record(f"Gaussian{label}", target.gradients, note=best)
    return Candidate(model, target, found, parts, elbos, is_cut)


def _polished(candidate: Candidate, clock: Clock) -> Candidate:
    """The same with Gaussians fitted on more draws."""
    is_over = clock.within(_FIT)
    found = [
        best_gaussian(candidate.target, part, 0, is_over) for part in candidate.parts
    ]
    clock.record("Gaussian, more draws", candidate.target.gradients)
    return candidate._replace(
        parts=[part for part, _ in found], elbos=[elbo for _, elbo in found]
    )


def check_proper(target: Target, found: list[Mode]) -> None:
    """Raises ContractError if a model with flat priors has no proper posterior.

    Arguments:
        target: the log-density.
        found: the modes, the best first; there may be none.
    """
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
