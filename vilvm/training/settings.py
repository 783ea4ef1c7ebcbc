"""The settings of a run in words, which must be equal where it is resumed: options, the sites of
the pair, functions.

A function is described by a digest of its code, of the constants and plain globals that the code
names, and of its defaults and closure as far as these are numbers, strings, functions and tuples
of them. Python's versions compile to other code, so the digests of two versions are not compared.
"""

import hashlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from types import CodeType, FunctionType
from typing import Any

import torch

__all__ = [
    "code_of",
    "describe",
    "functions_of",
    "plain",
    "words_of_optimizer",
    "words_of_scheduler",
]

_PLAIN = int | float | str | bool | bytes | None


def describe(objective: Any) -> str:
    """An objective in words: its class, its plain settings without what a checkpoint keeps of it,
    and the objective inside it.
    """
    kept = objective.state_dict() if hasattr(objective, "state_dict") else {}
    words = plain({k: v for k, v in getattr(objective, "__dict__", {}).items() if k not in kept})
    inner = getattr(objective, "objective", None)
    return (
        f"{type(objective).__name__}({words}{'' if inner is None else f' of {describe(inner)}'})"
    )


def plain(values: Mapping[str, Any]) -> str:
    """Those of `values` that are plain, in words."""
    return ", ".join(
        f"{k}={v!r}"
        for k, v in sorted(values.items())
        if isinstance(v, int | float | str | bool | tuple) and k[0] != "_"
    )


def words_of_optimizer(
    optimizer: torch.optim.Optimizer, by_name: Sequence[Mapping[str, Any]]
) -> str:
    """An optimizer before its first step: its options, and those of its groups of parameters where
    they differ from these.

    Arguments:
        by_name: the options by group of an optimizer that was given by name.
    """
    defaults, groups = optimizer.defaults, []
    for group in optimizer.param_groups:
        # A scheduler that has met this optimizer before has moved its rate, and kept the first.
        own = {k: v for k, v in group.items() if k in defaults and k != "lr"} | {
            "lr": group.get("initial_lr", group.get("lr"))
        }
        own = {
            k: v.item() if isinstance(v, torch.Tensor) and v.numel() == 1 else v
            for k, v in own.items()
        }
        given = {k: v for k, v in own.items() if k in defaults and repr(v) != repr(defaults[k])}
        groups.append((given, len(group["params"])))
    kind = f"{type(optimizer).__name__}({plain(defaults)})"
    if by_name:
        return f"{kind} by name: " + "; ".join(
            plain({**g, "parameters": len(g["params"])}) for g in by_name
        )
    if any(given for given, _ in groups):
        return f"{kind} by group: " + "; ".join(
            plain({**given, "parameters": count}) for given, count in groups
        )
    return kind


def words_of_scheduler(scheduler: Any) -> str:
    """A scheduler before its first step, with those within it."""
    if scheduler is None:
        return "none"
    numbers = {
        k: v for k, v in vars(scheduler).items() if isinstance(v, list | Counter) and k[0] != "_"
    }
    lists = {
        k: tuple(sorted(v.items())) if isinstance(v, Counter) else tuple(v)
        for k, v in numbers.items()
    }
    lists = {
        k: v
        for k, v in lists.items()
        if k != "base_lrs" and all(isinstance(n, int | float | tuple) for n in v)
    }
    words = plain(vars(scheduler) | lists)
    inner = ", ".join(map(words_of_scheduler, getattr(scheduler, "_schedulers", [])))
    marks = f"at {list(scheduler._milestones)} " if hasattr(scheduler, "_milestones") else ""
    return f"{type(scheduler).__name__}({words}{f' {marks}of {inner}' if inner else ''})"


def functions_of(scheduler: Any, arguments: Any) -> dict[str, str]:
    """Digests of the functions that a scheduler and the arguments of a step are made by, and
    Python's version.
    """
    found = {
        f"scheduler's function {i}": code_of(f) for i, f in enumerate(_functions_in(scheduler))
    }
    if arguments is not None:
        found["arguments"] = code_of(arguments)
    return (
        {"Python": f"{sys.version_info.major}.{sys.version_info.minor}", **found} if found else {}
    )


def _functions_in(scheduler: Any) -> list[Any]:
    held = [
        v
        for value in getattr(scheduler, "__dict__", {}).values()
        for v in (value if isinstance(value, list) else [value])
    ]
    inner = getattr(scheduler, "_schedulers", [])
    own = [
        v
        for v in held
        if isinstance(v, FunctionType | partial) or (callable(v) and hasattr(v, "__dict__"))
    ]
    own = [
        v
        for v in own
        if v not in inner
        and not isinstance(v, type)
        and getattr(v, "__self__", None) is not scheduler
    ]
    return own + [f for part in inner for f in _functions_in(part)]


def code_of(function: Any) -> str:
    """A digest of what a function does, as far as that can be seen."""
    return hashlib.sha256(_words(function, set()).encode("utf-8", "backslashreplace")).hexdigest()[
        :16
    ]


def _words(value: Any, met: set[int]) -> str:
    """A value in words that are the same in another process; of an object, its class alone, for it
    may change as the run goes on.
    """
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, tuple | frozenset):
        parts = [_words(v, met) for v in value]
        return f"({', '.join(sorted(parts) if isinstance(value, frozenset) else parts)})"
    if isinstance(value, partial):
        keywords = sorted((k, _words(v, met)) for k, v in value.keywords.items())
        return f"partial({_words(value.func, met)}, {_words(value.args, met)}, {keywords})"
    if isinstance(value, CodeType):
        return f"{value.co_code.hex()} {value.co_names} {_words(value.co_consts, met)}"
    function = getattr(value, "__func__", value)
    if not isinstance(function, FunctionType):
        kind = value if isinstance(value, type) or hasattr(value, "__qualname__") else type(value)
        call = vars(kind).get("__call__") if kind is type(value) else None
        return (
            f"{kind.__module__}.{kind.__qualname__} "
            f"{_words(call, met) if isinstance(call, FunctionType) else ''}"
        )
    if id(function) in met:
        return "again"
    met.add(id(function))
    cells = [c.cell_contents for c in function.__closure__ or () if _is_full(c)]
    named = [
        function.__globals__[n]
        for n in sorted(function.__code__.co_names)
        if n in function.__globals__
    ]
    named = [v for v in named if isinstance(v, _PLAIN | tuple | FunctionType)]
    held = (*cells, function.__defaults__, *(function.__kwdefaults__ or {}).values(), *named)
    return f"{_words(function.__code__, met)} {[_words(v, met) for v in held]}"


def _is_full(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
