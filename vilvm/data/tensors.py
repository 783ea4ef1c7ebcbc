"""Batches: tensors, and tuples and dicts of tensors."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from vilvm.data.streamed import StreamedTensor

__all__ = ["kind_of", "map_tensors", "named_tensors", "tensors_of"]


def map_tensors(fn: Callable[[Any], Any], batch: Any) -> Any:
    """`fn` applied to every tensor of a batch, and to rows on disk, whatever its nesting of tuples
    and dicts; the rest is left as it is.
    """
    if isinstance(batch, Tensor | StreamedTensor):
        return fn(batch)
    if isinstance(batch, Mapping):
        return {key: map_tensors(fn, value) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        items = [map_tensors(fn, value) for value in batch]
        # a NamedTuple takes them one by one
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    return batch


def tensors_of(batch: Any) -> list[Any]:
    """Every tensor of a batch, and rows on disk, in order."""
    return [tensor for _, tensor in named_tensors(batch)]


def named_tensors(batch: Any, name: str = "x") -> Iterator[tuple[str, Any]]:
    """Every tensor of a batch, and rows on disk, in order, under the expression that picks it: x,
    x[1], x['y'].
    """
    if isinstance(batch, Tensor | StreamedTensor):
        yield name, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from named_tensors(value, f"{name}[{key!r}]")
    elif isinstance(batch, list | tuple):
        for place, value in enumerate(batch):
            yield from named_tensors(value, f"{name}[{place}]")


def kind_of(batch: Any) -> Any:
    """What a batch is apart from its tensors: how they are nested, under which names, and what
    stands beside them. Hashable.
    """
    if isinstance(batch, Tensor | StreamedTensor):
        return Tensor
    if isinstance(batch, Mapping):
        return (dict, *((key, kind_of(value)) for key, value in batch.items()))
    if isinstance(batch, list | tuple):
        return (type(batch), *map(kind_of, batch))
    return repr(batch)
