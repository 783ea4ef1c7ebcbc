"""Nestings of tensors: a tensor, or a tuple, list or dict of nestings."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from vilvm.data.streamed import StreamedTensor

__all__ = [
    "like_nesting",
    "map_tensors",
    "named_tensors",
    "structure_of",
    "tensors_of",
]


def map_tensors(fn: Callable[[Any], Any], batch: Any) -> Any:
    """Applies a function to every tensor and ``StreamedTensor`` of a batch.

    Arguments:
        fn: called with each tensor.
        batch: a nesting of tuples, lists and dicts; other values stay as they are.

    Returns:
        The results in the same nesting.

    Examples:
        >>> import torch
        >>> from vilvm.data.tensors import map_tensors
        >>> map_tensors(len, {"x": torch.zeros(3, 2), "n": 5})
        {'x': 3, 'n': 5}
    """
    if isinstance(batch, Tensor | StreamedTensor):
        return fn(batch)
    if isinstance(batch, Mapping):
        parts = [map_tensors(fn, value) for value in batch.values()]
        return like_nesting(batch, parts)
    if isinstance(batch, list | tuple):
        return like_nesting(batch, [map_tensors(fn, value) for value in batch])
    return batch


def like_nesting(nesting: Any, parts: Iterable[Any]) -> Any:
    """The parts, nested as those of a mapping, list or tuple are.

    Arguments:
        nesting: a mapping, a list or a tuple, also a NamedTuple.
        parts: in its order.

    Returns:
        A dict for a mapping; otherwise a value of the type of `nesting`.

    Examples:
        >>> from vilvm.data.tensors import like_nesting
        >>> like_nesting({"x": 1, "y": 2}, [3, 4]), like_nesting((1, 2), [3, 4])
        ({'x': 3, 'y': 4}, (3, 4))
    """
    if isinstance(nesting, Mapping):
        return dict(zip(nesting, parts, strict=True))
    if hasattr(nesting, "_fields"):  # a NamedTuple takes its fields one by one
        return type(nesting)(*parts)
    return type(nesting)(parts)


def tensors_of(batch: Any) -> list[Any]:
    """Lists every tensor and ``StreamedTensor`` of a batch.

    Arguments:
        batch: a nesting of tuples, lists and dicts.

    Returns:
        The tensors, in order.

    Examples:
        >>> import torch
        >>> from vilvm.data.tensors import tensors_of
        >>> [len(t) for t in tensors_of((torch.zeros(3), {"y": torch.zeros(4)}))]
        [3, 4]
    """
    return [tensor for _, tensor in named_tensors(batch)]


def named_tensors(batch: Any, name: str = "x") -> Iterator[tuple[str, Any]]:
    """Yields every tensor of a batch with the expression that picks it.

    Arguments:
        batch: a nesting of tuples, lists and dicts.
        name: the expression of the batch.

    Returns:
        An iterator of pairs, the expression such as x, x[1] or x['y'], and the tensor.

    Examples:
        >>> import torch
        >>> from vilvm.data.tensors import named_tensors
        >>> [name for name, _ in named_tensors((torch.zeros(3), {"y": torch.zeros(4)}))]
        ['x[0]', "x[1]['y']"]
    """
    if isinstance(batch, Tensor | StreamedTensor):
        yield name, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from named_tensors(value, f"{name}[{key!r}]")
    elif isinstance(batch, list | tuple):
        for i, value in enumerate(batch):
            yield from named_tensors(value, f"{name}[{i}]")


def structure_of(batch: Any) -> Any:
    """The structure of a batch: how its tensors are nested, their keys, and all other values.

    Arguments:
        batch: a nesting of tuples, lists and dicts.

    Returns:
        A hashable value, equal for batches of one structure.

    Examples:
        >>> import torch
        >>> from vilvm.data.tensors import structure_of
        >>> structure_of((torch.zeros(3), 1)) == structure_of((torch.zeros(9), 1))
        True
    """
    if isinstance(batch, Tensor | StreamedTensor):
        return Tensor
    if isinstance(batch, Mapping):
        return (dict, *((key, structure_of(value)) for key, value in batch.items()))
    if isinstance(batch, list | tuple):
        return (type(batch), *map(structure_of, batch))
    return repr(batch)
