"""The torch modules that a function refers to, found by reading the function without running it.

A function refers to the contents of its closure and its defaults, and to the globals that its code
names. The search continues through functions, ``functools.partial`` (every ``pyro.poutine``
handler of a function is one), bound methods, lists, tuples, dicts, objects of the user's classes,
distributions, and the model within an autoguide. In functions of installed packages it reads
closures but not globals.
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

_ITEMS = 1000  # largest number of items that are searched in a container
_HERE = str(Path(__file__).parent)
_INSTALLED = (
    _HERE,
    *{sysconfig.get_path(p) for p in ("stdlib", "platstdlib", "purelib", "platlib")},
)
_ANNOUNCE = pyro.module.__code__
# the installed classes whose objects are searched
_READ = (Messenger, torch.distributions.Distribution, torch.distributions.Transform)


def held_modules(**parts: Any) -> dict[str, Module]:
    """The modules that callables refer to, by name of the variable or attribute.

    Arguments:
        parts: callables by name; a callable that is a module is listed under that name.

    Returns:
        Every module once, without the submodules of another one, in the order of the search, which
        depends only on the code.

    Examples:
        >>> import torch
        >>> from vilvm.lvm import held_modules
        >>> network = torch.nn.Linear(2, 3)
        >>> list(held_modules(model=lambda x, decoder=network: decoder(x)))
        ['decoder']
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
    """`name`, with a number if it is taken."""
    free, number = name, 0
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free


def _within(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The values that a value refers to, each with a name."""
    if isinstance(value, Module):
        yield from _of_module(value)
    elif isinstance(value, types.FunctionType):
        yield from _of_function(value)
    elif isinstance(value, types.MethodType | functools.partial):
        yield from _of_bound(name, value)
    elif isinstance(value, dict | list | tuple | set | frozenset):
        yield from _of_container(name, value)
    elif isinstance(value, _READ):
        yield from _of_object(value)
    elif isinstance(value, type | types.ModuleType) or _is_installed(type(value)):
        return
    else:
        yield from _of_object(value)


def _of_bound(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, types.MethodType):
        yield name, value.__self__
        yield name, value.__func__
        return
    yield name, value.func
    yield from ((name, v) for v in value.args)
    yield from value.keywords.items()


def _of_container(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    items: Any = enumerate(value)
    if isinstance(value, dict):
        items = value.items()
    for key, item in list(items)[:_ITEMS]:
        yield f"{name}_{key}", item


def _of_object(value: Any) -> Iterator[tuple[str, Any]]:
    yield from getattr(value, "__dict__", {}).items()
    yield from _functions_of(type(value))


def _of_module(module: Module) -> Iterator[tuple[str, Any]]:
    """The model of an autoguide, which hides it in a tuple; else the methods of the user's class.

    These methods may name networks.
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
    code, defaults = function.__code__, function.__defaults__ or ()
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not filled yet
            continue
    arguments = code.co_varnames[: code.co_argcount]
    yield from zip(arguments[len(arguments) - len(defaults) :], defaults, strict=True)
    yield from (function.__kwdefaults__ or {}).items()
    yield from vars(function).items()  # __wrapped__ among them
    if not code.co_filename.startswith(_INSTALLED):
        yield from _globals_of(code, function.__globals__)


def _globals_of(
    code: types.CodeType, scope: dict[str, Any]
) -> Iterator[tuple[str, Any]]:
    """The globals that code names, including the functions defined in it.

    For a Python module that the code names, these are its networks that the code also names.
    """
    loads = [i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"]
    for name in dict.fromkeys(loads):
        value = scope.get(name)
        if isinstance(value, types.ModuleType):
            yield from _named_networks(value, code)
        elif value is not None:
            yield name, value
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _globals_of(inner, scope)


def _named_networks(
    module: types.ModuleType, code: types.CodeType
) -> Iterator[tuple[str, Any]]:
    for name in code.co_names:
        value = vars(module).get(name)
        if isinstance(value, Module):
            yield name, value


@functools.cache
def _is_installed(kind: type) -> bool:
    """Whether a class belongs to Python or to an installed package."""
    if kind.__module__ == "builtins":
        return True
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    if file is None:
        return kind.__module__ != "__main__"
    return file.startswith(_INSTALLED)


def module_on_the_stack(parameter: torch.Tensor, lvm: Module) -> Module | None:
    """The module from which a running call of `lvm` reads this parameter.

    It is the module that ``pyro.module`` announces, else the outermost module whose method is
    running. None if there is no such module, as during the construction of a module.
    """
    found = None
    for frame in _callers():
        if frame.f_code is _ANNOUNCE:
            return frame.f_locals["nn_module"]
        if "self" not in frame.f_code.co_varnames:
            continue
        owner = frame.f_locals.get("self")
        if (
            isinstance(owner, Module)
            and _has(owner, parameter)
            and not _contains(owner, lvm)
        ):
            found = owner
    return found


def _callers() -> Iterator[types.FrameType]:
    """The frames of the callers, innermost first, up to the next one in this folder."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back
    while frame is not None and not frame.f_code.co_filename.startswith(_HERE):
        yield frame
        frame = frame.f_back


def _has(module: Module, parameter: torch.Tensor) -> bool:
    return any(p is parameter for p in module.parameters())


def _contains(module: Module, part: Module) -> bool:
    return any(m is part for m in module.modules())
