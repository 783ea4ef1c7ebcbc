"""Whether Python reads a value that depends on the latents.

A branch on such a value would be one branch for all samples of a vectorised run.
"""

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vilvm.data.tensors import tensors_of

__all__ = ["ValueReads"]

_READS = {
    "__array__",
    "__bool__",
    "__complex__",
    "__contains__",
    "__float__",
    "__index__",
    "__int__",
    "allclose",
    "argwhere",
    "equal",
    "item",
    "masked_select",
    "nonzero",
    "numpy",
    "tolist",
    "unique",
    "unique_consecutive",
}
_LIBRARIES = ("torch", "pyro", "vilvm", "contextlib")


class ValueReads(TorchFunctionMode):
    """Records which functions of the user's code read a value computed from some tensors.

    Arguments:
        sources: these tensors; tensors computed from them are followed too.
    """

    def __init__(self, sources: Iterable[Tensor]):
        super().__init__()
        # kept alive, so that no other tensor has their id
        self.followed = {id(tensor): tensor for tensor in sources}
        self.found: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not any(
            id(t) in self.followed for t in tensors_of([list(args), dict(kwargs)])
        ):
            return func(*args, **kwargs)
        if self._is_read(func, args) and _is_called_by_user():
            self.found.add(func.__name__)
        result = func(*args, **kwargs)
        self._follow(result)
        if args and getattr(func, "__name__", "") == "__setitem__":
            self._follow(args[0])
        return result

    def _follow(self, result: Any) -> None:
        if isinstance(result, Tensor | list | tuple):
            self.followed.update((id(tensor), tensor) for tensor in tensors_of(result))

    def _is_read(self, func: Any, args: Any) -> bool:
        name = getattr(func, "__name__", "")
        # the number of entries that a mask picks depends on values
        if name in ("__getitem__", "__setitem__"):
            masks = [t for t in tensors_of([args[1]]) if t.dtype == torch.bool]
            return any(id(mask) in self.followed for mask in masks)
        return name in _READS or (name == "where" and len(args) == 1)


def _is_called_by_user() -> bool:
    """Whether the innermost frame outside torch belongs neither to Pyro nor to vilvm."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        name = frame.f_globals.get("__name__", "").split(".")[0]
        if name != "torch":
            return name not in _LIBRARIES
        frame = frame.f_back
    return False
