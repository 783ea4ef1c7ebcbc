"""What ``infer`` hands over, of what its ladder found."""

from typing import Any

import torch
from torch import Tensor

from vilvm.evaluation import Estimate
from vilvm.evaluation.estimates import log_mean_error
from vilvm.inference._approximations import pair_of
from vilvm.inference._clock import Clock
from vilvm.inference._decentre import SUFFIX
from vilvm.inference._ladder import Found
from vilvm.inference._preparation import has_derived_sites
from vilvm.inference._verdict import findings_of, mode_weights
from vilvm.inference._weighted import RELIABLE_K
from vilvm.inference.posterior import Posterior
from vilvm.weights.generated_quantities import derived_values, replay

__all__ = ["answer"]

_DRAWS, _FEWER = 10_000, 4000  # of equal weight, from weighted ones; fewer of many data
_ALL = 20_000  # draws of chains that are handed over at most


def answer(
    found: Found,
    batch: Any,
    clock: Clock,
    is_refined: bool,
    r_hat: float | None = None,
) -> Posterior:
    """The posterior, with its draws and findings.

    Arguments:
        found: what the ladder found.
        batch: the data, in float64.
        clock: the budget.
        is_refined: whether refinement was allowed.
        r_hat: of the iterates, if the data were seen in batches.
    """
    u, chains = _equal_draws(found)
    draws = _values(found, u, derived=r_hat is None)
    clock.record("draws", found.target.gradients)
    return Posterior(
        lvm=pair_of(found.model, batch, found.parts, found.log_probs),
        data=batch,
        draws=draws,
        chains=chains,
        rung="weights" if found.chains is None else "chains",
        k=found.weighted.k,
        ess=found.weighted.ess,
        findings=tuple(findings_of(found, draws, clock, is_refined, r_hat)),
        history=tuple(clock.history),
        gradients=found.target.gradients,
        densities=found.target.densities,
        seconds=clock.elapsed,
        modes=tuple(sorted(mode_weights(found), reverse=True)),
        _evidence=_evidence(found),
    )


def _equal_draws(found: Found) -> tuple[Tensor, int]:
    """Draws u of equal weight, shape (S, D), and the number of their chains."""
    if found.chains is None:
        num = _DRAWS if found.target.most >= _DRAWS else _FEWER
        return found.weighted.resampled(num), 1
    u = found.chains.u
    keep = max(1, _ALL // u.shape[1])
    thin = max(1, -(-len(u) // keep))
    u = u[::thin]
    return u.transpose(0, 1).flatten(0, 1), u.shape[1]


@torch.no_grad()
def _values(found: Found, u: Tensor, derived: bool) -> dict[str, Tensor]:
    """The latents and deterministic sites at u, under the names that the model gives them."""
    joint = found.target.joint
    needs_replay = derived and has_derived_sites(found.model, joint.batch)
    parts = []
    for part in u.split(found.target.most):
        latents = joint.latents(part[:, None])
        parts.append(_with_derived(found, latents) if needs_replay else latents)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _with_derived(found: Found, latents: dict[str, Tensor]) -> dict[str, Tensor]:
    """The latents and deterministic values; of a latent in standard units, the user's own value.

    That value is of a site which the reparametrised model observes from a Delta.
    """
    joint = found.target.joint
    derived = derived_values(joint.lvm, joint.batch, latents, joint.layout)
    own_values: dict[str, Tensor] = {}
    if any(name.endswith(SUFFIX) for name in latents):
        sites = replay(joint.lvm, joint.batch, latents, layout=joint.layout)
        own_values = sites.observed
    values = {}
    for name, value in latents.items():
        own = name.removesuffix(SUFFIX)
        if own in own_values:
            values[own] = own_values[own]
        else:
            values[name] = value
    return values | derived


def _evidence(found: Found) -> Estimate | str:
    """log p(x), or why it is not known."""
    flat = found.target.joint.layout.improper
    if flat:
        return (
            f"The prior of {', '.join(map(repr, flat))} is flat, so the evidence is defined up to "
            "a constant only: give it a proper prior."
        )
    weighted = found.weighted
    if not weighted.k <= RELIABLE_K:
        return (
            f"The evidence is not known: the weights of the approximation are too uneven (k̂ "
            f"{weighted.k:.2f})."
        )
    errors = log_mean_error(torch.tensor([weighted.ess]), len(weighted.u))
    return Estimate(weighted.log_evidence[None], errors)
