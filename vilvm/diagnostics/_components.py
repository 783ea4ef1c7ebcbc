"""A model's own data, beside the latents they came from: what calibration is measured on."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from vilvm._runtime.random import seeded
from vilvm.data.data import Data
from vilvm.data.tensors import tensors_of
from vilvm.lvm import ContractError, LatentVariableModel, NotApplicable, Pair, Wrapped
from vilvm.weights import Layout, Simulation, find_layout, log_weights
from vilvm.weights._conditioning import at_draw
from vilvm.weights.simulation import Rebuild, batches, undrawable, visible_latents

__all__ = [
    "LIKELIHOOD",
    "check_amortised",
    "components",
    "features",
    "names_of",
    "quantities",
    "runnable",
    "truth",
    "visible",
]

LIKELIHOOD = "log p(x | z)"
_DATA = 10  # of a batch with latents that all share, the data whose own latents are looked at


def truth(simulation: Simulation) -> Tensor:
    """The components of the latents that made the data, shape (size, K)."""
    return components(simulation.latents, simulation.layout)[0]


def visible(lvm: LatentVariableModel, simulation: Simulation) -> Tensor | None:
    """Which components have a posterior, shape (size, K), or None if all have: those that no mask
    of the model hides.
    """
    batch, latents, layout = simulation
    shown = visible_latents(lvm, batch, layout)
    if not shown:
        return None
    return (
        components(
            {n: shown[n][None] if n in shown else torch.ones_like(v) for n, v in latents.items()},
            layout,
        )[0]
        > 0
    )


def features(simulation: Simulation) -> Tensor:
    """The data of each simulation as one row of numbers, shape (size, ...); a tensor that all of
    them share is left out.
    """
    size = simulation.size
    rows = [
        t.reshape(size, -1)
        for t in tensors_of(simulation.batch)
        if size == 1 or (t.dim() and len(t) == size)
    ]
    return torch.cat([r.double() for r in rows], 1)


def check_amortised(
    what: str, lvm: LatentVariableModel, like: Any, rebuild: Rebuild | None, seed: int
) -> None:
    """Raises unless the guide can be calibrated as it is: it has spread, and looks at its batch,
    of whatever size, or is the prior.

    Raises:
        NotApplicable: the guide is not amortised; or the data share a latent, and there is no
            `like` to tell how many do.
        ContractError: the guide has no spread, or breaks the contract.
    """
    if like is not None and (still := undrawable(lvm, like)):
        raise NotApplicable(
            f"{what}: {type(lvm).__name__} cannot be simulated, for the distribution of its site "
            f"{still[0]!r} cannot be drawn from: "
            "give it a method sample."
        )
    stream = batches(lvm, 2, like=like, rebuild=rebuild)
    (first, _), (second, _) = next(stream), next(stream)
    layout = _layout_of_any_size(what, lvm, first, like, rebuild)
    if layout.degenerate:
        raise ContractError(
            f"{what}: the guide of {type(lvm).__name__} puts latent {layout.degenerate[0]!r} on "
            "one point, so it has no spread to calibrate; "
            "give it a guide with a density (vilvm.wrappers.fit_guide)."
        )
    if like is None and not layout.local:
        raise NotApplicable(
            f"{what}: {type(lvm).__name__} has a latent that its data share; pass like=a batch as "
            "large as those the guide is for."
        )
    looks = []
    for batch in (first, second):
        with seeded(seed, tensors_of(first)[0].device):
            looks.append(log_weights(lvm, batch, 10))
    alike = torch.equal(looks[0].log_guide, looks[1].log_guide)
    alike = alike and all(
        torch.equal(looks[0].latents[n], looks[1].latents[n]) for n in layout.latents
    )
    differ = any(
        not torch.equal(a, b) for a, b in zip(tensors_of(first), tensors_of(second), strict=True)
    )
    if alike and differ and looks[0].rate.abs().max() > 1e-4:
        raise NotApplicable(
            f"{what}: the guide of {type(lvm).__name__} does not look at its batch, so it can be "
            "right for one data set only, the one that "
            "it was fitted to; use vilvm.diagnostics.vsbc, which fits it anew to each."
        )


def _layout_of_any_size(
    what: str, lvm: LatentVariableModel, batch: Any, like: Any, rebuild: Rebuild | None
) -> Layout:
    """The layout on a batch like `like`, or of two data; NotApplicable if the guide has parameters
    for each datum, so knows one size only.
    """
    only = None
    try:
        layout = find_layout(lvm, batch)
        if (
            like is not None
            and layout.local
            and Data(batch).divisible
            and layout.num_data == len(Data(batch)) > 1
        ):
            only = layout.num_data
            find_layout(lvm, Data(batch).subset(slice(0, only // 2)).x)
        return layout
    except NotApplicable:  # it remembers the data that it was fitted to
        raise NotApplicable(
            f"{what}: the guide of {type(lvm).__name__} has parameters for each datum that it was "
            "fitted to and is not for other data; use "
            "vilvm.diagnostics.vsbc, which fits it anew to each data set."
        ) from None
    except ContractError:
        only = _size_of_parameters(lvm, rebuild) if like is None else only
        if only is None:
            raise
    raise NotApplicable(
        f"{what}: the guide of {type(lvm).__name__} runs on batches of {only} data and not on "
        "fewer, so it has parameters for each datum and is not for "
        "other data; use vilvm.diagnostics.vsbc, which fits it anew to each data set."
    )


def _size_of_parameters(lvm: LatentVariableModel, rebuild: Rebuild | None) -> int | None:
    """The size of batch on which a pair that fails on two data runs, among the lengths of its
    parameters; None if there is none.
    """
    parameters = lvm.parameters() if isinstance(lvm, torch.nn.Module) else ()
    lengths = {n for p in parameters if p.requires_grad for n in p.shape}
    for size in sorted(n for n in lengths if n > 2):
        with suppress(ContractError):
            find_layout(lvm, next(batches(lvm, size, rebuild=rebuild))[0])
            return size
    return None


def components(latents: Mapping[str, Tensor], layout: Layout) -> Tensor:
    """Every component of every latent, shape (S, num_data, K); (S, 1, K) if a latent is shared by
    the data.
    """
    parts = [_own(v, layout.data_axes.get(n), layout.local) for n, v in latents.items()]
    return torch.cat([v.reshape(*v.shape[:2], -1).double() for v in parts], -1)


def names_of(latents: Mapping[str, Tensor], layout: Layout) -> tuple[str, ...]:
    """What the components are called: "z" if it is a number, else "z[3]" or "z[1,2]"."""
    shapes = {
        n: _own(v, layout.data_axes.get(n), layout.local).shape[2:] for n, v in latents.items()
    }
    return tuple(
        f"{name}[{','.join(map(str, index))}]" if index else name
        for name, shape in shapes.items()
        for index in np.ndindex(*shape)
    )


def _own(value: Tensor, axis: int | None, local: bool) -> Tensor:
    """Draws (S, ..., num_data, ...) of a latent as (S, num_data, ...), the data's dimension being
    `axis`; (S, 1, ...) of all.
    """
    value = value if axis is None else value.movedim(axis, 1)
    if local:
        return value
    return (value if axis is None else value[:, :_DATA]).unsqueeze(1)


def quantities(
    lvm: LatentVariableModel, simulation: Simulation, num_draws: int
) -> tuple[Tensor, Tensor, Tensor, tuple[str, ...]]:
    """What is ranked: the components of the latents and log p(x | z), of the truth (size, K) and
    of the guide's draws (S, size, K).

    Third, which of them have a posterior, (size, K); last, their names.
    """
    batch, latents, layout = simulation
    drawn = log_weights(lvm, batch, num_draws, layout=layout)
    module = lvm if isinstance(lvm, torch.nn.Module) else Pair(lvm.model, lvm.guide)
    at_truth = log_weights(_AtTruth(module, latents), batch, 1, layout=layout)
    fits = torch.cat([_per_simulation(w.log_likelihood, layout) for w in (at_truth, drawn)])
    # To five digits: what is equal but for rounding is a tie, which the order of summation must
    # not decide.
    fits = (fits / (1e-5 * (1 + fits.abs().mean(0)))).round()
    ordered = {n: drawn.latents[n] for n in latents}
    first = torch.cat([truth(simulation), fits[0, :, None]], -1)
    shown, own = torch.ones_like(first, dtype=torch.bool), visible(lvm, simulation)
    if own is not None:
        shown[:, :-1] = own
    return (
        first,
        torch.cat([components(ordered, layout), fits[1:, :, None]], -1),
        shown,
        (*names_of(latents, layout), LIKELIHOOD),
    )


def _per_simulation(log_likelihood: Tensor, layout: Layout) -> Tensor:
    """(S, num_data); (S, 1) if a latent is shared by the data."""
    return (
        log_likelihood.double()
        if layout.local
        else log_likelihood.double().reshape(len(log_likelihood), -1).sum(1, keepdim=True)
    )


class _AtTruth(Wrapped):
    """The model whose guide puts its latents where they are given."""

    def __init__(self, lvm: Any, latents: dict[str, Tensor]):
        super().__init__(lvm)
        self._latents = latents

    def model(self, batch: Any) -> Any:
        return self.inner_model(batch)

    def guide(self, batch: Any) -> Any:
        with at_draw(self._latents, as_points=True):
            return self.inner_guide(batch)


def runnable(lvm: LatentVariableModel, batch: Any) -> LatentVariableModel:
    """The pair itself, or one like it whose likelihoods that cannot be drawn from keep what they
    observe, so that the rest of the model can be run.
    """
    still = undrawable(lvm, batch)
    return _Runnable(lvm, still) if still else lvm


class _Runnable(Wrapped):
    """The model some of whose observed sites stand still."""

    def __init__(self, lvm: Any, sites: tuple[str, ...]):
        super().__init__(lvm if isinstance(lvm, torch.nn.Module) else Pair(lvm.model, lvm.guide))
        self.sites = sites

    def model(self, batch: Any) -> Any:
        with _Still(self.sites):
            return self.inner_model(batch)

    def guide(self, batch: Any) -> Any:
        return self.inner_guide(batch)


class _Still(Messenger):
    """Replaces the likelihood of observed sites by a point mass at their value.

    Unlike ``AtValues`` it changes the distribution and not the value, so that the sites can be
    drawn from.
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
