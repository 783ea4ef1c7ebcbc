"""Simulated batches with the latents that they were drawn from, where the truth is known.

(z, x) ~ p(z, x) is drawn by running the model with nothing observed. The observed sites then
become a batch that model and guide can be called with: the batch itself, if the model observes its
batch unchanged; else they replace the observed values in a given batch.

Entries that the model's mask hides are not data. In a given batch they do not change; otherwise
they come from another simulation, so that they hold no information about z. A model with a
``pyro.factor`` cannot be simulated by running it and raises NotApplicable.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_number
from vilvm._runtime.random import seeded
from vilvm.data.data import Data
from vilvm.data.tensors import tensors_of
from vilvm.lvm import (
    ContractError,
    LatentVariableModel,
    NotApplicable,
    check_contract,
    device_of,
    evaluation_mode,
    fixed_beside,
)
from vilvm.weights._conditioning import at_draw
from vilvm.weights._observed_values import (
    put_in,
    run_model_alone,
    scored_entries,
    undrawable,
    visible_latents,
)
from vilvm.weights._sites import nesting_of, own_densities
from vilvm.weights._traces import Unobserved
from vilvm.weights.layout import Layout, find_layout
from vilvm.weights.sampling import SiteDraws, draws_by_site

__all__ = [
    "Rebuild",
    "Simulation",
    "batches",
    "put_in",
    "simulate",
    "simulating",
    "simulations",
    "undrawable",
    "visible_latents",
]

Rebuild = Callable[[dict[str, Tensor]], Any]


class Simulation(NamedTuple):
    """One batch from the model.

    Arguments:
        batch: what model and guide are called with, with drawn data in it.
        latents: those that the data were drawn from, as ``posterior`` returns them, with one
            sample.
        layout: the layout of the pair on the batch.
    """

    batch: Any
    latents: dict[str, Tensor]
    layout: Layout

    @property
    def size(self) -> int:
        """The number of simulations: the data, or one if they share a latent."""
        if self.layout.local:
            return self.layout.num_data
        return 1


def simulate(
    lvm: LatentVariableModel,
    num_simulations: int,
    *,
    like: Any = None,
    rebuild: Rebuild | None = None,
    batch_size: int = 1000,
) -> list[Simulation]:
    """Draws (z, x) ~ p(z, x), in batches that model and guide can be called with.

    If every latent belongs to one datum, a simulation is one datum, and a batch holds at most
    `batch_size` of them. If the data share a latent, a simulation is a whole batch like `like`.
    The model runs in evaluation mode.

    Arguments:
        lvm: the model and guide.
        num_simulations: how many to draw; more are returned only if a batch cannot be divided,
            because its tensors share no first dimension.
        like: a batch, or ``Data``, for a model that reads more of it than its length; its observed
            values are replaced.
        rebuild: builds a batch from draws {site: value} of the model; by default, drawn data
            replace those in `like`.
        batch_size: data per batch.

    Returns:
        A list of Simulation, of `num_simulations` in all.

    Raises:
        NotApplicable: a ContractError: the model has a ``pyro.factor``, or a likelihood that
            cannot be drawn from, or reads the values that it observes (a text model whose words
            depend on earlier words).
        ContractError: the model reads its batch, and none is given; or it observes values that are
            not an unchanged part of the batch.

    Examples:
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights import simulate
        >>> tuple(len(s.batch) for s in simulate(VAE(data_dim=6, latent_dim=2), 5, batch_size=3))
        (3, 2)
    """
    check_contract(lvm)
    num_simulations = check_number("num_simulations", num_simulations)
    batch_size = check_number("batch_size", batch_size)
    if rebuild is not None and not callable(rebuild):
        raise ValueError(
            "simulate: rebuild must be a function of the observed values; got a "
            f"{type(rebuild).__name__}."
        )
    if like is not None:
        like = fixed_beside(lvm, like).x
    with evaluation_mode(lvm):
        return list(
            simulations(
                lvm,
                num_simulations,
                like=like,
                rebuild=rebuild,
                batch_size=batch_size,
            )
        )


@contextmanager
def simulating(lvm: LatentVariableModel, like: Any, seed: int) -> Iterator[Any]:
    """A context in which `lvm` is in evaluation mode and torch draws from `seed`.

    Arguments:
        lvm: the model and guide.
        like: a batch or ``Data``, or None.
        seed: of torch's generators.

    Returns:
        A context that gives the batch `like` on the device of the model, or None.

    Examples:
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights.simulation import simulating, simulations
        >>> lvm = VAE(data_dim=6, latent_dim=2)
        >>> with simulating(lvm, None, seed=0) as like:
        ...     [part.size for part in simulations(lvm, 3, like=like)]
        [3]
    """
    check_contract(lvm)
    device, batch = "cpu", None
    if like is not None:
        fixed = fixed_beside(lvm, like, seed)
        device, batch = fixed.device, fixed.x
    where = device_of(lvm, device)
    with seeded(seed, where, "simulation"), evaluation_mode(lvm):
        yield batch


@torch.no_grad()
def simulations(
    lvm: LatentVariableModel,
    number: int,
    *,
    like: Any = None,
    rebuild: Rebuild | None = None,
    batch_size: int = 1000,
) -> Iterator[Simulation]:
    """The simulations of ``simulate``, one batch at a time.

    Arguments:
        lvm: the model and guide, in evaluation mode.
        number: how many to draw.
        like: a batch on the device of the model.
        rebuild: builds a batch from draws {site: value} of the model.
        batch_size: data per batch.

    Returns:
        An iterator of Simulation.

    Raises:
        ContractError: as ``simulate``.

    Examples:
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights.simulation import simulations
        >>> [part.size for part in simulations(VAE(data_dim=6, latent_dim=2), 5, batch_size=3)]
        [3, 2]
    """
    done, layout_of = 0, _Layouts(lvm)
    for batch, sites in batches(
        lvm, min(batch_size, number), like=like, rebuild=rebuild
    ):
        layout = layout_of(batch)
        _check_simulated(lvm, sites, layout, alone=like is None)
        whole = Simulation(batch, {n: sites[n] for n in layout.latents}, layout)
        for part in _parts(whole, number - done, batch_size, layout_of):
            yield part
            done += part.size
        if done >= number:
            return


class _Layouts:
    """The layout of a batch, found once for all batches of its shapes."""

    def __init__(self, lvm: LatentVariableModel):
        self.lvm, self.known = lvm, {}

    def __call__(self, batch: Any) -> Layout:
        shapes = tuple(tensor.shape for tensor in tensors_of(batch))
        if shapes not in self.known:
            self.known[shapes] = find_layout(self.lvm, batch, any_data=True)
        return self.known[shapes]


def _parts(
    whole: Simulation, number: int, batch_size: int, layout_of: _Layouts
) -> Iterator[Simulation]:
    """At most `number` of the simulations in a batch, in parts of `batch_size` if it divides."""
    data = Data(whole.batch)
    if not (whole.layout.local and data.divisible and len(data) == whole.size):
        yield whole
        return
    stop = min(whole.size, number)
    for start in range(0, stop, batch_size):
        count = min(batch_size, stop - start)
        if count == whole.size:
            yield whole
            continue
        batch = data.subset(slice(start, start + count)).x
        axes = whole.layout.data_axes
        latents = {n: v.narrow(axes[n], start, count) for n, v in whole.latents.items()}
        yield Simulation(batch, latents, layout_of(batch))


def _check_simulated(
    lvm: object, sites: Mapping[str, Tensor], layout: Layout, alone: bool
) -> None:
    """Checks that each datum of the batch is a simulation; with `alone`, there is no `like`."""
    if alone and not layout.local:
        raise ContractError(
            f"{type(lvm).__name__} has a latent that its data share, so a simulation is a whole "
            "data set: pass like=, a data set of the size that you mean."
        )
    for name, axis in layout.data_axes.items():
        if sites[name].shape[axis] != layout.num_data:
            raise ContractError(
                f"{type(lvm).__name__}: latent {name!r} was drawn in shape "
                f"{tuple(sites[name].shape[1:])}, whose dimension {axis - 1} is not that of the "
                f"batch's {layout.num_data} data: let rebuild return a batch with one datum for "
                "each datum that is drawn."
            )


@torch.no_grad()
def batches(
    lvm: LatentVariableModel,
    rows: int,
    *,
    like: Any = None,
    rebuild: Rebuild | None = None,
) -> Iterator[tuple[Any, dict[str, Tensor]]]:
    """An endless iterator of simulated batches, each with the draws of all its sites.

    Arguments:
        lvm: the model and guide.
        rows: data per batch, if there is no `like`.
        like: a batch, for a model that reads more of it than its length.
        rebuild: builds a batch from draws {site: value} of the model.

    Returns:
        An iterator of batches, each with a dict of its sites' draws, shape (1, ...).

    Raises:
        ContractError: as ``simulate``.

    Examples:
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights.simulation import batches
        >>> batch, sites = next(batches(VAE(data_dim=6, latent_dim=2), 5))
        >>> batch.shape, sites["z"].shape
        (torch.Size([5, 6]), torch.Size([1, 5, 2]))
    """
    if like is None:
        found = _without_like(lvm, rows, rebuild)
    else:
        found = _with_like(lvm, rows, like, rebuild)
    for batch, sites in found:
        yield batch, {name: value[None] for name, value in sites.items()}


_Drawn = Iterator[tuple[Any, dict[str, Tensor]]]


def _with_like(
    lvm: LatentVariableModel, rows: int, like: Any, rebuild: Rebuild | None
) -> _Drawn:
    """Batches in which drawn data replace those of `like`."""
    number, checked = max(1, rows // len(Data(like))), False
    while True:
        draws = _draw(lvm, number, like)
        for i in range(number):
            sites = {name: site.value[i] for name, site in draws.items()}
            if rebuild is not None:
                yield rebuild(dict(sites)), sites
                continue
            batch = put_in(lvm, like, sites)
            if not checked:
                _check_same_densities(lvm, like, batch, sites)
                checked = True
            yield batch, sites


def _without_like(
    lvm: LatentVariableModel, rows: int, rebuild: Rebuild | None
) -> _Drawn:
    """Batches that are the draws of the only observed site, or the result of `rebuild`."""
    checked = False
    while True:
        draws = _draw(lvm, rows, None)
        sites = {name: site.value for name, site in draws.items()}
        if rebuild is not None:
            yield rebuild(dict(sites)), sites
            continue
        data = [name for name, site in draws.items() if site.observed]
        batch = _only_observed(lvm, sites, data, checked)
        checked = True
        yield _with_hidden_of_others(lvm, batch, data[0]), sites


def _draw(lvm: LatentVariableModel, number: int, like: Any) -> dict[str, SiteDraws]:
    try:
        return draws_by_site(lvm, number, like=like)
    except NotImplementedError:
        raise NotApplicable(
            f"{type(lvm).__name__} cannot be simulated: one of its distributions cannot be "
            "drawn from: give it a method sample."
        ) from None


def _check_same_densities(
    lvm: LatentVariableModel, like: Any, batch: Any, sites: Mapping[str, Tensor]
) -> None:
    """Raises NotApplicable if the model reads the values that it observes.

    Drawn data in the batch then change the densities that they were drawn from.
    """
    before, after = (_densities_at(lvm, x, sites) for x in (like, batch))
    for name, density in before.items():
        if not torch.allclose(
            density, after[name], rtol=1e-3, atol=1e-3, equal_nan=True
        ):
            raise NotApplicable(
                f"{type(lvm).__name__} cannot be simulated: it reads what it observes (the "
                f"density of its site {name!r} changes when drawn data replace the batch's), so "
                "one run does not draw from its joint density."
            )


def _densities_at(
    lvm: LatentVariableModel, batch: Any, values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The log-densities of the model's sites at these values."""

    def at_values(x: Any) -> Any:
        with (
            at_draw({name: value[None] for name, value in values.items()}),
            Unobserved(),
        ):
            return lvm.model(x)

    sites = run_model_alone(lvm, batch, at_values)
    given = {name: site for name, site in sites.items() if name in values}
    return own_densities("model", given, 1, nesting_of(sites))


def _with_hidden_of_others(
    lvm: LatentVariableModel, batch: Tensor, name: str
) -> Tensor:
    """The batch with its hidden entries from another simulation.

    They then hold no information about the latents of this one.
    """
    scored = scored_entries(run_model_alone(lvm, batch)[name])
    if bool(scored.all()):
        return batch
    return torch.where(
        scored.reshape(batch.shape), batch, _draw(lvm, len(batch), None)[name].value
    )


def _only_observed(
    lvm: LatentVariableModel,
    sites: Mapping[str, Tensor],
    names: list[str],
    checked: bool,
) -> Tensor:
    """The value of the one observed site; raises ContractError unless it is the whole batch."""
    if len(names) == 1:
        batch = sites[names[0]]
        if checked or _is_observed_unchanged(lvm, batch, names[0]):
            return batch
    raise ContractError(
        f"A batch of {type(lvm).__name__} is not the value of its one observed site (it has "
        f"{names}): pass like=, a batch in which drawn data take the place of its own, or "
        "rebuild=, a function that makes a batch of a dict of draws."
    )


def _is_observed_unchanged(lvm: LatentVariableModel, batch: Tensor, name: str) -> bool:
    value = run_model_alone(lvm, batch)[name]["value"]
    return value.shape == batch.shape and bool((value == batch).all())
