"""The torch modules that a function holds, found by reading the function: nothing is run.

A function holds what its closure and its defaults contain and what its code names among its
globals. The search goes on through the functions that it holds, through ``functools.partial`` (as
every ``pyro.poutine`` handler of a function is), bound methods, lists, tuples, dicts, objects of
the user's classes, distributions, and the model within an autoguide. Of installed packages
closures are read, but no globals.
"""

import dis
import functools
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer.autoguide.guides import AutoGuide
from pyro.poutine.messenger import Messenger
from torch.nn import Module

__all__ = ["held_modules", "module_on_the_stack"]

_ITEMS = 1000  # of a container that are looked at; networks do not come by the thousand
_HERE = str(Path(__file__).parent)
_INSTALLED = (
    _HERE,
    *{sysconfig.get_path(p) for p in ("stdlib", "platstdlib", "purelib", "platlib")},
)
_ANNOUNCE = pyro.module.__code__
# of installed classes
_READ = (Messenger, torch.distributions.Distribution, torch.distributions.Transform)


def held_modules(**parts: Any) -> dict[str, Module]:
    """The modules that callables hold, by the name of the variable or attribute that holds them.

    Arguments:
        parts: callables by name; one that is a module itself is found under that name.

    Returns:
        Every module once, in the order of the search, which follows from the code alone; none that
        is part of another.
    """
    found: dict[str, Module] = {}
    seen: dict[int, Any] = {}  # by reference, so that no id is used twice
    ahead = [(name, part) for name, part in reversed(parts.items())]
    while ahead:
        name, value = ahead.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, Module):
            found[_free(name, found)] = value
        ahead.extend(reversed(list(_within(name, value))))
    parts_of_others = {id(p) for m in found.values() for p in m.modules() if p is not m}
    return {name: m for name, m in found.items() if id(m) not in parts_of_others}


def _free(name: str, taken: Mapping[str, Any]) -> str:
    """`name`, numbered if it is taken."""
    return next(
        n for n in (name, *(f"{name}_{i}" for i in range(1, 1 + len(taken) + 1))) if n not in taken
    )


def _within(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What a value holds, with the name under which it does."""
    if isinstance(value, Module):
        yield from _of_module(value)
    elif isinstance(value, types.FunctionType):
        yield from _of_function(value)
    elif isinstance(value, types.MethodType):
        yield name, value.__self__
        yield name, value.__func__
    elif isinstance(value, functools.partial):
        yield name, value.func
        yield from ((name, v) for v in value.args)
        yield from value.keywords.items()
    elif isinstance(value, dict):
        yield from ((f"{name}_{k}", v) for k, v in list(value.items())[:_ITEMS])
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"{name}_{i}", v) for i, v in enumerate(list(value)[:_ITEMS]))
    elif isinstance(value, _READ) or not (
        isinstance(value, type | types.ModuleType) or _is_installed(type(value))
    ):
        yield from getattr(value, "__dict__", {}).items()
        yield from _functions_of(type(value))


def _of_module(module: Module) -> Iterator[tuple[str, Any]]:
    """An autoguide hides its model in a tuple; any other module may name networks in its
    ``forward``.
    """
    if isinstance(module, AutoGuide):
        for held in ("_model", "_original_model", "_guide"):
            yield "model", module.__dict__.get(held)
    elif not _is_installed(type(module)):
        yield from _functions_of(type(module))


def _functions_of(kind: type) -> Iterator[tuple[str, Any]]:
    return (
        (n, f)
        for n, f in vars(kind).items()
        if isinstance(f, types.FunctionType) and not _is_installed(kind)
    )


def _of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not filled yet
            continue
    defaults = function.__defaults__ or ()
    arguments = function.__code__.co_varnames[: function.__code__.co_argcount]
    yield from zip(arguments[len(arguments) - len(defaults) :], defaults, strict=True)
    yield from (function.__kwdefaults__ or {}).items()
    yield from vars(function).items()  # __wrapped__ among them
    if not function.__code__.co_filename.startswith(_INSTALLED):
        yield from _globals_of(function.__code__, function.__globals__)


def _globals_of(code: types.CodeType, names: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The globals that code and the functions defined in it name; of a Python module, those of its
    networks that they name.
    """
    for name in {i.argval: None for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}:
        value = names.get(name)
        if isinstance(value, types.ModuleType):
            yield from (
                (n, vars(value)[n])
                for n in code.co_names
                if isinstance(vars(value).get(n), Module)
            )
        elif value is not None:
            yield name, value
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _globals_of(inner, names)


@functools.cache
def _is_installed(kind: type) -> bool:
    """Whether a class is Python's own or an installed package's."""
    if kind.__module__ == "builtins":
        return True
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return (file is None and kind.__module__ != "__main__") or (file or "").startswith(_INSTALLED)


def module_on_the_stack(parameter: torch.Tensor, lvm: Module) -> Module | None:
    """The module with this parameter that is at work on behalf of `lvm`: announced by
    ``pyro.module``, else the outermost one in whose method the parameter is read. None if there is
    none, as while a module is being made."""
    frame, found = sys._getframe(1), None
    while frame is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back
    while frame is not None and not frame.f_code.co_filename.startswith(_HERE):
        if frame.f_code is _ANNOUNCE:
            return frame.f_locals["nn_module"]
        value = frame.f_locals.get("self") if "self" in frame.f_code.co_varnames else None
        if isinstance(value, Module) and any(p is parameter for p in value.parameters()):
            found = value if not any(m is lvm for m in value.modules()) else found
        frame = frame.f_back
    return found
