"""``torch.utils.data``: a Dataset as tensors, and what a DataLoader sets.

A Dataset is read once, row by row, into memory. One that would take more than ``MOST_BYTES`` is
read a batch at a time. fit draws its own batches, so of a DataLoader it takes the dataset, the
batch size, and whether the order is random.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from vilvm._runtime.notes import note
from vilvm._runtime.random import preserved_rng
from vilvm.data._numbers import Place
from vilvm.data._row_sources import RowSource
from vilvm.data.tensors import map_tensors, named_tensors, structure_of, tensors_of

__all__ = [
    "MOST_BYTES",
    "LoaderSettings",
    "dataset_of",
    "loader_settings",
    "read_dataset",
]

MOST_BYTES = 2**31  # of a Dataset that is read into memory
_CHUNK = 1024  # rows that are collated at once
_TRIED = 3  # rows that are read twice


class LoaderSettings(NamedTuple):
    """What ``fit`` takes from a DataLoader.

    Arguments:
        batch_size: of the loader; None if there is no loader.
        shuffle: whether its order is random; None if there is no loader.
    """

    batch_size: int | None = None
    shuffle: bool | None = None


def loader_settings(data: Any) -> LoaderSettings:
    """The batch size and the order of a DataLoader; of anything else, None for both."""
    if not isinstance(data, DataLoader):
        return LoaderSettings()
    return LoaderSettings(data.batch_size, isinstance(data.sampler, RandomSampler))


def dataset_of(loader: DataLoader, place: Place) -> Any:
    """The dataset of a loader, whose other settings are named as ignored.

    Raises:
        ValueError: the loader draws rows in another way than all of them once, in order or at
            random.
    """
    if isinstance(loader.dataset, IterableDataset):
        return loader.dataset
    sampler = loader.sampler if loader.batch_size else loader.batch_sampler
    if not _draws_each_once(sampler):
        raise place.error(
            f"is a DataLoader with a sampler of its own ({type(sampler).__name__}), and every "
            "datum counts once here; pass loader.dataset, or the rows that you mean."
        )
    ignored = {
        "num_workers": loader.num_workers,
        "pin_memory": loader.pin_memory,
        "drop_last": loader.drop_last,
        "timeout": loader.timeout,
        "worker_init_fn": loader.worker_init_fn,
        "generator": loader.generator,
    }
    named = ", ".join(name for name, value in ignored.items() if value)
    if named:
        note(
            "DataLoader",
            f"{place.what}: of the DataLoader, its dataset, batch size and shuffling are used; "
            f"{named} has no effect here.",
        )
    return loader.dataset


def _draws_each_once(sampler: Any) -> bool:
    if isinstance(sampler, RandomSampler):
        return not sampler.replacement and sampler.num_samples == len(
            sampler.data_source
        )
    return isinstance(sampler, SequentialSampler)


def read_dataset(dataset: Dataset, place: Place, collate: Any = None) -> Any:
    """The rows of a Dataset as a nesting of tensors, in memory or read in batches.

    Arguments:
        dataset: with rows by number.
        place: for messages.
        collate: makes a batch of a list of rows; torch's default if None.

    Raises:
        ValueError: it has no rows by number, a row holds something else than numbers, or a row
            differs when it is read again.
    """
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise place.error(
            "is an iterable dataset, which has no rows by number; collect its rows into a tensor "
            "first, or write them to a file (vilvm.data.datasets.on_disk)."
        )
    own: Any = dataset
    collate = collate or default_collate
    if collate is default_collate and type(dataset) is TensorDataset:
        return _alone(own.tensors)
    if not len(own):
        raise place.error("is an empty dataset; pass at least one datum.")
    with preserved_rng("cpu"):
        return _alone(_read(_Rows(own, collate, place)))


def _read(rows: "_Rows") -> Any:
    """All rows, in memory if they are not too large."""
    count, place = len(rows.dataset), rows.place
    first = rows.read(np.arange(1))
    _check_repeatable(rows, first, place)
    size = count * sum(t.numel() * t.element_size() for t in tensors_of(first))
    own_collate = rows.collate is not default_collate
    if size > MOST_BYTES and own_collate:
        raise place.error(
            f"would take {size / 2**30:.1f} GiB in memory, and with a collate_fn of its own it "
            "cannot be read in batches; write it to a file (vilvm.data.datasets.on_disk)."
        )
    if size > MOST_BYTES:
        return rows.streamed(first)
    if own_collate:
        return rows.read(np.arange(count))  # it may pad to the longest
    starts = range(0, count, _CHUNK)
    parts = [rows.read(np.arange(s, min(s + _CHUNK, count))) for s in starts]
    return _joined(parts, place)


def _alone(x: Any) -> Any:
    """The only element of a tuple or list of one."""
    if isinstance(x, list | tuple) and not hasattr(x, "_fields"):
        return x[0] if len(x) == 1 else tuple(x)
    return x


class _Rows:
    """The rows of a dataset, collated; the last ones read are kept for the other tensors."""

    def __init__(self, dataset: Any, collate: Any, place: Place):
        self.dataset, self.collate, self.place = dataset, collate, place
        self._last: tuple[bytes, Any] = b"", None

    def read(self, rows: np.ndarray) -> Any:
        """Tensors of some rows."""
        try:
            found = self.collate([self.dataset[int(i)] for i in rows])
        except (TypeError, RuntimeError) as error:
            sentence = str(error).split("\n")[0]
            raise self.place.error(
                f"the rows of {type(self.dataset).__name__} cannot be stacked into tensors "
                f"({sentence}); return tensors of one shape, or give the DataLoader a collate_fn."
            ) from None
        if not tensors_of(found):
            raise self.place.error(
                f"the rows of {type(self.dataset).__name__} hold no numbers; return tensors."
            )
        return map_tensors(self.converted, found)

    def converted(self, x: Tensor) -> Tensor:
        """A tensor whose numbers have the type of the place."""
        if x.dtype == torch.float64:
            return x.to(self.place.float_type)
        return x

    def streamed(self, first: Any) -> Any:
        """A streamed tensor in place of every tensor of a row."""
        numbers = iter(range(len(tensors_of(first))))

        def source(t: Tensor) -> RowSource:
            number = next(numbers)
            return RowSource(
                lambda rows: self._part(rows, number),
                (len(self.dataset), *t.shape[1:]),
                t.dtype,
            )

        return map_tensors(source, first)

    def _part(self, rows: np.ndarray, number: int) -> Tensor:
        key, found = self._last
        if key != rows.tobytes():
            key, found = rows.tobytes(), self.read(rows)
            self._last = key, found
        return tensors_of(found)[number]


def _check_repeatable(rows: _Rows, first: Any, place: Place) -> None:
    """Raises ValueError if a row is random: it is read only once."""
    for i in np.linspace(0, len(rows.dataset) - 1, _TRIED).astype(int):
        once = first if i == 0 else rows.read(np.array([i]))
        again = rows.collate([rows.dataset[int(i)]])
        pairs = zip(
            tensors_of(once),
            tensors_of(map_tensors(rows.converted, again)),
            strict=True,
        )
        if not all(_equal(x, y) for x, y in pairs):
            raise place.error(
                f"row {i} of {type(rows.dataset).__name__} differs each time it is read (a random "
                "transform?), and rows are read once; leave the transform out of the dataset, and "
                "give it to vilvm.Data(x, transform=...)."
            )


def _equal(x: Tensor, y: Tensor) -> bool:
    return torch.equal(x.double().nan_to_num(), y.double().nan_to_num())


def _joined(parts: list[Any], place: Place) -> Any:
    """One nesting of tensors from those of successive rows."""
    if len({structure_of(part) for part in parts}) > 1:
        raise place.error("the rows differ in structure; return the same of each.")
    columns = zip(*(named_tensors(part) for part in parts), strict=True)
    joined = iter([torch.cat([t for _, t in column]) for column in columns])
    return map_tensors(lambda _: next(joined), parts[0])
