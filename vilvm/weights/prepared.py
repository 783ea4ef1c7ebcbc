"""Data prepared for a pair, once for every bound and diagnostic.

``prepare`` moves the data to the model's device, draws their transform, cuts them into batches and
finds the layout of the first. Each function that evaluates a pair prepares its data in this way,
unless it receives the result in place of (lvm, data):

    prepared = prepare(lvm, data)
    evaluate(prepared), pareto_k(prepared), ais(prepared)

Preparation runs the pair, so it draws random numbers. A ``Prepared`` keeps the state of the
generators after preparation, and each function starts from it. So the numbers do not depend on who
prepared the data, nor on what ran before.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_seed, optional
from vilvm._runtime.memory import bytes_made, free_bytes
from vilvm._runtime.random import preserved_rng, rng_state, seeded, set_rng_state
from vilvm.data.data import Data
from vilvm.data.tensors import tensors_of
from vilvm.lvm import (
    ContractError,
    LatentVariableModel,
    check_contract,
    data_beside,
    evaluation_mode,
    fixed_beside,
)
from vilvm.weights._per_datum import by_position, restart, unset_autoguides
from vilvm.weights._vectorisation import Vectorisation
from vilvm.weights.layout import Layout, find_layout
from vilvm.weights.log_weights import sample_pass

__all__ = [
    "Part",
    "Prepared",
    "pair_and_data",
    "prepare",
    "prepared_of",
    "require_weights",
    "rows_in_a_pass",
]

_BATCH = 50
# rows through the decoder in a pass: enough to amortise Pyro, few enough for the cache
_ROWS_CPU, _ROWS_CUDA = 8_000, 400_000


@dataclass(frozen=True, eq=False)
class Part:
    """One batch of the data with its layout.

    Arguments:
        lvm: the model and guide.
        batch: the argument of model and guide.
        layout: the layout of this batch.
        start: index of its first datum in the prepared data.

    Examples:
        >>> import torch
        >>> from vilvm import prepare
        >>> from vilvm.models.vae import VAE
        >>> prepared = prepare(VAE(data_dim=6, latent_dim=2), torch.zeros(9, 6), batch_size=5)
        >>> with prepared.running():
        ...     prepared.part(1).index
        tensor([5, 6, 7, 8])
    """

    lvm: LatentVariableModel
    batch: Any
    layout: Layout
    start: int = 0

    @property
    def num_columns(self) -> int:
        """Weights per sample: one per datum, or one for all data together."""
        return self.layout.num_data if self.layout.local else 1

    @property
    def index(self) -> Tensor:
        """The index of each column's datum in the prepared data, shape (num_columns,)."""
        if not self.layout.local:
            return torch.arange(1)
        drawn = self.layout.subsample.get(self.layout.data_plate or "")
        here = (
            torch.arange(self.layout.num_data)
            if drawn is None
            else drawn["value"].cpu()
        )
        return self.start + here

    def samples_in_a_pass(self) -> int:
        """Draws of every datum that keep the device busy, or fewer if its memory is short."""
        device = tensors_of(self.batch)[0].device
        busy = rows_in_a_pass(device) // max(self.layout.num_data, 1)
        return max(1, min(busy, self.samples_that_fit()))

    def samples_that_fit(self) -> int:
        """Draws of every datum that fit into half of the free memory, all intermediates kept."""
        return (
            free_bytes(tensors_of(self.batch)[0].device) // 2 // self._bytes_per_sample
        )

    @cached_property
    def _bytes_per_sample(self) -> int:
        device = tensors_of(self.batch)[0].device
        with torch.no_grad(), preserved_rng(device), evaluation_mode(self.lvm):
            return max(
                1, bytes_made(lambda: sample_pass(self.lvm, self.batch, self.layout))
            )


@dataclass(frozen=True, eq=False)
class Prepared:
    """A pair and its data, ready to be evaluated; made by ``prepare``.

    Arguments:
        lvm: the model and guide.
        data: the data after their transform, on the model's device.
        batches: the data in batches; a single one if they share a latent, or if the guide needs
            all of them at once.
        layout: the layout of the first batch.
        device: where the data are.
        seed: seed of the transform, the preparation, and the draws of functions that receive this.
        size: data per batch; the last batch may be smaller.
        batch_size: `size` as the user gave it; None if each function may choose another.
        protocol: data set, split, number of data and transform.
        generators: states of torch's generators after the preparation.

    Examples:
        >>> import torch
        >>> from vilvm import prepare
        >>> from vilvm.models.vae import VAE
        >>> prepared = prepare(VAE(data_dim=6, latent_dim=2), torch.zeros(9, 6), batch_size=5)
        >>> len(prepared.batches), prepared.local, prepared.layout.latents
        (2, True, ('z',))
    """

    lvm: LatentVariableModel
    data: Data = field(repr=False)
    batches: Sequence[Data] = field(repr=False)
    layout: Layout = field(repr=False)
    device: torch.device
    seed: int
    size: int
    batch_size: int | None
    protocol: dict[str, Any]
    generators: list[Tensor] = field(repr=False)
    _cuts: dict[int, "Prepared"] = field(default_factory=dict, init=False, repr=False)

    @property
    def local(self) -> bool:
        """Whether every datum has latents of its own, so that weights are per datum."""
        return self.layout.local

    @contextmanager
    def running(self) -> Iterator[None]:
        """A context to run the pair in: no gradients, evaluation mode, seeded generators."""
        with torch.no_grad(), self.drawing(), evaluation_mode(self.lvm):
            yield

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """A context in which torch draws from the seed, as it would right after preparation."""
        with seeded(self.seed, self.device):
            set_rng_state(self.generators, self.device)
            yield

    def part(self, number: int, vectorisation: Vectorisation | None = None) -> Part:
        """A batch with its layout.

        Runs the pair once to find the layout, except for the first batch: call it in ``running``.

        Arguments:
            number: the number of the batch, from 0.
            vectorisation: how passes run at many samples, shared with other batches.
        """
        batch = self.batches[number].x
        if number == 0:
            layout = self.layout
        else:
            # The size of the last batch may be that of another plate, so the plate is given.
            layout = find_layout(self.lvm, batch, plate=self.layout.data_plate)
        vectorisation = Vectorisation() if vectorisation is None else vectorisation
        layout = layout._replace(vectorisation=vectorisation)
        return Part(self.lvm, batch, layout, number * self.size)

    def parts(self) -> list[Part]:
        """All batches with their layouts; runs the pair once a batch, except the first."""
        return [self.part(number) for number in range(len(self.batches))]

    def parts_of(
        self, columns: Tensor, parts: Sequence[Part]
    ) -> list[tuple[Part, Tensor]]:
        """The batches that hold some columns of the weights.

        One new batch of just these data if the pair runs on it; the given parts otherwise.

        Arguments:
            columns: indices of columns, in order, counted over all parts.
            parts: all batches with their layouts.

        Returns:
            Each part with the indices of its columns within it.
        """
        subsampled = any(part.layout.subsample for part in parts)
        if self.local and self.data.divisible and not subsampled:
            # A guide with parameters for each datum refuses other batches.
            with suppress(ContractError):
                few = self.data.subset(columns).x
                layout = find_layout(self.lvm, few, plate=self.layout.data_plate)
                return [(Part(self.lvm, few, layout), torch.arange(len(columns)))]
        found, start = [], 0
        for part in parts:
            stop = start + part.num_columns
            inside = columns[(columns >= start) & (columns < stop)] - start
            if len(inside):
                found.append((part, inside))
            start = stop
        return found

    def cut(self, batch_size: int) -> "Prepared":
        """The same data in batches of another size; this object if they have that size already."""
        size = _size(self.data, batch_size)
        if size == self.size:
            return self
        if size not in self._cuts:
            batches, layout, generators = _cut(self.lvm, self.data, size, self.seed)
            self._cuts[size] = replace(
                self, batches=batches, layout=layout, generators=generators, size=size
            )
        return self._cuts[size]

    def require_weights(self, who: str) -> None:
        """Raises ContractError, in the name of `who`, if the guide's draws have no weight."""
        require_weights(who, self.lvm, self.layout)


def prepare(
    lvm: LatentVariableModel, data: Any, *, batch_size: int | None = None, seed: int = 0
) -> Prepared:
    """Prepares data for several evaluations of a pair.

    The result holds for the current parameters: prepare again after more training.

    Arguments:
        lvm: the model and guide.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum per row; a transform
            is drawn once from `seed`.
        batch_size: data per batch; by default each function chooses. Data that share a
            latent stay together.
        seed: seed of the transform and of every draw made with the result.

    Returns:
        Prepared, which ``evaluate``, ``ais`` and the diagnostics accept in place of (lvm, data).

    Raises:
        ContractError: the pair breaks the contract on these data (see
            ``vilvm.weights.find_layout``), or subsamples a plate whose data share one weight.
        ValueError: the data are empty or not finite, or an option is out of range.

    Examples:
        >>> import torch
        >>> from vilvm import evaluate, prepare
        >>> from vilvm.models.vae import VAE
        >>> prepared = prepare(VAE(data_dim=6, latent_dim=2), torch.zeros(9, 6))
        >>> evaluate(prepared, num_samples=50).bounds["iwae"].values.shape
        torch.Size([9])
    """
    return prepared_of("prepare", lvm, data, batch_size=batch_size, seed=seed)


def prepared_of(
    who: str,
    lvm: LatentVariableModel | Prepared,
    data: Any = None,
    *,
    batch_size: int | None = None,
    seed: int = 0,
    default_size: int | Callable[[LatentVariableModel, Data], int] = _BATCH,
) -> Prepared:
    """The prepared data of a function that accepts a ``Prepared`` in place of (lvm, data).

    Arguments:
        who: the function, named in messages.
        lvm: the model and guide, or a ``Prepared``.
        data: the data; None with a ``Prepared``.
        batch_size: data per batch, if the user gave it.
        seed: as the user gave it; 0 stands for the seed of a ``Prepared``.
        default_size: data per batch otherwise, or a function of pair and data that finds it.

    Returns:
        Prepared, in batches of the size that the function needs.

    Raises:
        ValueError: data are missing or given twice, or an option contradicts the ``Prepared``.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights.prepared import prepared_of
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(9, 6)
        >>> len(prepared_of("my_diagnostic", lvm, x, default_size=3).batches)
        3
    """
    seed = check_seed(f"{who}: seed", seed)
    batch_size = optional(check_number, f"{who}: batch_size", batch_size)
    if isinstance(lvm, Prepared):
        _check_given(who, lvm, data, batch_size, seed)
        size = lvm.batch_size or batch_size or _chosen(default_size, lvm.lvm, lvm.data)
        return lvm.cut(size)
    check_contract(lvm)
    _check_not_missing(who, data)
    given = data_beside(lvm, data)
    fixed = fixed_beside(lvm, given, seed)
    size = _size(fixed, batch_size or _chosen(default_size, lvm, fixed))
    batches, layout, generators = _cut(lvm, fixed, size, seed)
    return Prepared(
        lvm=lvm,
        data=fixed,
        batches=batches,
        layout=layout,
        device=fixed.device,
        seed=seed,
        size=size,
        batch_size=batch_size,
        protocol=given.protocol(),
        generators=generators,
    )


def pair_and_data(
    who: str, lvm: Any, data: Any = None, *, seed: int = 0
) -> tuple[Any, Data, int]:
    """The pair, its fixed data and the seed, for a function that runs batches of its own.

    Arguments:
        who: the function, named in messages.
        lvm: the model and guide, or a ``Prepared``.
        data: the data; None with a ``Prepared``.
        seed: as the user gave it; 0 stands for the seed of a ``Prepared``.

    Returns:
        The pair; the data after their transform, on its device; and the seed.

    Raises:
        ValueError: data are missing or given twice, or the seed contradicts the ``Prepared``.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights.prepared import pair_and_data
        >>> lvm, data, seed = pair_and_data("mine", VAE(6, 2), torch.zeros(9, 6), seed=3)
        >>> len(data), seed
        (9, 3)
    """
    seed = check_seed(f"{who}: seed", seed)
    if isinstance(lvm, Prepared):
        _check_given(who, lvm, data, None, seed)
        return lvm.lvm, lvm.data, lvm.seed
    _check_not_missing(who, data)
    return lvm, fixed_beside(lvm, data, seed), seed


def require_weights(who: str, lvm: object, layout: Layout) -> None:
    """Raises an error if the guide's draws have no weight.

    Arguments:
        who: the function that needs weights, named in the message.
        lvm: the model and guide.
        layout: their layout on a batch.

    Raises:
        ContractError: the guide is degenerate or not random, or a prior is flat.

    Examples:
        >>> import torch
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.weights import find_layout
        >>> from vilvm.weights.prepared import require_weights
        >>> lvm = VAE(data_dim=6, latent_dim=2)
        >>> require_weights("pareto_k", lvm, find_layout(lvm, torch.zeros(9, 6)))
    """
    if layout.degenerate:
        raise ContractError(
            f"{who}: the guide of {type(lvm).__name__} puts latent {layout.degenerate[0]!r} on "
            "one point (a Delta), so its draws have no density and no weight: give it a guide "
            "with a density (vilvm.wrappers.fit_guide)."
        )
    if layout.deterministic:
        raise ContractError(
            f"{who}: the guide of {type(lvm).__name__} puts all its probability on one point, so "
            "its draws and their weights are all equal and show nothing about the posterior: give "
            "it a guide that draws at random."
        )
    if layout.improper:
        raise ContractError(
            f"{who}: the prior of latent {layout.improper[0]!r} of {type(lvm).__name__} is flat: "
            "give it a proper one (vilvm.priors.fit_prior)."
        )


def rows_in_a_pass(device: torch.device) -> int:
    """How many draws, over all data together, keep a device busy.

    Arguments:
        device: where the pair runs.

    Returns:
        A number of draws.

    Examples:
        >>> import torch
        >>> from vilvm.weights.prepared import rows_in_a_pass
        >>> rows_in_a_pass(torch.device("cpu"))
        8000
    """
    return _ROWS_CUDA if device.type == "cuda" else _ROWS_CPU


def _check_not_missing(who: str, data: Any) -> None:
    if data is None:
        raise ValueError(
            f"{who}: the data are missing; call {who}(lvm, data), or {who}(prepared) with "
            "prepared = vilvm.prepare(lvm, data)."
        )


def _check_given(
    who: str, prepared: Prepared, data: Any, batch_size: int | None, seed: int
) -> None:
    """Raises ValueError if an argument repeats or contradicts what was prepared."""
    if data is not None:
        raise ValueError(
            f"{who}: a Prepared holds its data; leave out the data, or pass the pair."
        )
    if seed not in (0, prepared.seed):
        raise ValueError(
            f"{who}: seed={seed}, but the data were prepared with seed={prepared.seed}; leave it "
            "out, or prepare again."
        )
    if batch_size is not None and prepared.batch_size not in (None, batch_size):
        raise ValueError(
            f"{who}: batch_size={batch_size}, but the data were prepared with "
            f"batch_size={prepared.batch_size}; leave it out, or prepare again."
        )


def _chosen(
    size: int | Callable[[LatentVariableModel, Data], int],
    lvm: LatentVariableModel,
    data: Data,
) -> int:
    return size if isinstance(size, int) else size(lvm, data)


def _size(data: Data, batch_size: int) -> int:
    """The batch size: at most all data, and all if they cannot be cut."""
    return min(batch_size, len(data)) if data.divisible else len(data)


def _cut(
    lvm: LatentVariableModel, data: Data, size: int, seed: int
) -> tuple[Sequence[Data], Layout, list[Tensor]]:
    """Batches of `size`, or one of all data; the first's layout; the generators afterwards."""
    with torch.no_grad(), seeded(seed, data.device), evaluation_mode(lvm):
        layout = _layout_of_a_batch(lvm, data, size) if size < len(data) else None
        if layout is None:
            batches = [data.loaded()]
            layout = find_layout(lvm, batches[0].x)
        else:
            batches = data.chunks(size)
        _check_subsample(lvm, layout)
        return batches, layout, rng_state(data.device)


def _layout_of_a_batch(
    lvm: LatentVariableModel, data: Data, size: int
) -> Layout | None:
    """The layout of the first batch; None if the pair must run on all data at once.

    It must if data share a latent, if a guide identifies data by position, or if an autoguide over
    latents of the data's plate accepts only the size that it was fitted to.
    """
    batch, unset = data.subset(slice(0, size)).x, unset_autoguides(lvm)
    try:
        layout = find_layout(lvm, batch)
        whole = by_position(lvm, batch, layout) is not None
    except ContractError:
        whole, layout = True, None
    if whole or layout is None:
        restart(unset)
        return None
    return (
        layout
        if layout.local and _cuts_the_data_plate(lvm, data, size, layout)
        else None
    )


def _cuts_the_data_plate(
    lvm: LatentVariableModel, data: Data, size: int, layout: Layout
) -> bool:
    """Whether rows lie along the data plate, not along another axis (time-major data)."""
    smaller = max(1, size - 1)
    fewer = find_layout(lvm, data.subset(slice(0, smaller)).x, plate=layout.data_plate)
    return all(
        found.num_data == rows or bool(found.subsample)
        for found, rows in ((layout, size), (fewer, smaller))
    )


def _check_subsample(lvm: object, layout: Layout) -> None:
    """Raises ContractError if a randomly subsampled plate belongs to one joint weight."""
    subsampled = [
        name
        for name in layout.subsample
        if not layout.local or name != layout.data_plate
    ]
    if subsampled:
        raise ContractError(
            f"{type(lvm).__name__} subsamples its plate {subsampled[0]!r} at random, and its "
            "sites enter one joint weight, so the bounds would be those of the subsample. "
            "Evaluate a model whose plate contains all data."
        )
