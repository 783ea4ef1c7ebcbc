"""The Python state that code can reach from some roots, by the names that it loads."""

import argparse
import dis
import functools
import random
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vilvm._compile.places import (
    ABSENT,
    SCALARS,
    Cell,
    Count,
    Items,
    Place,
    Slot,
    Whole,
)

__all__ = ["reachable_places"]

# Methods that are called without code that loads their names.
_CALLED = (
    "forward",
    "__call__",
    "model",
    "guide",
    "_model",
    "_guide",
    "__getattr__",
    "__getattribute__",
    "differentiable_loss",
    "loss_and_grads",
)
# Attributes of every module that hold no state of the user's.
_OF_MODULES = frozenset(vars(torch.nn.Module())) - {
    "training",
    "_forward_hooks",
    "_forward_pre_hooks",
}
_MOST = 256  # items of a list, dict or array that are compared
# Classes of the standard library that hold what users put there.
_PLAIN = (types.SimpleNamespace, argparse.Namespace)
_NOISE = (random.Random, np.random.Generator, np.random.RandomState)
_SMALL = (set, frozenset, np.ndarray)
_LIBRARIES = frozenset(sys.stdlib_module_names - {"__main__"}) | {
    "torch",
    "pyro",
    "numpy",
    "scipy",
    "vilvm",
    "torchvision",
}


def reachable_places(roots: Sequence[Any]) -> list[Place]:
    """All places that the code of some modules and functions can read, with their values.

    Code that is reached by a name loads further names, so the search is repeated until it finds no
    new ones.
    """
    names: set[str] = set(_CALLED)
    while True:
        search = _Search(names)
        for root in roots:
            search.visit(root, _name_of(root), is_root=True)
        if search.names == names:
            return search.places
        names = search.names


def _name_of(root: Any) -> str:
    return (
        root.__name__ if isinstance(root, types.FunctionType) else type(root).__name__
    )


class _Search:
    """One search with a set of names.

    Arguments:
        names: attributes and globals with other names are not visited.
    """

    def __init__(self, names: set[str]):
        self.reached = frozenset(names)
        self.names = set(names)
        self.places: list[Place] = []
        self.seen: set[int] = set()
        self.kept: list[Any] = []  # so that no id is used twice

    def visit(self, value: Any, name: str, is_root: bool = False) -> None:
        """Adds the places in a value."""
        if isinstance(value, (Tensor, *SCALARS)) or id(value) in self.seen:
            return
        self.seen.add(id(value))
        self.kept.append(value)
        if isinstance(value, types.FunctionType):
            self._visit_function(value, name, is_root)
        elif isinstance(value, types.MethodType):
            self.visit(value.__self__, name, is_root)
            self.visit(value.__func__, name, is_root)
        elif visit := self._visitor(value):
            visit(value, name)
        elif (
            isinstance(value, _PLAIN)
            or is_root
            or not _is_library(type(value).__module__)
        ):
            self._visit_object(value, name)

    def _visitor(self, value: Any) -> Callable[[Any, str], None] | None:
        """How to visit a value of a known kind."""
        kinds: list[tuple[Any, Callable[[Any, str], None]]] = [
            (functools.partial, self._visit_partial),
            (torch.nn.Module, self._visit_module),
            (types.ModuleType, self._visit_python_module),
            (dict, self._visit_dict),
            ((list, tuple), self._visit_list),
            (type, self._visit_type),
            (_NOISE, self._visit_whole),
        ]
        for kind, visit in kinds:
            if isinstance(value, kind):
                return visit
        if isinstance(value, _SMALL) and _size(value) <= _MOST:
            return self._visit_whole
        return None

    def _add(
        self,
        holder: Any,
        key: Any,
        value: Any,
        name: str,
    ) -> None:
        """Adds a place, and those in its value."""
        self.places.append(Place(holder, key, value, name))
        self.visit(value, name)

    def _add_all(self, holder: Any, keys: Iterable[Any], name: str) -> None:
        for key in keys:
            value = holder.get(key, ABSENT)
            if _is_library_module(value):
                continue
            label = f"{name}.{key}" if isinstance(key, str) else f"{name}[{key}]"
            self._add(holder, key, value, label)

    # Containers
    # ------------------------------------------------------------------------------------

    def _visit_partial(self, value: Any, name: str) -> None:
        for part in (value.func, *value.args, value.keywords):
            self.visit(part, name)

    def _visit_dict(self, value: Any, name: str) -> None:
        if len(value) <= _MOST:
            self.places.append(
                Place(Count(value), None, len(value), f"the size of {name}")
            )
            self._add_all(value, list(value), name)

    def _visit_list(self, value: Any, name: str) -> None:
        if len(value) <= _MOST:
            self.places.append(
                Place(Count(value), None, len(value), f"the size of {name}")
            )
            self._add_all(Items(value), range(len(value)), name)

    def _visit_whole(self, value: Any, name: str) -> None:
        holder = Whole(value)
        self.places.append(Place(holder, None, holder.get(None, None), name))

    def _visit_python_module(self, value: Any, name: str) -> None:
        if not _is_library(value.__name__):
            held = vars(value)
            self._add_all(held, [n for n in held if n in self.reached], value.__name__)

    # Functions
    # ------------------------------------------------------------------------------------

    def _visit_function(
        self,
        function: types.FunctionType,
        name: str,
        is_root: bool,
    ) -> None:
        """Adds closure, globals, imported modules and defaults of a function."""
        is_library = _is_library(function.__module__)
        self.names |= _loads(function.__code__)
        if is_library and not is_root:
            return
        self._visit_closure(function)
        if not is_library:
            self._visit_globals(function, name)
        defaults = f"the defaults of {function.__name__}"
        held = function.__defaults__
        self.places.append(Place(Slot(function), "__defaults__", held, defaults))
        for default in (*(held or ()), *(function.__kwdefaults__ or {}).values()):
            self.visit(default, name)

    def _visit_closure(self, function: types.FunctionType) -> None:
        variables = function.__code__.co_freevars
        cells = function.__closure__ or ()
        for variable, cell in zip(variables, cells, strict=True):
            holder = Cell(cell)
            value = holder.get(None, ABSENT)
            label = f"{variable} (in {function.__name__})"
            self.places.append(Place(holder, None, value, label))
            self.visit(value, variable)

    def _visit_globals(self, function: types.FunctionType, name: str) -> None:
        code = function.__code__
        held = function.__globals__
        self._add_all(held, [n for n in sorted(_loads(code)) if n in held], "global")
        for module in map(sys.modules.get, _imports(code)):
            if module is not None:
                self.visit(module, name)

    # Objects
    # ------------------------------------------------------------------------------------

    def _visit_module(self, module: Any, name: str) -> None:
        """Adds parameters, buffers, parts and attributes of a torch module."""
        own = vars(module)
        for part in ("_parameters", "_buffers", "_modules"):
            held = own.get(part) or {}
            for key, value in held.items():
                self._add(held, key, value, f"{name}.{key}")
        self._visit_object(module, name)

    def _visit_object(self, value: Any, name: str) -> None:
        own = getattr(value, "__dict__", {})
        keys = [k for k in own if k in self.reached and k not in _OF_MODULES]
        self._add_all(own, keys, name)
        for slot in _slots(type(value)):
            if slot in self.reached and hasattr(value, slot):
                self._add(Slot(value), slot, getattr(value, slot), f"{name}.{slot}")
        self._visit_class(type(value), name, own)

    def _visit_type(self, kind: Any, name: str) -> None:
        if not _is_library(kind.__module__):
            self._visit_class(kind, name, None)

    def _visit_class(self, kind: type, name: str, own: Any) -> None:
        """Adds the attributes of a class and its bases, and the functions among them.

        Arguments:
            kind: the class.
            name: of the value.
            own: the attributes of an instance, which may hide those of the class; None without
                one.
        """
        for base in kind.__mro__:
            is_library = _is_library(base.__module__)
            for key, value in vars(base).items():
                if key not in self.reached:
                    continue
                for function in _functions(value):
                    self.visit(function, name)
                if is_library or isinstance(value, _DESCRIPTORS):
                    continue
                self._add(vars(base), key, value, f"{base.__name__}.{key}")
                if own is not None and key not in own:
                    self.places.append(Place(own, key, ABSENT, f"{name}.{key}"))


_DESCRIPTORS = (property, staticmethod, classmethod, types.MemberDescriptorType)


@functools.lru_cache(maxsize=4096)
def _imports(code: types.CodeType) -> frozenset[str]:
    """The modules that a code object imports while it runs."""
    return frozenset(
        i.argval for i in dis.get_instructions(code) if i.opname == "IMPORT_NAME"
    )


@functools.lru_cache(maxsize=4096)
def _loads(code: types.CodeType) -> frozenset[str]:
    """The names that a code object and those inside it load, including attributes and strings."""
    loading = (
        i for i in dis.get_instructions(code) if i.opname.startswith(("LOAD", "IMPORT"))
    )
    found = {i.argval for i in loading if isinstance(i.argval, str)}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _loads(constant)
        elif isinstance(constant, str):
            found.add(constant)
    return frozenset(found)


def _size(value: Any) -> int:
    return value.size if isinstance(value, np.ndarray) else len(value)


def _is_library(module: Any) -> bool:
    return isinstance(module, str) and module.split(".")[0] in _LIBRARIES


def _is_library_module(value: Any) -> bool:
    """Whether a value is a module of a library, which is never replaced."""
    return isinstance(value, types.ModuleType) and _is_library(value.__name__)


def _slots(kind: type) -> Iterator[str]:
    """The slots of a class and its bases."""
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        yield from (slots,) if isinstance(slots, str) else slots


def _functions(value: Any) -> Iterator[types.FunctionType]:
    """The functions that an attribute of a class runs."""
    function = getattr(value, "__func__", value)
    if isinstance(value, property):
        function = value.fget
    if isinstance(function, types.FunctionType):
        yield function
