"""The settings of a run as text, which must be equal when it is resumed.

A function is described by a digest of its code, the constants and plain globals that the code
names, and its defaults and closure. Only numbers, strings, functions and tuples of them enter the
digest. Versions of Python compile to different code, so the digests of two versions are not
compared.
"""

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import CodeType, FunctionType
from typing import Any

import torch

__all__ = [
    "code_of",
    "describe_objective",
    "describe_optimizer",
    "describe_scheduler",
    "functions_of",
]

_PLAIN = int | float | str | bool | bytes | None


def describe_objective(objective: Any) -> str:
    """The class of an objective, its plain settings, and the objective inside it."""
    kept = objective.state_dict() if hasattr(objective, "state_dict") else {}
    own = getattr(objective, "__dict__", {})
    text = _plain({k: v for k, v in own.items() if k not in kept})
    inner = getattr(objective, "objective", None)
    if inner is not None:
        text += f" of {describe_objective(inner)}"
    return f"{type(objective).__name__}({text})"


def _plain(values: Mapping[str, Any]) -> str:
    """The public plain values, as text."""
    kinds = (int, float, str, bool, tuple)
    parts = []
    for name, value in sorted(values.items()):
        if name[0] != "_" and isinstance(value, kinds):
            parts.append(f"{name}={value!r}")
    return ", ".join(parts)


def describe_optimizer(
    optimizer: torch.optim.Optimizer, by_name: Sequence[Mapping[str, Any]]
) -> str:
    """The options of an optimizer before its first step, and those of groups that differ.

    Arguments:
        optimizer: a torch optimizer.
        by_name: the options by group, if they were given by the names of parameters.
    """
    kind = f"{type(optimizer).__name__}({_plain(optimizer.defaults)})"
    if by_name:
        text = (_plain({**g, "parameters": len(g["params"])}) for g in by_name)
        return f"{kind} by name: {'; '.join(text)}"
    groups = [
        (_own_options(optimizer, g), len(g["params"])) for g in optimizer.param_groups
    ]
    if any(own for own, _ in groups):
        text = (_plain({**own, "parameters": count}) for own, count in groups)
        return f"{kind} by group: {'; '.join(text)}"
    return kind


def _own_options(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any]
) -> dict[str, Any]:
    """The options of a group that differ from the defaults of its optimizer."""
    defaults = optimizer.defaults
    own = {k: _number(v) for k, v in group.items() if k in defaults and k != "lr"}
    # A scheduler of an earlier run has changed lr, and kept the first as initial_lr.
    if "lr" in defaults:
        own["lr"] = _number(group.get("initial_lr", group.get("lr")))
    return {k: v for k, v in own.items() if repr(v) != repr(defaults[k])}


def _number(value: Any) -> Any:
    """The number in a tensor of one element; any other value unchanged."""
    is_number = isinstance(value, torch.Tensor) and value.numel() == 1
    return value.item() if is_number else value


def describe_scheduler(scheduler: Any) -> str:
    """The options of a scheduler before its first step, and the schedulers inside it."""
    if scheduler is None:
        return "none"
    options = vars(scheduler)
    text = _plain(options | _lists_of_numbers(options))
    inner = ", ".join(map(describe_scheduler, getattr(scheduler, "_schedulers", [])))
    if inner:
        marks = ""
        if hasattr(scheduler, "_milestones"):
            marks = f"at {list(scheduler._milestones)} "
        inner = f" {marks}of {inner}"
    return f"{type(scheduler).__name__}({text}{inner})"


def _lists_of_numbers(options: Mapping[str, Any]) -> dict[str, Any]:
    """The public lists and counters of numbers among options, as tuples."""
    found = {}
    for name, value in options.items():
        if name[0] == "_" or name == "base_lrs":
            continue
        if isinstance(value, Counter):
            value = sorted(value.items())
        if isinstance(value, list) and all(
            isinstance(n, int | float | tuple) for n in value
        ):
            found[name] = tuple(value)
    return found


# Functions
# ----------------------------------------------------------------------------------------


def functions_of(scheduler: Any, arguments: Any) -> dict[str, str]:
    """Digests of the functions of a scheduler and of ``arguments``, and Python's version."""
    found = {
        f"scheduler's function {i}": code_of(f)
        for i, f in enumerate(_functions_in(scheduler))
    }
    if arguments is not None:
        found["arguments"] = code_of(arguments)
    if not found:
        return {}
    return {"Python": f"{sys.version_info.major}.{sys.version_info.minor}", **found}


def _functions_in(scheduler: Any) -> list[Any]:
    """The functions that a scheduler and those inside it hold."""
    held: list[Any] = []
    for value in getattr(scheduler, "__dict__", {}).values():
        if isinstance(value, list):
            held += value
        else:
            held.append(value)
    inner = getattr(scheduler, "_schedulers", [])
    own = [v for v in held if _is_function(v) and v not in inner]
    own = [v for v in own if getattr(v, "__self__", None) is not scheduler]
    return own + [f for part in inner for f in _functions_in(part)]


def _is_function(value: Any) -> bool:
    """Whether a value is a function, or a callable object of the user's."""
    if isinstance(value, FunctionType | partial):
        return True
    return (
        callable(value) and hasattr(value, "__dict__") and not isinstance(value, type)
    )


def code_of(function: Any) -> str:
    """A digest of a function's code and of the values that it reads; see the module."""
    text = _text(function, set()).encode("utf-8", "backslashreplace")
    return hashlib.sha256(text).hexdigest()[:16]


def _text(value: Any, met: set[int]) -> str:
    """A value as text that is the same in another process.

    Arguments:
        value: a plain value, or a function or what one holds.
        met: the ids of functions described before.
    """
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, tuple):
        return f"({', '.join(_text(v, met) for v in value)})"
    if isinstance(value, frozenset):
        return f"({', '.join(sorted(_text(v, met) for v in value))})"
    if isinstance(value, partial):
        keywords = sorted((k, _text(v, met)) for k, v in value.keywords.items())
        return (
            f"partial({_text(value.func, met)}, {_text(value.args, met)}, {keywords})"
        )
    if isinstance(value, CodeType):
        return f"{value.co_code.hex()} {value.co_names} {_text(value.co_consts, met)}"
    function = getattr(value, "__func__", value)
    if isinstance(function, FunctionType):
        return _function_text(function, met)
    return _object_text(value, met)


def _object_text(value: Any, met: set[int]) -> str:
    """The class of an object and its ``__call__``; its attributes may change during the run."""
    if isinstance(value, type) or hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__} "
    kind = type(value)
    call = vars(kind).get("__call__")
    text = _text(call, met) if isinstance(call, FunctionType) else ""
    return f"{kind.__module__}.{kind.__qualname__} {text}"


def _function_text(function: FunctionType, met: set[int]) -> str:
    """The code of a function, and what its closure, defaults and plain globals hold."""
    if id(function) in met:
        return "again"
    met.add(id(function))
    held = list(_in_closure(function))
    held.append(function.__defaults__)
    if function.__kwdefaults__:
        held += function.__kwdefaults__.values()
    held += _plain_globals(function)
    code = _text(function.__code__, met)
    held_text = [_text(v, met) for v in held]
    return f"{code} {held_text}"


def _in_closure(function: FunctionType) -> Iterator[Any]:
    """The values of the closure that are bound."""
    for cell in function.__closure__ or ():
        with suppress(ValueError):
            yield cell.cell_contents


def _plain_globals(function: FunctionType) -> Iterator[Any]:
    """The plain values and functions among the globals that a function names."""
    known = function.__globals__
    for name in sorted(set(function.__code__.co_names) & set(known)):
        if isinstance(known[name], _PLAIN | tuple | FunctionType):
            yield known[name]
