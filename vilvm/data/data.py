"""One split of a data set: its tensors, its transform, and the records that identify them.

``fit``, ``evaluate`` and the diagnostics take a ``Data``, or anything that ``as_data`` converts to
one: a tensor, an array of NumPy or xarray, a frame of pandas or polars, an AnnData, a sparse
matrix of SciPy, a torch Dataset or DataLoader, or a tuple or dict of these with one datum per row.
The tensors are moved to the device once, and batches are selected there. Data larger than memory
stay on disk (``vilvm.data.datasets.on_disk``), and only the rows of a batch are read.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from vilvm._runtime.random import seeded
from vilvm._runtime.unchanged import Unchanged
from vilvm.data._checks import check_tensors
from vilvm.data._foreign import Converted, converted, is_foreign
from vilvm.data.streamed import StreamedTensor
from vilvm.data.tensors import map_tensors, named_tensors, tensors_of

__all__ = ["Data", "Transform", "as_data", "is_transform"]


class Transform(Protocol):
    """A function that is applied to a batch before the model sees it.

    A transform is a frozen dataclass, so that its ``repr`` records it. It has a `name`, and
    `fresh` says whether it draws anew for every batch (dynamic binarisation) or once for the split
    (static binarisation).

    Examples:
        >>> import torch
        >>> from dataclasses import dataclass
        >>> from vilvm import Data
        >>> @dataclass(frozen=True)
        ... class Centred:
        ...     name: str = "centred"
        ...     fresh: bool = False
        ...     def __call__(self, batch):
        ...         return batch - 0.5
        >>> Data(torch.ones(2, 1), transform=Centred()).x
        tensor([[0.5000],
                [0.5000]])
    """

    @property
    def name(self) -> str: ...

    @property
    def fresh(self) -> bool: ...

    def __call__(self, batch: Any) -> Any:
        """The transformed batch; noise comes from torch's generator of the batch's device."""
        ...


def is_transform(value: Any) -> bool:
    """Whether a value is callable and has an attribute `fresh`.

    Arguments:
        value: any object.

    Returns:
        True for a transform.

    Examples:
        >>> from vilvm.data import DynamicBinarisation
        >>> from vilvm.data.data import is_transform
        >>> is_transform(DynamicBinarisation()), is_transform(abs)
        (True, False)
    """
    return callable(value) and hasattr(value, "fresh")


@dataclass(frozen=True)
class Data:
    """One split of a data set.

    Arguments:
        x: a tensor or ``StreamedTensor``, or a tuple or dict of them, with one datum a row. Data
            of other libraries (see ``as_data``) are converted.
        name: of the data set; recorded with every result.
        split: "train", "validation", "test" or "all".
        transform: applied before the model sees the data, or None. A fresh transform is applied to
            every batch, any other transform once, when this object is made.
        labels: shape (N,), or None; used by figures only.
        image_shape: (height, width) or (channels, height, width) if a row is a picture, else None.
        transformed: whether `x` is the output of the transform.
        index: labels of the rows, a pandas Index, or None; those of `x` if it has some.
        columns: names of the columns, if `x` came as one matrix with names; if it is a tuple or
            dict, those of its matrices with names, by their place, such as "x[0]"; else None.
        levels: what the codes of categorical columns stand for, by the name of the column.

    Raises:
        ValueError: `transform` is not a transform, or is drawn once and the data stay on disk; or
            `x` cannot be converted.

    Examples:
        >>> import torch
        >>> from vilvm import Data
        >>> from vilvm.data import DynamicBinarisation
        >>> data = Data(torch.full((5, 3), 0.5), "coins", transform=DynamicBinarisation())
        >>> len(data), data.model_input().unique()
        (5, tensor([0., 1.]))
    """

    x: Any
    name: str = "unnamed"
    split: str = "all"
    transform: Transform | None = None
    labels: Tensor | None = field(default=None, repr=False)
    image_shape: tuple[int, ...] | None = None
    transformed: bool = field(default=False, repr=False)
    index: Any = field(default=None, repr=False)
    columns: tuple[str, ...] | Mapping[str, tuple[str, ...]] | None = field(
        default=None, repr=False
    )
    levels: Mapping[str, tuple[Any, ...]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if is_foreign(self.x):
            self._adopt(converted(self.x, self.name))
        if self.transform is None or self.transformed:
            return
        if not is_transform(self.transform) or isinstance(self.transform, type):
            raise ValueError(
                f"Data: the transform is a {type(self.transform).__name__}; give one of "
                "vilvm.data.datasets, such as DynamicBinarisation(), or a frozen dataclass that "
                "is called with a batch and has `name` and `fresh`."
            )
        if self.transform.fresh:
            return
        if self.streamed:
            raise ValueError(
                f"{self.name}: {self.transform.name} is drawn once for all data, and these stay "
                "on disk; write the transformed data to a file, or take a transform that is drawn "
                "anew for every batch."
            )
        object.__setattr__(self, "x", self._transform(self.x))
        object.__setattr__(self, "transformed", True)

    def _adopt(self, found: Converted) -> None:
        """Takes over converted data, and their names where it has none of its own."""
        object.__setattr__(self, "x", found.x)
        for name in ("index", "columns", "levels"):
            if not len(getattr(self, name) or ()):
                object.__setattr__(self, name, getattr(found, name))

    def _first_sizes(self) -> set[int | None]:
        """The sizes of the tensors' first dimensions; None stands for a scalar."""
        return {next(iter(t.shape), None) for t in tensors_of(self.x)}

    def __len__(self) -> int:
        """The number of data; 1 if the tensors share no first dimension and so form one datum."""
        sizes = self._first_sizes()
        if len(sizes) != 1:
            return 1
        size = sizes.pop()
        if size is None:
            return 1
        return size

    @property
    def divisible(self) -> bool:
        """Whether the tensors share a first dimension, so that rows can be selected."""
        sizes = self._first_sizes()
        return len(sizes) == 1 and None not in sizes

    def size_mismatch(self) -> str:
        """Describes two tensors that share no first dimension; "" if all tensors share one."""
        tensors = list(named_tensors(self.x))
        for name, tensor in tensors:
            if not tensor.dim():
                return f"{name} is a single number"
        (first, size), *rest = [(name, t.shape[0]) for name, t in tensors]
        for name, other in rest:
            if other > size:
                return f"{first} has {size} rows and {name} has {other}, {other - size} more"
            if other < size:
                return f"{first} has {size} rows and {name} has {other}, {size - other} fewer"
        return ""

    @property
    def streamed(self) -> bool:
        """Whether a tensor stays on disk and is read in batches."""
        return any(isinstance(t, StreamedTensor) for t in tensors_of(self.x))

    def loaded(self) -> "Data":
        """The same data, all in memory."""
        if self.streamed:
            return self.subset(slice(None))
        return self

    def to(self, device: torch.device | str) -> "Data":
        """The same data on `device`."""
        return replace(self, x=map_tensors(lambda t: t.to(device), self.x))

    def subset(self, index: Tensor | slice) -> "Data":
        """The rows that `index` picks, in its order, with their labels and their index."""
        labels, names = self.labels, self.index
        if labels is not None:
            labels = labels[_on(index, labels.device)]
        if names is not None:
            names = names[index.cpu().numpy() if isinstance(index, Tensor) else index]
        rows = map_tensors(lambda t: t[_on(index, t.device)], self.x)
        return replace(self, x=rows, labels=labels, index=names)

    def take(self, indices: Tensor) -> "Data":
        """The rows at int64 `indices` from 0, without labels and index.

        Twice as fast as ``subset``.
        """

        def rows(t: Any) -> Tensor:
            if not isinstance(t, Tensor):
                return t[indices]
            own = indices.to(t.device)
            if t.is_contiguous():
                return t.index_select(0, own)
            return t[own]  # keeps the memory layout

        return replace(self, x=map_tensors(rows, self.x), labels=None, index=None)

    def chunks(self, size: int) -> "Sequence[Data]":
        """The data in order, `size` rows at a time; the last chunk may be smaller.

        If the data are on disk, a chunk is read when it is accessed.
        """
        chunks = _Chunks(self, size)
        if self.streamed:
            return chunks
        return list(chunks)

    def fixed(self, seed: int = 0) -> "Data":
        """The data with their transform applied once, drawn from `seed`.

        The draws are made on the CPU, so that they do not depend on the device.

        Raises:
            ValueError: the data stay on disk, so the transformed data cannot be kept.
        """
        if self.transform is None or self.transformed:
            return self
        if self.streamed:
            raise ValueError(
                f"{self.name}: the draws of {self.transform.name} must be kept here, and these "
                "data stay on disk; take some of them, such as data.subset(slice(0, 10000)), or "
                "data without a transform."
            )
        with seeded(seed, purpose="transform"):
            x = self._transform(map_tensors(Tensor.cpu, self.x))
        return replace(self, x=x, transformed=True).to(self.device)

    def model_input(self) -> Any:
        """The tensors that the model sees; a fresh transform draws from torch's generator."""
        if self.transform is None or self.transformed:
            return self.x
        return self._transform(self.x)

    def _transform(self, x: Any) -> Any:
        """Applies the transform; raises ContractError if it changes `x` in place."""
        assert self.transform is not None
        before = Unchanged(named_tensors(x))
        transformed = self.transform(x)
        before.check(f"The transform {type(self.transform).__name__}")
        return transformed

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return tensors_of(self.x)[0].device

    def protocol(self) -> dict[str, Any]:
        """The properties that comparable results share: data set, split, number and transform."""
        transform = "none"
        if self.transform is not None:
            transform = repr(self.transform)
        return {
            "data": self.name,
            "split": self.split,
            "num_data": len(self),
            "transform": transform,
        }

    def fingerprint(self) -> str:
        """A SHA-256 digest of the transform and of the tensors' shapes, types and contents.

        A checkpoint records it. For data on disk it covers some rows only.
        """
        digest = hashlib.sha256(repr(self.transform).encode())
        for tensor in tensors_of(self.x):
            digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
            if isinstance(tensor, StreamedTensor):
                digest.update(tensor.fingerprint())
                continue
            digest.update(
                tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            )
        return digest.hexdigest()


class _Chunks(Sequence[Data]):
    """The chunks of some data, each read when it is accessed; a slice is such a sequence too."""

    def __init__(self, data: Data, size: int, starts: range | None = None):
        if starts is None:
            starts = range(0, len(data), size)
        self.data, self.size, self.starts = data, size, starts

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _Chunks(self.data, self.size, self.starts[index])
        start = self.starts[index]
        return self.data.subset(slice(start, start + self.size))


def _on(index: Tensor | slice, device: torch.device) -> Tensor | slice:
    if isinstance(index, Tensor):
        return index.to(device)
    return index


def as_data(data: Any, what: str = "data", *, dtype: torch.dtype | None = None) -> Data:
    """Converts data to a ``Data`` and checks them.

    - An array of NumPy, or a DataArray of xarray, is a tensor. An xarray Dataset is a dict.
    - A frame of pandas or polars is a matrix of floats, with a column for each numeric or Boolean
      column; a frame of categorical columns is a matrix of their codes. A Series is a vector.
    - An AnnData is its X; ``from_anndata`` selects a layer and covariates.
    - A sparse matrix of SciPy, or in a file, becomes dense a batch at a time.
    - A ``torch.utils.data.Dataset`` is read into memory once, row by row; one of more than 2 GiB a
      batch at a time. A ``DataLoader`` is its dataset.

    Floats become `dtype`; integers are never altered. Row labels are kept in ``Data.index``, names
    of columns in ``Data.columns``, the meaning of codes in ``Data.levels``.

    Arguments:
        data: a ``Data``, a tensor, one of these objects, or a tuple or dict of them with one datum
            a row.
        what: the name of the argument, for messages.
        dtype: of floats that are not tensors; ``fit`` and all that run a model give the model's
            type; by default torch's.

    Returns:
        The data, detached from any gradient history.

    Raises:
        ValueError: there is no tensor; or one is empty, sparse or complex, or holds NaN or
            infinity; values are missing; a column holds no numbers; row labels differ; or the
            numbers of labels and data differ.

    Examples:
        >>> import torch
        >>> from vilvm.data import as_data
        >>> len(as_data((torch.zeros(4, 2), torch.ones(4))))
        4
        >>> import pandas
        >>> data = as_data(pandas.DataFrame({"a": [1, 2], "b": [0.5, 0]}, index=["p", "q"]))
        >>> data.x, list(data.index), data.columns
        (tensor([[1.0000, 0.5000],
                [2.0000, 0.0000]]), ['p', 'q'], ('a', 'b'))
    """
    _check_one_split(data, what)
    if not isinstance(data, Data):
        found = converted(data, what, dtype) if is_foreign(data) else Converted(data)
        data = Data(
            found.x, index=found.index, columns=found.columns, levels=found.levels
        )
    check_tensors(data.x, what)
    _check_labels(data, what)
    tensors = tensors_of(data.x)
    if not tensors:
        raise ValueError(
            f"{what}: holds no tensor (it is a {type(data.x).__name__}); pass a tensor, an array "
            "or a frame, or a tuple or dict of them."
        )
    if any(t.requires_grad for t in tensors):
        # the first backward pass would run through their gradient history and free it
        return replace(data, x=map_tensors(_detached, data.x))
    return data


def _detached(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.detach()
    return x


def _check_one_split(data: Any, what: str) -> None:
    splits = [getattr(data, split, None) for split in ("train", "validation", "test")]
    if all(isinstance(split, Data) for split in splits):
        raise ValueError(
            f"{what}: got a whole data set; pass one split of it, such as dataset.train."
        )
    if hasattr(data, "sources"):  # Interleaved
        raise ValueError(
            f"{what}: are Interleaved, which only fit trains on; pass one of its sources."
        )


def _check_labels(data: Data, what: str) -> None:
    """Raises ValueError unless each datum has one label, and one in the index."""
    number = len(data)
    if data.labels is not None and data.divisible and len(data.labels) != number:
        raise ValueError(
            f"{what}: has {number} data and {len(data.labels)} labels; give one per datum."
        )
    if data.index is not None and len(data.index) != number:
        raise ValueError(
            f"{what}: has {number} data and an index of {len(data.index)} labels; give one per "
            "datum."
        )
