"""One split of a data set: tensors, a transform, and the words that say what they are.

``fit``, ``evaluate`` and the diagnostics take a ``Data`` or anything ``as_data`` can make one of
(a tensor, or a tuple or dict of tensors with one datum a row). The tensors go to the device once;
a batch is an index-select there. Data larger than memory stay where they are
(``vilvm.data.datasets.on_disk``): what is read of them are the rows of a batch.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from vilvm._runtime.random import seeded
from vilvm._runtime.unchanged import Unchanged
from vilvm.data._unusable import why_unusable
from vilvm.data.streamed import StreamedTensor
from vilvm.data.tensors import map_tensors, named_tensors, tensors_of

__all__ = ["Data", "Transform", "as_data", "is_transform"]


class Transform(Protocol):
    """What happens to a batch before the model sees it. A frozen dataclass, so that its ``repr``
    records it.

    `fresh` says whether it draws anew each time a batch is taken (dynamic binarisation) or once
    for the split (static).
    """

    @property
    def name(self) -> str: ...

    @property
    def fresh(self) -> bool: ...

    def __call__(self, batch: Any) -> Any:
        """The transformed batch; noise comes from torch's generator of the batch's device."""
        ...


def is_transform(value: Any) -> bool:
    """Whether a value can be called with a batch and says whether it is fresh."""
    return callable(value) and hasattr(value, "fresh")


@dataclass(frozen=True)
class Data:
    """One split of a data set.

    Arguments:
        x: a tensor, or a tuple or dict of tensors, with one datum a row. ``StreamedTensor`` on
            disk may stand for a tensor.
        name: of the data set; named in every result.
        split: "train", "validation", "test" or "all".
        transform: what the model sees the data through, or None. One that is fresh is drawn for
            every batch; any other is applied once, here.
        labels: shape (N,), or None; used by figures only.
        image_shape: (height, width) or (channels, height, width) if a row is a picture, else None.
        transformed: whether `x` is what the transform has made already.
    """

    x: Any
    name: str = "unnamed"
    split: str = "all"
    transform: Transform | None = None
    labels: Tensor | None = field(default=None, repr=False)
    image_shape: tuple[int, ...] | None = None
    transformed: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        if self.transform is None or self.transformed:
            return
        if not is_transform(self.transform) or isinstance(self.transform, type):
            raise ValueError(
                f"Data: the transform is a {type(self.transform).__name__}; give one of "
                "vilvm.data.datasets, such as DynamicBinarisation(), "
                "or a frozen dataclass that is called with a batch and has `name` and `fresh`."
            )
        if not self.transform.fresh:
            if self.streamed:
                raise ValueError(
                    f"{self.name}: {self.transform.name} is drawn once for all data, and these "
                    "stay on disk; write the transformed data to a file, "
                    "or take a transform that is drawn anew for every batch."
                )
            object.__setattr__(self, "x", self._transform(self.x))
            object.__setattr__(self, "transformed", True)

    def __len__(self) -> int:
        """The number of data; 1 when the tensors share no first dimension, for they are then one
        datum together.
        """
        sizes = {t.shape[0] if t.dim() else None for t in tensors_of(self.x)}
        size = sizes.pop() if len(sizes) == 1 else None
        return 1 if size is None else size

    @property
    def divisible(self) -> bool:
        """Whether the tensors share a first dimension, so that part of them is still data."""
        sizes = {t.shape[0] if t.dim() else None for t in tensors_of(self.x)}
        return len(sizes) == 1 and None not in sizes

    def uneven(self) -> str:
        """Which tensors share no first dimension, and by how much they differ, in words; "" if all
        do.
        """
        tensors = list(named_tensors(self.x))
        single = next((name for name, t in tensors if not t.dim()), None)
        if single is not None:
            return f"{single} is a single number"
        (first, size), *rest = [(name, t.shape[0]) for name, t in tensors]
        for name, other in rest:
            if other != size:
                return (
                    f"{first} has {size} rows and {name} has {other}, {abs(other - size)} "
                    f"{'more' if other > size else 'fewer'}"
                )
        return ""

    @property
    def streamed(self) -> bool:
        """Whether some of it stays on disk and is read in batches."""
        return any(isinstance(t, StreamedTensor) for t in tensors_of(self.x))

    def loaded(self) -> "Data":
        """The same data, all of them in memory."""
        return self.subset(slice(None)) if self.streamed else self

    def to(self, device: torch.device | str) -> "Data":
        """The same data on `device`."""
        return replace(self, x=map_tensors(lambda t: t.to(device), self.x))

    def subset(self, index: Tensor | slice) -> "Data":
        """The data that `index` picks, in its order."""
        labels = None if self.labels is None else self.labels[_on(index, self.labels.device)]
        return replace(
            self, x=map_tensors(lambda t: t[_on(index, t.device)], self.x), labels=labels
        )

    def at(self, places: Tensor) -> "Data":
        """The data at `places`, int64 and counted from the start, without their labels: ``subset``
        in half the time, for a batch a step.
        """

        def picked(t: Any) -> Tensor:
            if not isinstance(t, Tensor):
                return t[places]
            own = places.to(t.device)
            # which keeps the layout
            return t.index_select(0, own) if t.is_contiguous() else t[own]

        return replace(self, x=map_tensors(picked, self.x), labels=None)

    def parts(self, rows: int) -> "Sequence[Data]":
        """The data in order, `rows` at a time; the last part may be smaller.

        A part of data on disk is read when it is asked for.
        """
        parts = _Parts(self, rows)
        return parts if self.streamed else list(parts)

    def fixed(self, seed: int = 0) -> "Data":
        """The data after their transform, drawn once from `seed`: what a static protocol, or an
        evaluation, looks at.

        Drawn on the CPU, so that the same data are looked at whatever device they are for.

        Raises:
            ValueError: they stay on disk, and so cannot be kept as they are drawn.
        """
        if self.transform is None or self.transformed:
            return self
        if self.streamed:
            raise ValueError(
                f"{self.name}: what {self.transform.name} draws must be kept here, and these data "
                "stay on disk; "
                "take some of them, such as data.subset(slice(0, 10000)), or data without a "
                "transform."
            )
        with seeded(seed):
            x = self._transform(map_tensors(Tensor.cpu, self.x))
        return replace(self, x=x, transformed=True).to(self.device)

    def look(self) -> Any:
        """The tensors as the model sees them, a fresh transform drawn anew from torch's generator."""
        return self.x if self.transform is None or self.transformed else self._transform(self.x)

    def _transform(self, x: Any) -> Any:
        """What the transform makes of `x`, which it leaves as it is; else ContractError."""
        assert self.transform is not None
        given, found = Unchanged(named_tensors(x)), self.transform(x)
        given.check(f"The transform {type(self.transform).__name__}")
        return found

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return tensors_of(self.x)[0].device

    def protocol(self) -> dict[str, Any]:
        """What must be equal for two numbers to be comparable: data set, split, number of data,
        transform.
        """
        return {
            "data": self.name,
            "split": self.split,
            "num_data": len(self),
            "transform": "none" if self.transform is None else repr(self.transform),
        }

    def fingerprint(self) -> str:
        """A SHA-256 of the tensors' shapes and contents (of data on disk: of some) and of the
        transform; told apart in a checkpoint.
        """
        digest = hashlib.sha256(repr(self.transform).encode())
        for tensor in tensors_of(self.x):
            digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
            if isinstance(tensor, StreamedTensor):
                digest.update(tensor.fingerprint())
                continue
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()


class _Parts(Sequence[Data]):
    """The parts of some data, each made when it is asked for; some of the parts are such a
    sequence, too.
    """

    def __init__(self, data: Data, rows: int, starts: range | None = None):
        self.data, self.rows = data, rows
        self.starts = range(0, len(data), rows) if starts is None else starts

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return _Parts(self.data, self.rows, self.starts[place])
        start = self.starts[place]
        return self.data.subset(slice(start, start + self.rows))


def _on(index: Tensor | slice, device: torch.device) -> Tensor | slice:
    return index.to(device) if isinstance(index, Tensor) else index


def as_data(data: Any, what: str = "data") -> Data:
    """`data` as a Data, checked: it holds tensors, is not empty, and is free of NaN and
    infinities.

    Raises:
        ValueError: what is wrong, in which tensor, at which datum.
    """
    if all(
        isinstance(getattr(data, split, None), Data) for split in ("train", "validation", "test")
    ):
        raise ValueError(
            f"{what}: got a whole data set; pass one split of it, such as dataset.train."
        )
    if hasattr(data, "sources"):  # Interleaved, which is made of Data
        raise ValueError(
            f"{what}: are Interleaved, which only fit trains on; pass one of its sources."
        )
    if not isinstance(data, Data):
        data = Data(data)
    _check_tensors(data.x, what)
    tensors = tensors_of(data.x)
    if not tensors:
        raise ValueError(
            f"{what}: holds no tensor (it is a {type(data.x).__name__}); pass a tensor, or a "
            "tuple or dict of tensors."
        )
    if data.labels is not None and data.divisible and len(data.labels) != len(data):
        raise ValueError(
            f"{what}: has {len(data)} data and {len(data.labels)} labels; give one label a datum."
        )
    # Data are constants: a history of their own would be walked through, and freed, by the first
    # step.
    return (
        replace(data, x=map_tensors(lambda t: t.detach() if isinstance(t, Tensor) else t, data.x))
        if any(t.requires_grad for t in tensors)
        else data
    )


def _check_tensors(x: Any, what: str) -> None:
    if fault := why_unusable(x):
        raise ValueError(f"{what}: {fault}")
    if isinstance(x, PackedSequence):
        raise ValueError(
            f"{what}: holds a PackedSequence, whose rows are time steps of several data; pass the "
            "padded tensor and the lengths "
            "(torch.nn.utils.rnn.pad_packed_sequence(..., batch_first=True)), and pack them in "
            "the model."
        )
    row = next(
        (
            kind
            for kind in (Mapping, tuple)
            if isinstance(x, list) and x and all(isinstance(v, kind) for v in x)
        ),
        None,
    )
    if row is not None:
        name = "dict" if row is Mapping else "tuple"
        raise ValueError(
            f"{what}: is a list of {len(x)} {name}s; stack them into one {name} of tensors with a "
            "datum a row "
            "(torch.utils.data.default_collate)."
        )
    if isinstance(x, Mapping | list | tuple):
        for value in x.values() if isinstance(x, Mapping) else x:
            _check_tensors(value, what)
    if not isinstance(x, Tensor):
        return
    if x.numel() == 0:
        raise ValueError(
            f"{what}: is empty (a tensor of shape {tuple(x.shape)}); pass at least one datum."
        )
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        where = (~torch.isfinite(x)).nonzero()[0].tolist()
        raise ValueError(
            f"{what}: holds NaN or infinity, first at index {where}; remove such values, or fill "
            "them in and leave them "
            "out of the likelihood: poutine.mask, .mask(...) of its distribution, or "
            "vilvm.wrappers.partly_observed.partly_observed."
        )
