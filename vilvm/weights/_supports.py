"""Where model and guide have a density: points, changes of variables, masked latents.

log p(x, z) − log q(z | x) is a log-weight only if both are densities of the same latents. Three
things may stand against it.

- A guide may put a latent on a point (a Delta), where it has no density. It has one if the point
  is a one-to-one function of draws that are marked auxiliary, as in an automatic guide, whose
  Delta then carries the Jacobian.
- A guide may draw more than it hands on: an auxiliary variable a with z ~ q(z | a). Then q(z) = ∫
  q(z | a) q(a) da is not known.
- The model may mask entries of a latent: their prior is not scored. If no other density depends on
  them they are marginalised, and the guide's density of them is to be left out, too (``Alike``).
  If one does, their prior is flat, and there is no evidence.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to

from vilvm.lvm import ContractError
from vilvm.weights._traces import Sites, family, log_prob, mask_tensor, run, sites_of

__all__ = [
    "Alike",
    "degenerate_latents",
    "guide_sites",
    "masked_latents",
    "model_masks",
    "scored_guide",
]

_UNCONSTRAINED = "_unconstrained"  # how Pyro's automatic guides name the draw of one latent


def guide_sites(trace: Any) -> Sites:
    """The sites that a guide draws, and its factors; what else it observes (an automatic guide may
    replay the data) is not its own.
    """
    return {
        n: s
        for n, s in sites_of(trace).items()
        if not s["is_observed"] or family(s["fn"]) == "Unit"
    }


def degenerate_latents(
    lvm: object, latents: Sites, guide: Sites, again: Callable[[], Sites]
) -> tuple[str, ...]:
    """Continuous latents on which the guide has no density.

    Arguments:
        lvm: named in the error.
        latents: of the model.
        guide: the sites of a run of the guide.
        again: runs the guide once more, with other draws.

    Raises:
        ContractError: the guide has an auxiliary draw of which the latents are not a one-to-one
            function.
    """
    points = [n for n in latents if n in guide and _is_point(latents[n], guide[n])]
    auxiliary = {
        n: s
        for n, s in guide.items()
        if n not in latents and family(s["fn"]) not in ("Delta", "Unit")
    }
    if not auxiliary:
        return tuple(points)
    other = again()
    still = [n for n in points if torch.equal(guide[n]["value"], other[n]["value"])]
    moving = [n for n in points if n not in still]
    drawn = sum(_dimensions(s["fn"], s["value"]) for s in auxiliary.values())
    made = sum(_dimensions(latents[n]["fn"], guide[n]["value"]) for n in moving)
    if drawn > made:
        name = next(iter(auxiliary))
        raise ContractError(
            f"{type(lvm).__name__}: the guide draws the auxiliary {name!r}, and its latents are "
            "not a one-to-one function of it, so the "
            "density q(z | x) is not known. Sum over it (dist.MixtureSameFamily), or make the "
            "latents of it by a Delta that carries the "
            "Jacobian (log_density=...)."
        )
    return tuple(still if drawn == made else points)


def _is_point(latent: Any, site: Any) -> bool:
    discrete = getattr(latent["fn"].support, "is_discrete", False)
    return family(site["fn"]) == "Delta" and family(latent["fn"]) != "Delta" and not discrete


def _dimensions(fn: Any, value: Tensor) -> int:
    """How many real numbers a value stands for: a vector of K probabilities for K − 1."""
    try:
        return int(torch.Size(biject_to(fn.support).inverse_shape(value.shape)).numel())
    except NotImplementedError:
        return value.numel()


def model_masks(model: Sites) -> dict[str, Tensor]:
    """Which entries of its latents a model scores, for those of which it masks some; broadcastable
    to the value.
    """
    masks = {n: mask_tensor(s) for n, s in model.items() if not s["is_observed"]}
    return {n: m for n, m in masks.items() if m is not None and not bool(m.all())}


def masked_latents(
    lvm: object,
    model: Sites,
    guide: Sites,
    density: Callable[[Mapping[str, Tensor]], Sites],
    again: Callable[[], Sites],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Latents of which the model masks entries that the guide scores, and those whose masked
    entries matter to another density.

    Arguments:
        lvm: named in the error.
        model, guide: the sites of a run of the pair.
        density: runs the model at given latents.
        again: runs the guide once more, with other draws.

    Raises:
        ContractError: the guide leaves out entries that the model scores; or it draws masked
            latents together with others.
    """
    masks, unlike = {n: m for n, m in model_masks(model).items() if n in guide}, []
    guides = {
        n: m
        for n, s in guide.items()
        if n in model and (m := mask_tensor(s)) is not None and not bool(m.all())
    }
    for name in [n for n in model if n in masks or n in guides]:
        own, mask = guides.get(name), masks.get(name)
        own = torch.ones_like(mask) if own is None and mask is not None else own
        mask = torch.ones_like(own) if mask is None and own is not None else mask
        if own is None or mask is None:
            continue
        if bool((mask & ~own).any()):
            raise ContractError(
                f"{type(lvm).__name__}: the guide masks entries of latent {name!r} that the model "
                "scores; mask the same in both."
            )
        if bool((own & ~mask).any()):
            unlike.append(name)
    others = again() if masks else {}
    flat = [n for n, m in masks.items() if _matters(n, m, model, density, others[n]["value"])]
    for name in [n for n in unlike if n not in flat]:
        if not _is_of_whole_events(masks[name], model[name]):
            raise ContractError(
                f"{type(lvm).__name__}: the model masks components of latent {name!r}, and the "
                "guide does not; mask the same in both."
            )
        if family(guide[name]["fn"]) == "Delta" and name + _UNCONSTRAINED not in guide:
            raise ContractError(
                f"{type(lvm).__name__}: the model masks entries of latent {name!r}, and the guide "
                "draws them together with other latents, so that "
                "its density of the rest is not known; use AutoNormal, or sample the latent "
                "itself in the guide."
            )
    return tuple(n for n in unlike if n not in flat), tuple(flat)


def _matters(
    name: str,
    mask: Tensor,
    model: Sites,
    density: Callable[[Mapping[str, Tensor]], Sites],
    other: Tensor,
) -> bool:
    """Whether a log-density changes with the masked entries of a latent."""
    value = model[name]["value"]
    changed = torch.where(mask, value, other.expand(value.shape))
    before = {n: s["value"] for n, s in model.items() if not s["is_observed"]}
    after = density({**before, name: changed})
    return any(
        not _same(log_prob("model", model[n]), log_prob("model", s))
        for n, s in after.items()
        if n in model
    )


def _is_of_whole_events(mask: Tensor, site: Any) -> bool:
    """Whether a mask takes all components of an event or none."""
    event = site["fn"].event_dim
    rows = mask.reshape(*mask.shape[: mask.dim() - event], -1) if event else mask[..., None]
    return bool((rows == rows[..., :1]).all())


def _of_events(mask: Tensor, event_dim: int) -> Tensor:
    """A mask of whole events, broadcastable to the batch shape."""
    return mask.flatten(mask.dim() - event_dim)[..., 0] if event_dim else mask


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.allclose(
        first, second, rtol=1e-5, atol=1e-6, equal_nan=True
    )


class Alike(Messenger):
    """Masks the latents of a guide, and an automatic guide's own draw of each, as the model masks
    them.
    """

    def __init__(self, masks: Mapping[str, Tensor]):
        super().__init__()
        self.masks = masks

    def _pyro_sample(self, msg: Any) -> None:
        mask = self.masks.get(msg["name"].removesuffix(_UNCONSTRAINED))
        if mask is not None:
            mask = _of_events(mask, msg["fn"].event_dim)
            msg["mask"] = mask if msg["mask"] is None else msg["mask"] & mask


def scored_guide(lvm: Any, masked: tuple[str, ...]) -> Callable[[Any], Any]:
    """The guide, which leaves out of its density what the model masks of the latents in `masked`."""
    if not masked:
        return lvm.guide

    def guide(batch: Any, **arguments: Any) -> Any:
        with torch.no_grad(), _unheard():
            sites = sites_of(run(partial(lvm.model, **arguments), "model", batch))
        with Alike({n: m for n, m in model_masks(sites).items() if n in masked}):
            return lvm.guide(batch, **arguments)

    return guide


@contextmanager
def _unheard() -> Iterator[None]:
    """A run within it is not part of any trace around it."""
    with poutine.block(hide_fn=lambda msg: msg.get("type") == "sample"):
        yield
