"""Whether Python reads a value that depends on the latents: a branch on it would be one for all
samples of a vectorised run.
"""

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vilvm.data.tensors import tensors_of

__all__ = ["Reads"]

_READS = {
    f"__{n}__" for n in ("array", "bool", "complex", "contains", "float", "index", "int")
} | {
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
_PASSED_OVER = ("torch", "pyro", "vilvm", "contextlib")


class Reads(TorchFunctionMode):
    """Follows what is computed of some tensors, and notes whether the user's code reads a value of
    it.

    Arguments:
        sources: the tensors that are followed.
    """

    def __init__(self, sources: Iterable[Tensor]):
        super().__init__()
        # held, so that no other tensor takes their place
        self.followed = {id(t): t for t in sources}
        self.found: set[str] = set()  # the names of what read it

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tensors_of([list(args), dict(kwargs or {})])
        follows = any(id(t) in self.followed for t in given)
        if follows and self._is_read(func, args) and _is_of_user():
            self.found.add(func.__name__)
        result = func(*args, **(kwargs or {}))
        if follows:
            made = (
                [result]
                if isinstance(result, Tensor)
                else tensors_of(result)
                if isinstance(result, list | tuple)
                else []
            )
            self.followed.update((id(t), t) for t in made)
            if (
                args
                and isinstance(args[0], Tensor)
                and getattr(func, "__name__", "") == "__setitem__"
            ):
                self.followed[id(args[0])] = args[0]
        return result

    def _is_read(self, func: Any, args: Any) -> bool:
        name = getattr(func, "__name__", "")
        # by a mask: what is picked has a size that depends on values
        if name in ("__getitem__", "__setitem__"):
            return any(
                t.dtype == torch.bool and id(t) in self.followed for t in tensors_of([args[1]])
            )
        return name in _READS or (name == "where" and len(args) == 1)


def _is_of_user() -> bool:
    """Whether the innermost frame that is not torch's is the user's, and not Pyro's or ours."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        name = frame.f_globals.get("__name__", "").split(".")[0]
        if name != "torch":
            return name not in _PASSED_OVER
        frame = frame.f_back
    return False
