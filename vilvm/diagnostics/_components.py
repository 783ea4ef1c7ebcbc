"""Scalar components of latents, and the quantities that calibration ranks."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from vilvm.data.tensors import tensors_of
from vilvm.lvm import LatentVariableModel, Pair, Wrapped
from vilvm.weights import Layout, Simulation, log_weights
from vilvm.weights._conditioning import at_draw
from vilvm.weights.simulation import undrawable, visible_latents

__all__ = [
    "LIKELIHOOD",
    "components",
    "features",
    "indexed",
    "names_of",
    "quantities",
    "runnable",
    "truth",
    "visible",
]

LIKELIHOOD = "log p(x | z)"
_DATA = 10  # if the data share a latent: how many data have their own latents included


def truth(simulation: Simulation) -> Tensor:
    """The components of the latents that generated the data, shape (size, K)."""
    return components(simulation.latents, simulation.layout)[0]


def visible(lvm: LatentVariableModel, simulation: Simulation) -> Tensor | None:
    """Which components no mask of the model hides, shape (size, K); None if no mask hides any."""
    batch, latents, layout = simulation
    shown = visible_latents(lvm, batch, layout)
    if not shown:
        return None
    masks = {n: torch.ones_like(v) for n, v in latents.items()}
    masks |= {n: shown[n][None] for n in latents if n in shown}
    return components(masks, layout)[0] > 0


def features(simulation: Simulation) -> Tensor:
    """The data of each simulation as one row of numbers, without tensors that all share."""
    size = simulation.size
    rows = [
        t.reshape(size, -1)
        for t in tensors_of(simulation.batch)
        if size == 1 or (t.dim() and len(t) == size)
    ]
    return torch.cat([r.double() for r in rows], 1)


def components(latents: Mapping[str, Tensor], layout: Layout) -> Tensor:
    """Every component of every latent, shape (S, num_data, K); (S, 1, K) if data share one."""
    parts = [_own(v, layout.data_axes.get(n), layout.local) for n, v in latents.items()]
    return torch.cat([v.reshape(*v.shape[:2], -1).double() for v in parts], -1)


def names_of(latents: Mapping[str, Tensor], layout: Layout) -> tuple[str, ...]:
    """Names of the components: "z" for a scalar latent, else "z[3]" or "z[1,2]"."""
    shapes = {
        n: _own(v, layout.data_axes.get(n), layout.local).shape[2:]
        for n, v in latents.items()
    }
    return tuple(
        indexed(name, index)
        for name, shape in shapes.items()
        for index in np.ndindex(*shape)
    )


def indexed(name: str, index: tuple[int, ...]) -> str:
    if not index:
        return name
    return f"{name}[{','.join(map(str, index))}]"


def _own(value: Tensor, axis: int | None, local: bool) -> Tensor:
    """Draws of a latent as (S, num_data, ...); as (S, 1, ...) if the data share a latent.

    Arguments:
        value: draws, shape (S, ..., num_data, ...).
        axis: the dimension of the data, None if the data share this latent.
        local: whether every latent belongs to one datum.
    """
    if axis is not None:
        value = value.movedim(axis, 1)
    if local:
        return value
    if axis is not None:
        value = value[:, :_DATA]
    return value.unsqueeze(1)


class Quantities(NamedTuple):
    """The quantities to rank: the components of the latents, and log p(x | z).

    Arguments:
        truth: values at the true latents, shape (size, K).
        draws: values at the guide's draws, shape (S, size, K).
        shown: which of them no mask hides, shape (size, K).
        names: the names of the K quantities.
    """

    truth: Tensor
    draws: Tensor
    shown: Tensor
    names: tuple[str, ...]


def quantities(
    lvm: LatentVariableModel, simulation: Simulation, num_draws: int
) -> Quantities:
    """The quantities to rank, at the true latents and at draws of the guide."""
    batch, latents, layout = simulation
    drawn = log_weights(lvm, batch, num_draws, layout=layout)
    at_truth = log_weights(_AtTruth(_as_module(lvm), latents), batch, 1, layout=layout)
    fits = torch.cat(
        [_per_simulation(w.log_likelihood, layout) for w in (at_truth, drawn)]
    )
    # Five digits are kept, so that values equal up to rounding are ties.
    fits = (fits / (1e-5 * (1 + fits.abs().mean(0)))).round()
    ordered = {n: drawn.latents[n] for n in latents}
    first = torch.cat([truth(simulation), fits[0, :, None]], -1)
    shown, own = torch.ones_like(first, dtype=torch.bool), visible(lvm, simulation)
    if own is not None:
        shown[:, :-1] = own
    draws = torch.cat([components(ordered, layout), fits[1:, :, None]], -1)
    return Quantities(first, draws, shown, (*names_of(latents, layout), LIKELIHOOD))


def _per_simulation(log_likelihood: Tensor, layout: Layout) -> Tensor:
    """log p(x | z), shape (S, num_data); (S, 1) if the data share a latent."""
    log_p = log_likelihood.double()
    if layout.local:
        return log_p
    return log_p.reshape(len(log_p), -1).sum(1, keepdim=True)


def _as_module(lvm: LatentVariableModel) -> torch.nn.Module:
    if isinstance(lvm, torch.nn.Module):
        return lvm
    return Pair(lvm.model, lvm.guide)


class _AtTruth(Wrapped):
    """A pair whose guide is a point mass at given latents."""

    def __init__(self, lvm: Any, latents: dict[str, Tensor]):
        super().__init__(lvm)
        self._latents = latents

    def model(self, batch: Any) -> Any:
        return self.inner_model(batch)

    def guide(self, batch: Any) -> Any:
        with at_draw(self._latents, as_points=True):
            return self.inner_guide(batch)


def runnable(lvm: LatentVariableModel, batch: Any) -> LatentVariableModel:
    """A pair that can be simulated: likelihoods without a sampler keep their observed values."""
    sites = undrawable(lvm, batch)
    if not sites:
        return lvm
    return _Runnable(lvm, sites)


class _Runnable(Wrapped):
    """A pair some of whose observed sites keep their values."""

    def __init__(self, lvm: Any, sites: tuple[str, ...]):
        super().__init__(_as_module(lvm))
        self.sites = sites

    def model(self, batch: Any) -> Any:
        with _KeepObserved(self.sites):
            return self.inner_model(batch)

    def guide(self, batch: Any) -> Any:
        return self.inner_guide(batch)


class _KeepObserved(Messenger):
    """Replaces the distributions of observed sites by points at their values.

    Unlike ``AtValues`` it changes the distribution instead of the value, so the sites can be drawn
    from.
    """

    def __init__(self, sites: tuple[str, ...]):
        super().__init__()
        self.sites = sites

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.sites and msg["is_observed"]:
            shape = msg["fn"].shape()
            msg["fn"] = dist.Delta(
                msg["value"].expand(shape), event_dim=len(msg["fn"].event_shape)
            )
