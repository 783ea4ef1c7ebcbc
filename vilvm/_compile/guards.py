"""Guards: the Python state that a trace has read, so that a program is used only while that state
is what it was.

A trace keeps the numbers, flags and functions that Python reads, attributes of modules, variables
of closures and globals, as constants. So every place that the code of a pair can reach is written
down with its value before the trace, and compared before the program is used. Places are told by
names: what no reachable code loads by its name is not compared, so that a callback may keep what
it likes on a module. State that is reached otherwise (an iterator, an extension) is not seen here;
comparisons with the eager step are for that.
"""

import argparse
import dis
import enum
import functools
import random
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["MOST_PROGRAMS", "Guards", "state_change_reason"]

MOST_PROGRAMS = 8  # that are made for the same tensors as Python state changes

_ABSENT: Any = object()
_SCALARS = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    types.NoneType,
    torch.dtype,
    torch.device,
    enum.Enum,
)
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
# of every module
_KEPT_APART = frozenset(vars(torch.nn.Module())) - {
    "training",
    "_forward_hooks",
    "_forward_pre_hooks",
}
_MOST = 256  # items of a list, dict or array that are looked through
# of the standard library, that hold what users put there
_PLAIN = (types.SimpleNamespace, argparse.Namespace)
_NOISE = (random.Random, np.random.Generator, np.random.RandomState)
_LIBRARIES = frozenset(sys.stdlib_module_names - {"__main__"}) | {
    "torch",
    "pyro",
    "numpy",
    "scipy",
    "vilvm",
    "torchvision",
}


class _Cell:
    """A variable of a closure, read as the one item of a mapping."""

    def __init__(self, cell: Any):
        self.cell = cell

    def get(self, key: Any, default: Any) -> Any:
        try:
            return self.cell.cell_contents
        except ValueError:  # not bound yet
            return default


class _Items:
    """A list, read by its indices."""

    def __init__(self, items: Any):
        self.items = items

    def get(self, key: int, default: Any) -> Any:
        return self.items[key] if key < len(self.items) else default


class _Count:
    """How many items a list or dict has."""

    def __init__(self, items: Any):
        self.items = items

    def get(self, key: Any, default: Any) -> Any:
        return len(self.items)


class _Whole:
    """All of a value that changes in place: a set, a small array, a generator of random numbers."""

    def __init__(self, value: Any):
        self.value = value

    def get(self, key: Any, default: Any) -> Any:
        if isinstance(self.value, np.ndarray):
            return self.value.tobytes()
        if isinstance(self.value, np.random.Generator):
            return str(self.value.bit_generator.state)
        if isinstance(self.value, np.random.RandomState):
            return numpy_state(self.value)
        return (
            hash(self.value.getstate())
            if isinstance(self.value, random.Random)
            else tuple(self.value)
        )


def numpy_state(source: Any) -> bytes:
    """Where a generator of numpy's older kind is, or ``np.random`` itself."""
    _, key, position, *_ = source.get_state()
    return key.tobytes() + bytes(str(position), "ascii")


class _Place(NamedTuple):
    """A place of Python state, what was there, and its name for users."""

    holder: Any
    key: Any
    value: Any
    name: str

    def now(self) -> Any:
        return self.holder.get(self.key, _ABSENT)

    @property
    def is_as_it_was(self) -> bool:
        now, value = self.holder.get(self.key, _ABSENT), self.value
        return now is value or (
            type(now) is type(value) and isinstance(now, (*_SCALARS, tuple)) and _equal(now, value)
        )


def _equal(a: Any, b: Any) -> bool:
    """Whether two scalars, or tuples of the same kind, are equal."""
    if isinstance(a, tuple):
        return len(a) == len(b) and all(
            x is y or (type(x) is type(y) and isinstance(x, _SCALARS) and x == y)
            for x, y in zip(a, b, strict=True)
        )
    return bool(a == b)


def state_change_reason(name: str) -> str:
    """Why a pair that moves state of its own cannot be compiled."""
    return f"{name} changes whenever the pair is run, and a program would keep it"


class Guards:
    """The state that code can read, by place.

    Arguments:
        places: all of them, with their values.
    """

    def __init__(self, places: Sequence[_Place]):
        self.places = tuple(places)
        self._quick = tuple((p.holder.get, p.key, p.value, p) for p in places)

    @classmethod
    def of(
        cls, roots: Iterable[Any], leave: Callable[[Any, Any], bool] = lambda holder, key: False
    ) -> "Guards":
        """The state that `roots`, modules and functions, can read now, but for the places
        (mapping, key) that are to be left out.
        """
        roots = list(roots)
        names: set[str] = set(_CALLED)
        while True:  # code that is reached by a name loads further names
            walk = _Walk(names)
            for root in roots:
                walk.into(
                    root,
                    type(root).__name__
                    if not isinstance(root, types.FunctionType)
                    else root.__name__,
                    is_root=True,
                )
            if walk.names == names:
                return cls([p for p in walk.places if not leave(p.holder, p.key)])
            names = walk.names

    def changed(self) -> _Place | None:
        """The first place that is not what it was."""
        for get, key, value, place in self._quick:
            if get(key, _ABSENT) is not value and not place.is_as_it_was:
                return place
        return None

    def settled(self, tensors: Iterable[Tensor]) -> tuple["Guards", "Guards"]:
        """Splits the guards of a trace that has just been taken.

        Arguments:
            tensors: those that the graph reads; no others are compared.

        Returns:
            The guards of places that running the code left alone, and the guards, with their new
            values, of those that it moved.
        """
        read = {id(t) for t in tensors}
        kept = [p for p in self.places if not isinstance(p.value, Tensor) or id(p.value) in read]
        still = [p for p in kept if p.is_as_it_was]
        moved = [
            p._replace(value=p.now())
            for p in kept
            if not p.is_as_it_was and isinstance(p.value, (Tensor, *_SCALARS))
        ]
        return Guards(still), Guards(moved)

    def what(self) -> str:
        """What has changed, in words, or nothing."""
        place = self.changed()
        if place is None:
            return ""
        now = place.now()
        if isinstance(place.holder, _Whole):
            return f"{place.name} was changed"
        if isinstance(place.value, _SCALARS) and isinstance(now, _SCALARS):
            return f"{place.name} changed from {place.value!r} to {now!r}"
        return f"{place.name} was {'removed' if now is _ABSENT else 'replaced'}"


@functools.lru_cache(maxsize=4096)
def _imports(code: types.CodeType) -> frozenset[str]:
    """The modules that a code object imports while it runs."""
    return frozenset(i.argval for i in dis.get_instructions(code) if i.opname == "IMPORT_NAME")


@functools.lru_cache(maxsize=4096)
def _loads(code: types.CodeType) -> frozenset[str]:
    """The names that a code object loads, those of attributes and strings among them, and those of
    the code within it.
    """
    found = {
        i.argval
        for i in dis.get_instructions(code)
        if i.opname.startswith(("LOAD", "IMPORT")) and isinstance(i.argval, str)
    }
    for constant in code.co_consts:
        found |= (
            _loads(constant)
            if isinstance(constant, types.CodeType)
            else {constant}
            if isinstance(constant, str)
            else set()
        )
    return frozenset(found)


def _size(value: Any) -> int:
    return value.size if isinstance(value, np.ndarray) else len(value)


def _is_library(module: Any) -> bool:
    return isinstance(module, str) and module.split(".")[0] in _LIBRARIES


def _is_of_library(value: Any) -> bool:
    """Whether a value is a module of a library, which nobody puts another in the place of."""
    return isinstance(value, types.ModuleType) and _is_library(value.__name__)


class _Walk:
    """One walk over all that is reached from some roots by the names that code loads."""

    def __init__(self, names: set[str]):
        self.reached, self.names = frozenset(names), set(names)
        self.places: list[_Place] = []
        self.seen: set[int] = set()
        self.kept: list[Any] = []  # so that no id is given out twice

    def into(self, value: Any, name: str, is_root: bool = False) -> None:
        """Writes down what can be read of a value."""
        if isinstance(value, (Tensor, *_SCALARS)) or id(value) in self.seen:
            return
        self.seen.add(id(value))
        self.kept.append(value)
        if isinstance(value, types.FunctionType):
            self._function(value, name, is_root)
        elif isinstance(value, types.MethodType):
            self.into(value.__self__, name, is_root)
            self.into(value.__func__, name, is_root)
        elif isinstance(value, functools.partial):
            for part in (value.func, *value.args, value.keywords):
                self.into(part, name)
        elif isinstance(value, torch.nn.Module):
            self._module(value, name)
        elif isinstance(value, types.ModuleType):
            if not _is_library(value.__name__):
                self._places(
                    vars(value), [n for n in vars(value) if n in self.reached], value.__name__
                )
        elif isinstance(value, dict):
            if len(value) <= _MOST:
                self.places.append(_Place(_Count(value), None, len(value), f"the size of {name}"))
                self._places(value, list(value), name)
        elif isinstance(value, list | tuple):
            if len(value) <= _MOST:
                self.places.append(_Place(_Count(value), None, len(value), f"the size of {name}"))
                self._places(_Items(value), range(len(value)), name)
        elif isinstance(value, type):
            if not _is_library(value.__module__):
                self._class(value, name)
        elif isinstance(value, _NOISE) or (
            isinstance(value, set | frozenset | np.ndarray) and _size(value) <= _MOST
        ):
            holder = _Whole(value)
            self.places.append(_Place(holder, None, holder.get(None, None), name))
        elif isinstance(value, _PLAIN) or not _is_library(type(value).__module__) or is_root:
            self._object(value, name)

    def _places(self, holder: Any, keys: Iterable[Any], name: str) -> None:
        for key in keys:
            value = holder.get(key, _ABSENT)
            if _is_of_library(value):
                continue
            label = f"{name}.{key}" if isinstance(key, str) else f"{name}[{key}]"
            self.places.append(_Place(holder, key, value, label))
            self.into(value, label)

    def _function(self, function: types.FunctionType, name: str, is_root: bool = False) -> None:
        code = function.__code__
        loads = _loads(code)
        self.names |= loads
        if _is_library(function.__module__) and not is_root:
            return
        for variable, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            holder = _Cell(cell)
            value = holder.get(None, _ABSENT)
            label = f"{variable} (in {function.__name__})"
            self.places.append(_Place(holder, None, value, label))
            self.into(value, variable)
        if not _is_library(function.__module__):
            self._places(
                function.__globals__,
                [n for n in sorted(loads) if n in function.__globals__],
                "global",
            )
            for module in (sys.modules.get(n) for n in _imports(code)):
                if module is not None:
                    self.into(module, name)
        self.places.append(
            _Place(
                _Slot(function),
                "__defaults__",
                function.__defaults__,
                f"the defaults of {function.__name__}",
            )
        )
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self.into(default, name)

    def _module(self, module: torch.nn.Module, name: str) -> None:
        own = vars(module)
        for part in ("_parameters", "_buffers", "_modules"):
            held = own.get(part) or {}
            for key, value in held.items():
                self.places.append(_Place(held, key, value, f"{name}.{key}"))
                self.into(value, f"{name}.{key}")
        self._object(module, name)

    def _object(self, value: Any, name: str) -> None:
        own = getattr(value, "__dict__", {})
        self._places(own, [k for k in own if k in self.reached and k not in _KEPT_APART], name)
        for slot in [
            s
            for k in type(value).__mro__
            for s in _slots(k)
            if s in self.reached and hasattr(value, s)
        ]:
            holder = _Slot(value)
            self.places.append(_Place(holder, slot, getattr(value, slot), f"{name}.{slot}"))
            self.into(getattr(value, slot), f"{name}.{slot}")
        self._class(type(value), name, own)

    def _class(self, kind: type, name: str, own: Any = None) -> None:
        """The attributes that a class and its bases hold, and the functions among them that are
        reached.
        """
        for base in kind.__mro__:
            is_library = _is_library(base.__module__)
            for key, value in vars(base).items():
                if key not in self.reached:
                    continue
                for function in _functions(value):
                    self.into(function, name)
                if is_library or isinstance(
                    value, property | staticmethod | classmethod | types.MemberDescriptorType
                ):
                    continue
                self.places.append(_Place(vars(base), key, value, f"{base.__name__}.{key}"))
                self.into(value, f"{base.__name__}.{key}")
                # where an attribute of its own would hide that of the class
                if own is not None and key not in own:
                    self.places.append(_Place(own, key, _ABSENT, f"{name}.{key}"))


class _Slot:
    """The slots of an object, read as a mapping."""

    def __init__(self, value: Any):
        self.value = value

    def get(self, key: str, default: Any) -> Any:
        return getattr(self.value, key, default)


def _slots(kind: type) -> Sequence[str]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _functions(value: Any) -> Iterator[types.FunctionType]:
    """The functions that an attribute of a class runs."""
    parts = (value.fget,) if isinstance(value, property) else (getattr(value, "__func__", value),)
    yield from (p for p in parts if isinstance(p, types.FunctionType))
