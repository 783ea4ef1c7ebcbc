"""The support of model and guide: points, changes of variables, masked latents.

log p(x, z) − log q(z | x) is a log-weight only if both are densities of the same latents. Three
cases need care.

- A guide may put a latent at a point (a Delta), where it has no density. It has one if the point
  is a one-to-one function of auxiliary draws, as in an automatic guide, whose Delta then carries
  the Jacobian.
- A guide may draw an auxiliary variable a that it marginalises: z ~ q(z | a). Then q(z) = ∫
  q(z | a) q(a) da is not known.
- The model may mask entries of a latent, so that their prior is not scored. If no other density
  depends on them, they are marginalised, and the guide's density of them is left out too
  (``_ModelMasks``). If another density does, their prior is flat, and there is no evidence.
"""

from collections.abc import Callable, Container, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to

from vilvm.lvm import ContractError
from vilvm.weights._sites import (
    UNCONSTRAINED,
    Sites,
    family,
    latents_of,
    log_prob,
    mask_tensor,
    sites_of,
)
from vilvm.weights._traces import run

__all__ = [
    "MaskedLatents",
    "degenerate_latents",
    "guide_sites",
    "is_deterministic",
    "masked_latents",
    "scored_guide",
]


def guide_sites(trace: Any) -> Sites:
    """The sites that a guide draws, and its factors.

    Other observed sites are left out: an automatic guide may replay the data.
    """
    return {
        name: site
        for name, site in sites_of(trace).items()
        if not site["is_observed"] or family(site["fn"]) == "Unit"
    }


# Latents at a point
# --------------------------------------------------------------------------------------------


def degenerate_latents(
    lvm: object, latents: Sites, guide: Sites, guide_again: Callable[[], Sites]
) -> tuple[str, ...]:
    """Continuous latents for which the guide has no density.

    Arguments:
        lvm: named in the error.
        latents: of the model.
        guide: the sites of a run of the guide.
        guide_again: runs the guide once more, with other draws.

    Raises:
        ContractError: the guide has an auxiliary draw, and its latents are not a one-to-one
            function of it.
    """
    points = _points(latents, guide)
    auxiliary = _auxiliary(guide, latents)
    if not auxiliary:
        return points
    other = guide_again()
    fixed = tuple(
        n for n in points if torch.equal(guide[n]["value"], other[n]["value"])
    )
    moving = set(points) - set(fixed)
    drawn = sum(_dimensions(site["fn"], site["value"]) for site in auxiliary.values())
    made = sum(_dimensions(latents[n]["fn"], guide[n]["value"]) for n in moving)
    if drawn < made:
        return points
    if drawn > made:
        raise ContractError(
            f"{type(lvm).__name__}: the guide draws the auxiliary {next(iter(auxiliary))!r}, and "
            "its latents are not a one-to-one function of it, so the density q(z | x) is unknown. "
            "Marginalise it (dist.MixtureSameFamily), or compute the latents from it with a Delta "
            "that carries the Jacobian (log_density=...)."
        )
    return fixed


def is_deterministic(latents: Sites, guide: Sites) -> bool:
    """Whether the guide draws latents, and nothing in it is random.

    Arguments:
        latents: of the model.
        guide: the sites of a run of the guide.
    """
    drawn = [guide[name] for name in latents if name in guide]
    at_points = all(family(site["fn"]) == "Delta" for site in drawn)
    return bool(drawn) and at_points and not _auxiliary(guide, latents)


def _auxiliary(guide: Sites, latents: Sites) -> Sites:
    """The random sites of the guide that are not latents of the model."""
    return {
        name: site
        for name, site in guide.items()
        if name not in latents and family(site["fn"]) not in ("Delta", "Unit")
    }


def _points(latents: Sites, guide: Sites) -> tuple[str, ...]:
    """The continuous latents that the guide puts at a point, in the model's order."""
    shared = [name for name in latents if name in guide]
    return tuple(name for name in shared if _is_point(latents[name], guide[name]))


def _is_point(latent: Any, site: Any) -> bool:
    discrete = getattr(latent["fn"].support, "is_discrete", False)
    return (
        family(site["fn"]) == "Delta"
        and family(latent["fn"]) != "Delta"
        and not discrete
    )


def _dimensions(fn: Any, value: Tensor) -> int:
    """The number of free real numbers in a value: K − 1 in a vector of K probabilities."""
    try:
        return int(torch.Size(biject_to(fn.support).inverse_shape(value.shape)).numel())
    except NotImplementedError:
        return value.numel()


# Masked latents
# --------------------------------------------------------------------------------------------


class MaskedLatents(NamedTuple):
    """Latents with entries that the model masks.

    Arguments:
        marginalised: those whose masked entries the guide scores and no other density depends on.
        flat: those whose masked entries change another density, so that their prior is flat.
    """

    marginalised: tuple[str, ...]
    flat: tuple[str, ...]


def masked_latents(
    lvm: object,
    model: Sites,
    guide: Sites,
    model_at: Callable[[Mapping[str, Tensor]], Sites],
    guide_again: Callable[[], Sites],
) -> MaskedLatents:
    """Finds the latents with entries that the model masks.

    Arguments:
        lvm: named in the error.
        model, guide: the sites of a run of the pair.
        model_at: runs the model at given latents.
        guide_again: runs the guide once more, with other draws.

    Raises:
        ContractError: the guide leaves out entries that the model scores; or it draws masked
            latents together with others.
    """
    masks = _partial_masks(_only(latents_of(model), guide))
    guide_masks = _partial_masks(_only(guide, latents_of(model)))
    differing = []
    for name in latents_of(model):
        if _guide_scores_more(lvm, name, masks.get(name), guide_masks.get(name)):
            differing.append(name)
    flat = []
    others = guide_again() if masks else {}
    for name, mask in masks.items():
        if _matters(name, mask, model, model_at, others[name]["value"]):
            flat.append(name)
    marginalised = [name for name in differing if name not in flat]
    for name in marginalised:
        _check_marginalised(lvm, name, masks[name], model, guide)
    return MaskedLatents(tuple(marginalised), tuple(flat))


def _only(sites: Sites, names: Container[str]) -> Sites:
    return {name: site for name, site in sites.items() if name in names}


def _partial_masks(sites: Sites) -> dict[str, Tensor]:
    """The masks that hide some entries, by site, broadcastable to the value."""
    masks = {name: mask_tensor(site) for name, site in sites.items()}
    return {
        n: mask
        for n, mask in masks.items()
        if mask is not None and not bool(mask.all())
    }


def _guide_scores_more(
    lvm: object, name: str, of_model: Tensor | None, of_guide: Tensor | None
) -> bool:
    """Whether the guide scores entries of a latent that the model masks.

    Raises ContractError if it masks entries that the model scores.
    """
    if of_guide is None:
        return of_model is not None
    if of_model is None:
        of_model = torch.ones_like(of_guide)
    if bool((of_model & ~of_guide).any()):
        raise ContractError(
            f"{type(lvm).__name__}: the guide masks entries of latent {name!r} that the model "
            "scores; mask the same in both."
        )
    return bool((of_guide & ~of_model).any())


def _check_marginalised(
    lvm: object, name: str, mask: Tensor, model: Sites, guide: Sites
) -> None:
    """Raises ContractError if the guide's density of the unmasked entries is unknown."""
    if not _covers_whole_events(mask, model[name]):
        raise ContractError(
            f"{type(lvm).__name__}: the model masks components of latent {name!r}, and the "
            "guide does not; mask the same in both."
        )
    if family(guide[name]["fn"]) == "Delta" and name + UNCONSTRAINED not in guide:
        raise ContractError(
            f"{type(lvm).__name__}: the model masks entries of latent {name!r}, and the guide "
            "draws them together with other latents, so its density of the other entries is "
            "unknown; use AutoNormal, or sample the latent itself in the guide."
        )


def _matters(
    name: str,
    mask: Tensor,
    model: Sites,
    model_at: Callable[[Mapping[str, Tensor]], Sites],
    other: Tensor,
) -> bool:
    """Whether a log-density of the model depends on the masked entries of a latent."""
    value = model[name]["value"]
    changed = torch.where(mask, value, other.expand(value.shape))
    before = {n: site["value"] for n, site in latents_of(model).items()}
    after = model_at({**before, name: changed})
    return any(
        not _same(log_prob("model", model[n]), log_prob("model", after[n]))
        for n in after
        if n in model
    )


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.allclose(
        first, second, rtol=1e-5, atol=1e-6, equal_nan=True
    )


def _covers_whole_events(mask: Tensor, site: Any) -> bool:
    """Whether a mask keeps either all components of an event or none."""
    event = site["fn"].event_dim
    if not event:
        return True
    rows = mask.reshape(*mask.shape[: mask.dim() - event], -1)
    return bool((rows == rows[..., :1]).all())


class _ModelMasks(Messenger):
    """Applies the model's masks to the guide's latents, and to an automatic guide's draws."""

    def __init__(self, masks: Mapping[str, Tensor]):
        super().__init__()
        self.masks = masks

    def _pyro_sample(self, msg: Any) -> None:
        mask = self.masks.get(msg["name"].removesuffix(UNCONSTRAINED))
        if mask is None:
            return
        if event := msg["fn"].event_dim:
            mask = mask.flatten(mask.dim() - event)[..., 0]
        if msg["mask"] is not None:
            mask = msg["mask"] & mask
        msg["mask"] = mask


def scored_guide(lvm: Any, masked: tuple[str, ...]) -> Callable[[Any], Any]:
    """The guide, which does not score the entries of `masked` latents that the model masks."""
    if not masked:
        return lvm.guide

    def guide(batch: Any, **arguments: Any) -> Any:
        hidden = poutine.block(hide_fn=lambda msg: msg.get("type") == "sample")
        with torch.no_grad(), hidden:
            sites = sites_of(run(partial(lvm.model, **arguments), "model", batch))
        masks = _partial_masks(latents_of(sites))
        with _ModelMasks({n: mask for n, mask in masks.items() if n in masked}):
            return lvm.guide(batch, **arguments)

    return guide
