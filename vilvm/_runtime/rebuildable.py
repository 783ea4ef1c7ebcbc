"""Objects that remember how they were made, so that a saved model can be made again.

``rebuildable`` marks a class, or a function that makes a module. What it makes keeps a
``Recipe``: the name of its maker and its arguments, as data. An argument that is itself
rebuildable is kept as its recipe; one that no file can hold (a function of the user, say) is kept
as the reason.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

__all__ = [
    "Named",
    "Recipe",
    "Unrecorded",
    "is_rebuildable",
    "name_of",
    "rebuildable",
    "recipe_of",
]

_KEPT, _MARK = "_recipe", "_makes_rebuildable"


class Recipe(NamedTuple):
    """A maker and its arguments.

    Arguments:
        maker: its dotted name.
        arguments: by name; only those that were given.
    """

    maker: str
    arguments: dict[str, Any]


class Named(NamedTuple):
    """A class or function that is itself an argument, such as an activation.

    Arguments:
        name: its dotted name.
    """

    name: str


class Unrecorded(NamedTuple):
    """An argument that no file can hold.

    Arguments:
        what: its type or name, for messages.
    """

    what: str


def rebuildable[Maker: Callable[..., Any]](maker: Maker) -> Maker:
    """Marks a class, or a function that makes a module: what it makes keeps its arguments.

    ``vilvm.save`` writes them, so that ``vilvm.load(path, MyModel)`` makes the model again;
    ``vilvm.load(path)`` is enough for the classes of vilvm. The arguments must be numbers,
    strings, tensors, lists and dicts of these, or rebuildable themselves. A subclass must be
    marked itself.

    Arguments:
        maker: a class, or a function that returns a ``torch.nn.Module``, whose arguments have
            names (no ``*args`` or ``**kwargs``).

    Returns:
        The same class, or a function that does the same.

    Examples:
        >>> import torch
        >>> from vilvm.lvm import rebuildable
        >>> @rebuildable
        ... class Network(torch.nn.Module):
        ...     def __init__(self, width: int = 8):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(width, 1)
        >>> Network(width=3).layer.in_features
        3
    """
    if not isinstance(maker, type):
        return _marked_function(maker)
    return _marked_class(maker)


def _marked_class(maker: Any) -> Any:
    begin, signature = maker.__init__, inspect.signature(maker)

    @functools.wraps(begin)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        if type(self) is maker:
            _keep(self, maker, signature.bind(*args, **kwargs))

    maker.__init__ = __init__
    setattr(maker, _MARK, maker)
    return maker


def _marked_function(maker: Any) -> Any:
    signature = inspect.signature(maker)

    @functools.wraps(maker)
    def make(*args: Any, **kwargs: Any) -> Any:
        made = maker(*args, **kwargs)
        _keep(made, make, signature.bind(*args, **kwargs))
        return made

    setattr(make, _MARK, make)
    return make


def is_rebuildable(maker: object) -> bool:
    """Whether a class or function is itself marked, and not only a base class of it."""
    return getattr(maker, _MARK, None) is maker


def recipe_of(made: object) -> Recipe | None:
    """How an object was made, if its maker is marked."""
    return getattr(made, "__dict__", {}).get(_KEPT)


def name_of(maker: Any) -> str:
    """The dotted name of a class or function."""
    return f"{maker.__module__}.{maker.__qualname__}"


def _keep(made: Any, maker: Any, bound: inspect.BoundArguments) -> None:
    arguments = {n: _recorded(v) for n, v in bound.arguments.items()}
    vars(made)[_KEPT] = Recipe(name_of(maker), arguments)


def _recorded(value: Any) -> Any:
    """An argument as data."""
    if value is None or isinstance(value, bool | int | float | str | np.generic):
        return value
    if isinstance(value, Tensor):
        return value.detach()
    if type(value) in (list, tuple):
        return type(value)(_recorded(v) for v in value)
    if type(value) is dict:
        return {k: _recorded(v) for k, v in value.items()}
    return recipe_of(value) or _name_or_reason(value)


def _name_or_reason(value: Any) -> Named | Unrecorded:
    if isinstance(value, type) or inspect.isfunction(value):
        return Named(name_of(value))
    return Unrecorded(type(value).__name__)
