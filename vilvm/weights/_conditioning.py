"""A run of a model or guide at given values of its sites.

Some transforms have no inverse (Pyro's planar, radial and block autoregressive flows). Their
distribution can score only a value that it has just computed. Such a site is set by its draw
before the transforms, under its name with the suffix ``BEFORE``.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from vilvm.lvm import ContractError
from vilvm.weights._sites import Sites, from_own_dims, is_random, plain, to_own_dims

__all__ = [
    "BEFORE",
    "AtValues",
    "at_draw",
    "at_samples",
    "can_score",
    "drawn_values",
]

BEFORE = " before its transforms"
# by type of transform, whether it can be inverted at values that it has not just computed
_invertible: dict[type, bool] = {}


class AtValues(Messenger):
    """Sets sites to given values; observed sites keep theirs.

    Arguments:
        values: by site.
        to_site_shape: called with a given value and the message; returns the value in the shape of
            the site.
        as_points: whether the site's distribution becomes a point mass at the value.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        to_site_shape: Callable[[Tensor, Any], Tensor],
        *,
        as_points: bool = False,
    ):
        super().__init__()
        self.values, self.to_site_shape = values, to_site_shape
        self.as_points = as_points

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or (msg["is_observed"] and msg["value"] is not None):
            return
        if msg["name"] in self.values:
            value = self.to_site_shape(self.values[msg["name"]], msg)
        elif msg["name"] + BEFORE in self.values:
            value = self.to_site_shape(self.values[msg["name"] + BEFORE], msg)
            for transform in plain(msg["fn"]).transforms:
                value = transform(value)
        else:
            return
        msg["value"], msg["done"] = value, True
        if self.as_points:
            msg["fn"] = dist.Delta(value, event_dim=msg["fn"].event_dim)


def at_samples(
    values: Mapping[str, Tensor], num_samples: int | None, nesting: int
) -> AtValues:
    """Sets sites to the values of Monte Carlo samples.

    Arguments:
        values: by site, shape (num_samples, *own dimensions, *event), as ``to_own_dims`` returns.
        num_samples: size of the plate over samples; None for a single-sample run.
        nesting: dimensions that the plates take.
    """
    if num_samples is None:
        return AtValues(values, lambda value, msg: _in_single_run(value, msg, nesting))
    return AtValues(values, lambda value, msg: _in_sample_plate(value, msg, nesting))


def at_draw(values: Mapping[str, Tensor], *, as_points: bool = False) -> AtValues:
    """Sets sites to one draw, shape (1, *own dimensions, *event), before a layout is known."""
    return AtValues(
        values, lambda value, msg: _in_single_run(value, msg), as_points=as_points
    )


def _in_sample_plate(value: Tensor, msg: Any, nesting: int) -> Tensor:
    placed, shape = from_own_dims(value, msg, nesting), msg["fn"].shape()
    _check_draw(value, msg, shape[len(shape) - placed.dim() + 1 :])
    return placed


def _in_single_run(value: Tensor, msg: Any, nesting: int | None = None) -> Tensor:
    shape = tuple(msg["fn"].shape())
    if nesting is not None:
        # dimensions left of the plates are those of enumerated latents
        shape = shape[max(len(shape) - nesting - msg["fn"].event_dim, 0) :]
    _check_draw(value, msg, shape)
    return value[0].reshape(shape)


def _check_draw(value: Tensor, msg: Any, shape: tuple[int, ...]) -> None:
    wanted = tuple(size for size in shape if size > 1)
    if tuple(size for size in value.shape[1:] if size > 1) != wanted:
        raise ContractError(
            f"Latent {msg['name']!r} was given draws of shape {tuple(value.shape[1:])}, and its "
            f"draws in the model have shape {wanted}; give draws of that shape."
        )


# The values that reproduce a run
# --------------------------------------------------------------------------------------------


def drawn_values(sites: Sites, num_samples: int, nesting: int) -> dict[str, Tensor]:
    """The values that reproduce a run, as ``at_samples`` takes them.

    Point masses, factors and observed values are left out, since they follow from the rest.
    """
    values = {}
    for name, site in sites.items():
        if not is_random(site):
            continue
        before = _before_transforms(site)
        if before is None:
            values[name] = to_own_dims(site["value"], site, num_samples, nesting)
        else:
            values[name + BEFORE] = to_own_dims(before, site, num_samples, nesting)
    return values


def can_score(site: Any) -> bool:
    """Whether the distribution of a site that was just drawn can score any value."""
    return _before_transforms(site) is None


def _before_transforms(site: Any) -> Tensor | None:
    """A site's draw before its transforms; None if these can be inverted at any value."""
    fn, value = plain(site["fn"]), site["value"]
    if not isinstance(fn, torch.distributions.TransformedDistribution):
        return None
    transforms = _flat(fn.transforms)
    with torch.no_grad():
        for transform in reversed(transforms):
            if type(transform) not in _invertible:
                _invertible[type(transform)] = _is_invertible(transform, value)
            value = transform.inv(value)
    if all(_invertible[type(transform)] for transform in transforms):
        return None
    return value


def _flat(transforms: list[Any]) -> list[Any]:
    """The transforms in order, with compositions expanded."""
    flat = []
    for transform in transforms:
        if isinstance(transform, torch.distributions.ComposeTransform):
            flat += _flat(transform.parts)
        else:
            flat.append(transform)
    return flat


def _is_invertible(transform: Any, value: Tensor) -> bool:
    if type(transform).__module__.startswith("torch."):
        return True
    try:
        transform._inverse(value.clone())
    except (KeyError, NotImplementedError):
        return False
    return True
