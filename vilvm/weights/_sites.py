"""Sample sites of a trace: their distributions, masks, plates and log-densities."""

import hashlib
from contextlib import suppress
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from vilvm._runtime.memory import is_out_of_memory
from vilvm.lvm import ContractError
from vilvm.weights._errors import short_message

__all__ = [
    "UNCONSTRAINED",
    "FirstEnumerated",
    "Sites",
    "deterministic_of",
    "family",
    "from_own_dims",
    "has_deltas",
    "is_random",
    "latents_of",
    "log_prob",
    "mask_digest",
    "mask_tensor",
    "nesting_of",
    "observed_of",
    "own_densities",
    "own_dims",
    "own_values",
    "plain",
    "plate_dims",
    "sites_of",
    "subsamples_of",
    "to_own_dims",
    "was_observed",
]

Sites = dict[str, Any]

UNCONSTRAINED = "_unconstrained"  # suffix of a latent's draw in Pyro's autoguides


def sites_of(trace: Any) -> Sites:
    """The sample sites of a trace, without plates' subsamples and ``pyro.deterministic``."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not site_is_subsample(site)
        and not site["infer"].get("_deterministic")
    }


def deterministic_of(trace: Any) -> Sites:
    """The ``pyro.deterministic`` sites of a trace."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and site["infer"].get("_deterministic")
    }


def observed_of(sites: Sites) -> Sites:
    """The observed sites, factors among them."""
    return {name: site for name, site in sites.items() if site["is_observed"]}


def subsamples_of(trace: Any) -> Sites:
    """The sites of the plates' indices."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and site_is_subsample(site)
    }


def is_random(site: Any) -> bool:
    """Whether a site is drawn: neither observed, nor at a point, nor a factor."""
    return not site["is_observed"] and family(site["fn"]) not in ("Delta", "Unit")


def has_deltas(trace: Any) -> bool:
    """Whether a site's value follows from others, as that of ``pyro.deterministic`` does."""
    return any(
        site["type"] == "sample" and family(site["fn"]) == "Delta"
        for site in trace.nodes.values()
    )


def latents_of(sites: Sites) -> Sites:
    """The sites that are not observed."""
    return {name: site for name, site in sites.items() if not site["is_observed"]}


def was_observed(site: Any) -> bool:
    """Whether a site of an unconditioned model is observed in the model itself."""
    return bool(site["infer"].get("was_observed"))


# Distributions and masks
# --------------------------------------------------------------------------------------------


class FirstEnumerated(dist.TorchDistribution):
    """A distribution at the first index of every dimension left of the plates."""

    def __init__(self, base: Any, nesting: int):
        self.base_dist, self.nesting = base, nesting
        left = max(len(base.batch_shape) - nesting, 0)
        super().__init__(base.batch_shape[left:], base.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.base_dist.support

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        return self.base_dist.has_enumerate_support

    def log_prob(self, value: Tensor) -> Tensor:
        density = self.base_dist.log_prob(value)
        return density[(0,) * max(density.dim() - self.nesting, 0)]


_WRAPPERS = (
    torch.distributions.Independent,
    dist.ExpandedDistribution,
    dist.MaskedDistribution,
    FirstEnumerated,
)


def family(fn: Any) -> str:
    """The name of a distribution, without ``to_event``, ``mask`` and ``expand``."""
    return type(plain(fn)).__name__


def plain(fn: Any) -> Any:
    """A distribution without the wrappers of ``to_event``, ``mask`` and ``expand``."""
    while isinstance(fn, _WRAPPERS):
        fn = fn.base_dist
    return fn


def mask_digest(site: Any) -> str:
    """A digest of the entries that masks hide from a site's log-density; empty if none."""
    masks = [mask.cpu() for mask in _masks(site)]
    partial = [
        mask.contiguous().numpy().tobytes() for mask in masks if not bool(mask.all())
    ]
    if not partial:
        return ""
    return hashlib.sha256(b"".join(partial)).hexdigest()[:8]


def mask_tensor(site: Any) -> Tensor | None:
    """The entries of a site's value that its log-density scores, broadcastable to the value.

    None if no mask is set.
    """
    masks = _masks(site)
    if not masks:
        return None
    mask = masks[0]
    for other in masks[1:]:
        mask = mask & other
    return mask


def _masks(site: Any) -> list[Tensor]:
    """The masks of a site, each with one dimension for every event dimension that it covers."""
    fn: Any = site["fn"]
    device = site["value"].device
    found = [(site["mask"], fn.event_dim)]
    while isinstance(fn, _WRAPPERS):
        found.append((getattr(fn, "_mask", None), len(fn.event_shape)))
        fn = fn.base_dist
    masks = [
        (torch.as_tensor(m, device=device), event)
        for m, event in found
        if m is not None
    ]
    return [mask.reshape(mask.shape + (1,) * event) for mask, event in masks]


# Log-densities
# --------------------------------------------------------------------------------------------


def log_prob(part: str, site: Any) -> Tensor:
    """The log-density of a site of the model or the guide, masked but not scaled."""
    try:
        value = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    except KeyError as error:
        if "intermediates cache" not in str(error):
            raise
        raise ContractError(
            f"The {part}'s site {site['name']!r} has a transform without an inverse, so a given "
            "value has no density: use a transform with an inverse (spline, affine_coupling, "
            "affine_autoregressive)."
        ) from None
    except (ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise ContractError(
            f"The {part}'s site {site['name']!r} cannot score its value of shape "
            f"{tuple(site['value'].shape)}: {short_message(error)} "
            f"{_support_advice(site)}"
        ) from None
    return scale_and_mask(value, mask=site["mask"])


def _support_advice(site: Any) -> str:
    """What to do about a value that a distribution cannot score."""
    family_of_site = family(site["fn"])
    if "Bernoulli" in family_of_site:
        return (
            "A Bernoulli needs 0 or 1: binarise the data, or give real numbers a likelihood of "
            'theirs, such as likelihood="gaussian".'
        )
    if getattr(site["fn"].support, "is_discrete", False):
        return (
            "It needs counts, whole numbers from 0: pass them raw, without logarithms."
        )
    return "Check the value's shape and that it lies in the distribution's support."


def own_densities(
    part: str, sites: Sites, num_samples: int, nesting: int
) -> dict[str, Tensor]:
    """The log-density of every site at its value, shape (S, *its own dimensions).

    Sites whose distribution has no density are left out.
    """
    found = {}
    for name, site in sites.items():
        with suppress(NotImplementedError):
            density = log_prob(part, site)
            found[name] = _drop_other_dims(
                density, own_dims(site), 0, num_samples, nesting
            )
    return found


# Dimensions
# --------------------------------------------------------------------------------------------


def plate_dims(site: Any) -> set[int]:
    """The dimensions of the plates around a site."""
    return {frame.dim for frame in site["cond_indep_stack"] if frame.vectorized}


def own_dims(site: Any) -> set[int]:
    """A site's own batch dimensions: those of its plates, and undeclared ones larger than one."""
    shape = site["fn"].batch_shape
    return plate_dims(site) | {dim for dim in range(-len(shape), 0) if shape[dim] > 1}


def nesting_of(*parts: Sites) -> int:
    """The number of dimensions that the plates and batch shapes of these sites take."""
    taken = [0]
    for site in (site for sites in parts for site in sites.values()):
        taken += [-dim for dim in plate_dims(site)]
        taken.append(len(site["fn"].batch_shape))
    return max(taken)


def to_own_dims(value: Tensor, site: Any, num_samples: int, nesting: int) -> Tensor:
    """A site's value in shape (S, *own dimensions, *event), without other plates' dimensions."""
    return _drop_other_dims(
        value, own_dims(site), site["fn"].event_dim, num_samples, nesting
    )


def own_values(sites: Sites, num_samples: int, nesting: int) -> dict[str, Tensor]:
    """The value of every site, shape (S, *its own dimensions, *event)."""
    return {
        name: to_own_dims(site["value"], site, num_samples, nesting)
        for name, site in sites.items()
    }


def from_own_dims(value: Tensor, site: Any, nesting: int) -> Tensor:
    """The inverse of ``to_own_dims``: other plates' dimensions return with size one."""
    own = own_dims(site)
    for dim in range(-nesting, 0):
        if dim not in own:
            value = value.unsqueeze(nesting + 1 + dim)
    return value


def _drop_other_dims(
    value: Tensor, own: set[int], event: int, num_samples: int, nesting: int
) -> Tensor:
    value = value.reshape((1,) * (nesting + 1 + event - value.dim()) + value.shape)
    value = value.expand(num_samples, *value.shape[1:])
    # from the left, so that dimensions counted from the right keep their index
    for dim in range(-nesting, 0):
        if dim not in own:
            value = value.squeeze(dim - event)
    return value
