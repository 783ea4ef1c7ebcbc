"""Batches that the model itself has made, with the latents that made them: where the truth is
known.

(z, x) ~ p(z, x) is drawn by running the model with nothing observed. What is observed then becomes
a batch that model and guide can be called with: it is the batch, if the model observes its batch
as it is; or it takes the place of the observed values in a batch that is given.

Entries that the model's mask hides are no data: in a given batch they stay as they are, else they
are those of another simulation, so that nothing that looks at the batch learns more of z than the
posterior may. A model with a ``pyro.factor`` is not drawn from by running it, and is refused.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from vilvm._runtime.argument_checks import check_number
from vilvm._runtime.random import preserved_rng, seeded
from vilvm.data.data import Data
from vilvm.data.tensors import map_tensors, tensors_of
from vilvm.lvm import (
    ContractError,
    LatentVariableModel,
    NotApplicable,
    check_contract,
    device_of,
    evaluation_mode,
    fixed_beside,
    module_parameters,
)
from vilvm.weights._traces import (
    Put,
    Sites,
    Unobserved,
    family,
    mask_tensor,
    nesting_of,
    own_densities,
    run,
    sites_of,
    strip,
)
from vilvm.weights.layout import Layout, find_layout
from vilvm.weights.sampling import draws_in_place

__all__ = [
    "Rebuild",
    "Simulation",
    "batches",
    "put_in",
    "simulate",
    "simulating",
    "simulations",
    "sites_of_model",
    "undrawable",
    "visible_latents",
]

Rebuild = Callable[[dict[str, Tensor]], Any]


class Simulation(NamedTuple):
    """One batch from the model.

    Arguments:
        batch: what model and guide are called with, drawn data in it.
        latents: those that the data were drawn from, as ``posterior`` returns them, with one
            sample.
        layout: how the pair is laid out on the batch.
    """

    batch: Any
    latents: dict[str, Tensor]
    layout: Layout

    @property
    def size(self) -> int:
        """How many simulations it is: each datum is one, or all together are, if a latent is
        shared by them.
        """
        return self.layout.num_data if self.layout.local else 1


def simulate(
    lvm: LatentVariableModel,
    num_simulations: int,
    *,
    like: Any = None,
    rebuild: Rebuild | None = None,
    batch_size: int = 1000,
) -> list[Simulation]:
    """Draws (z, x) ~ p(z, x), in batches that model and guide can be called with. The model is in
    evaluation mode meanwhile.

    Where every latent belongs to one datum, a simulation is one datum, and a batch holds at most
    `batch_size` of them; where the data share a latent, a simulation is a whole batch like `like`.

    Arguments:
        lvm: the model and guide.
        num_simulations: how many to draw; more are returned only where a batch cannot be cut, for
            its tensors share no first dimension.
        like: a batch, or ``Data``, for a model that reads more of it than its length; the observed
            values in it are those that are replaced.
        rebuild: makes a batch of draws {site: value} of the model; by default, drawn data take the
            place of those in `like`.
        batch_size: data a batch.

    Raises:
        NotApplicable: a ContractError: the model has a ``pyro.factor``, a likelihood that cannot
            be drawn from, or reads what it observes (a text model whose words depend on those
            before them).
        ContractError: the model reads its batch, and none is given; or what it observes is not, as
            it is, part of the batch.

    Example:
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
    fixed = None if like is None else fixed_beside(lvm, like).x
    with evaluation_mode(lvm):
        return list(
            simulations(lvm, num_simulations, like=fixed, rebuild=rebuild, batch_size=batch_size)
        )


@contextmanager
def simulating(lvm: LatentVariableModel, like: Any, seed: int) -> Iterator[Any]:
    """A context in which `lvm` is in evaluation mode and torch draws from `seed`; gives the batch
    `like` beside the model, or None.
    """
    check_contract(lvm)
    fixed = None if like is None else fixed_beside(lvm, like, seed)
    with (
        seeded(seed, device_of(lvm, "cpu" if fixed is None else fixed.device)),
        evaluation_mode(lvm),
    ):
        yield None if fixed is None else fixed.x


@torch.no_grad()
def simulations(
    lvm: LatentVariableModel,
    number: int,
    *,
    like: Any = None,
    rebuild: Rebuild | None = None,
    batch_size: int = 1000,
) -> Iterator[Simulation]:
    """The simulations of ``simulate``, one batch at a time; `like` is where the model is."""
    done, layouts = 0, {}

    def plan_of(batch: Any) -> Layout:
        shapes = tuple(t.shape for t in tensors_of(batch))
        if shapes not in layouts:
            layouts[shapes] = find_layout(lvm, batch, any_data=True)
        return layouts[shapes]

    for batch, sites in batches(lvm, min(batch_size, number), like=like, rebuild=rebuild):
        whole = _simulation(lvm, batch, sites, plan_of(batch), alone=like is None)
        cut = whole.layout.local and Data(batch).divisible and len(Data(batch)) == whole.size
        start = 0
        while start < whole.size and done < number:
            count = min(batch_size, whole.size - start, number - done) if cut else whole.size
            yield whole if count == whole.size else _cut(whole, start, count, plan_of)
            start, done = start + count, done + count
        if done >= number:
            return


def _simulation(
    lvm: object, batch: Any, sites: Mapping[str, Tensor], layout: Layout, alone: bool
) -> Simulation:
    if alone and not layout.local:
        raise ContractError(
            f"{type(lvm).__name__} has a latent that its data share, so a simulation is a whole "
            "data set: pass like=, one of the size meant."
        )
    for name, axis in layout.data_axes.items():
        if sites[name].shape[axis] != layout.num_data:
            raise ContractError(
                f"{type(lvm).__name__}: latent {name!r} was drawn in shape "
                f"{tuple(sites[name].shape[1:])}, whose dimension {axis - 1} is not that of the "
                f"batch's {layout.num_data} data: let rebuild make a batch with one datum for "
                "each that is drawn."
            )
    return Simulation(batch, {n: sites[n] for n in layout.latents}, layout)


def _cut(
    whole: Simulation, start: int, count: int, plan_of: Callable[[Any], Layout]
) -> Simulation:
    batch = Data(whole.batch).subset(slice(start, start + count)).x
    return Simulation(
        batch,
        {n: v.narrow(whole.layout.data_axes[n], start, count) for n, v in whole.latents.items()},
        plan_of(batch),
    )


@torch.no_grad()
def batches(
    lvm: LatentVariableModel, rows: int, *, like: Any = None, rebuild: Rebuild | None = None
) -> Iterator[tuple[Any, dict[str, Tensor]]]:
    """Batches of the model's own data without end, each beside all sites, shape (1, ...); `rows`
    data each if there is no `like`.
    """
    many = 1 if like is None else max(1, rows // len(Data(like)))
    checked = False
    while True:
        with _Observed() as noted:
            draws = _drawn(lvm, rows if like is None else many, like)
        each = (
            [draws] if like is None else [{n: v[i] for n, v in draws.items()} for i in range(many)]
        )
        for sites in each:
            if rebuild is not None:
                batch = rebuild(dict(sites))
            elif like is not None:
                batch = put_in(lvm, like, sites)
                if not checked:
                    _check_as_drawn(lvm, like, batch, sites)
                    checked = True
            else:
                names = [n for n in noted.names if n in sites]
                batch = _one_observed(lvm, sites, names, checked)
                batch = _with_hidden_of_others(lvm, batch, names[0])
                checked = True
            yield batch, {n: v[None] for n, v in sites.items()}


def _drawn(lvm: LatentVariableModel, number: int, like: Any) -> dict[str, Tensor]:
    try:
        return {n: v for n, (v, _) in draws_in_place(lvm, number, like=like).items()}
    except NotImplementedError:
        raise NotApplicable(
            f"{type(lvm).__name__} cannot be simulated, for one of its distributions cannot be "
            "drawn from: give it a method sample."
        ) from None


def _check_as_drawn(
    lvm: LatentVariableModel, like: Any, batch: Any, sites: Mapping[str, Tensor]
) -> None:
    """Raises NotApplicable where the model reads what it observes, so that drawn data in a batch
    change the densities that they were drawn from.
    """
    given, found = {n: v[None] for n, v in sites.items()}, []

    def half(x: Any) -> Any:
        with Put(given, None, None), Unobserved():
            return lvm.model(x)

    for x in (like, batch):
        with (
            torch.no_grad(),
            module_parameters(lvm),
            evaluation_mode(lvm),
            preserved_rng(Data(like).device),
        ):
            ran = sites_of(run(half, "model", x))
        found.append(
            own_densities(
                "model", {n: s for n, s in ran.items() if n in given}, 1, nesting_of(ran)
            )
        )
    for name, before in found[0].items():
        if not torch.allclose(before, found[1][name], rtol=1e-3, atol=1e-3, equal_nan=True):
            raise NotApplicable(
                f"{type(lvm).__name__} cannot be simulated: it reads what it observes (the "
                f"density of its site {name!r} changes when drawn data take the "
                "place of the batch's), so that one run does not draw from it."
            )


def _with_hidden_of_others(lvm: LatentVariableModel, batch: Tensor, name: str) -> Tensor:
    """The batch whose hidden entries are those of another simulation, so that they say nothing of
    the latents that made it.
    """
    seen = _scored(_run_model(lvm, batch)[name])
    if bool(seen.all()):
        return batch
    return torch.where(seen.reshape(batch.shape), batch, _drawn(lvm, len(batch), None)[name])


def _one_observed(
    lvm: LatentVariableModel, sites: Mapping[str, Tensor], observed: list[str], checked: bool
) -> Tensor:
    """The value of the one observed site, if the model that is called with it observes it as it
    is.
    """
    batch = sites[observed[0]] if len(observed) == 1 else None
    if batch is not None and not checked:
        seen = _run_model(lvm, batch)[observed[0]]["value"]
        batch = batch if seen.shape == batch.shape and bool((seen == batch).all()) else None
    if batch is None:
        raise ContractError(
            f"A batch of {type(lvm).__name__} is not the value of its one observed site (it has "
            f"{observed}): pass like=, a batch in which drawn data "
            "take the place of its own, or rebuild=, a function that makes a batch of a dict of "
            "draws."
        )
    return batch


class _Observed(Messenger):
    """Notes which sites of a simulated model are its data."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, None] = {}  # in their order

    def _pyro_sample(self, msg: Any) -> None:
        if msg["infer"].get("was_observed"):
            self.names[msg["name"]] = None


def undrawable(lvm: LatentVariableModel, batch: Any) -> tuple[str, ...]:
    """The observed sites whose likelihood cannot be drawn from, in the model's order."""

    def fails(fn: Any) -> bool:
        try:
            fn.sample()
        except Exception:  # a user's distribution without sample may raise anything
            return True
        return False

    with torch.no_grad(), preserved_rng(Data(batch).device):
        return tuple(
            n
            for n, s in sites_of_model(lvm, batch).items()
            if s["is_observed"] and family(s["fn"]) != "Unit" and fails(s["fn"])
        )


def visible_latents(lvm: LatentVariableModel, batch: Any, layout: Layout) -> dict[str, Tensor]:
    """Which entries of a latent the model's mask leaves in the joint density, by latent of which
    it hides some.

    What ``poutine.mask`` or ``.mask`` hides of a latent has no prior, so there is no posterior of
    it to be near.

    Returns:
        Booleans, shape (*plates, *event) of a draw of the latent, as ``posterior`` returns them
        but for the samples.
    """
    sites, found = sites_of_model(lvm, batch), {}
    for name in layout.latents:
        seen = _scored(sites[name])
        if not bool(seen.all()):
            found[name] = strip(seen, sites[name], 1, layout.nesting)[0]
    return found


def _scored(site: Any) -> Tensor:
    """Which entries of a site's value its log-density depends on: those that no mask hides;
    Booleans of the value's shape.
    """
    shape, mask = (
        torch.broadcast_shapes(site["value"].shape, site["fn"].shape()),
        mask_tensor(site),
    )
    return (
        torch.ones(shape, dtype=torch.bool, device=site["value"].device)
        if mask is None
        else mask.bool().expand(shape)
    )


def _run_model(lvm: LatentVariableModel, batch: Any) -> Sites:
    with (
        torch.no_grad(),
        module_parameters(lvm),
        evaluation_mode(lvm),
        preserved_rng(Data(batch).device),
    ):
        return sites_of(run(lvm.model, "model", batch))


def sites_of_model(lvm: LatentVariableModel, batch: Any) -> Sites:
    """The sites of the model, at one draw of the guide."""
    with (
        torch.no_grad(),
        module_parameters(lvm),
        evaluation_mode(lvm),
        preserved_rng(Data(batch).device),
    ):
        return sites_of(run(lvm.model, "model", batch, run(lvm.guide, "guide", batch)))


def put_in(lvm: LatentVariableModel, batch: Any, values: Mapping[str, Tensor]) -> Any:
    """`batch` with other values of the observed sites, each put where the model finds its own;
    what a mask hides stays as it is.

    What a site observes may be a tensor of the batch or a view of one: a column of it, or its
    transpose.

    Arguments:
        lvm: the model and guide; the guide is not run.
        batch: what the model is called with.
        values: by observed site, each of the shape that it has in the batch, but for dimensions of
            size one; others are left alone.

    Raises:
        ContractError: what a site observes is not one of the batch's tensors, nor a view of one;
            or a value is of another shape.
    """
    sites, tensors = _run_model(lvm, batch), tensors_of(batch)
    new = list(tensors)
    for name in [n for n, s in sites.items() if s["is_observed"] and n in values]:
        old, seen = sites[name]["value"], _scored(sites[name]).flatten()
        if [n for n in values[name].shape if n > 1] != [n for n in old.shape if n > 1]:
            raise ContractError(
                f"Site {name!r} observes a tensor of shape {tuple(old.shape)} and draws one of "
                f"shape {tuple(values[name].shape)}, which cannot be put in "
                "its place: give each of its plates data of its own."
            )
        places = [
            (i, at.flatten())
            for i, tensor in enumerate(tensors)
            if (at := _places(old, tensor)) is not None
        ]
        if len(places) != 1:
            shapes = [tuple(t.shape) for t in tensors]
            raise ContractError(
                f"Site {name!r} observes a tensor of shape {tuple(old.shape)}, which is not, as "
                f"it is, one of the batch's, {shapes}, or a part of one, so "
                "drawn data cannot be put in its place: pass it in the batch and observe it "
                "unchanged."
            )
        ((i, at),) = places
        value = values[name].to(old.dtype).flatten()
        flat = new[i].flatten().index_put((at[seen],), value[seen])
        new[i] = flat.reshape(tensors[i].shape)
    put = iter(new)
    return map_tensors(lambda _: next(put), batch)


def _places(part: Tensor, whole: Tensor) -> Tensor | None:
    """Where the entries of `part` stand among those of `whole`, flat, in the shape of `part`; None
    unless it is `whole` or a view of some of it.
    """
    storage = whole.untyped_storage()
    if part.dtype != whole.dtype or part.untyped_storage().data_ptr() != storage.data_ptr():
        return None
    places = torch.full((storage.nbytes() // whole.element_size(),), -1, device=whole.device)
    if whole.numel():
        places.as_strided(whole.shape, whole.stride(), whole.storage_offset()).copy_(
            torch.arange(whole.numel(), device=whole.device).reshape(whole.shape)
        )
    found = places.as_strided(part.shape, part.stride(), part.storage_offset())
    return found if bool((found >= 0).all()) and len(found.unique()) == found.numel() else None
