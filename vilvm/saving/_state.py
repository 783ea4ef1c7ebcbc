"""The parameters and buffers of a model, checked as a whole and then loaded.

A model that has not run yet lacks the parameters of its ``pyro.param`` statements, of networks
that it makes when it runs, and of its autoguides. Those wait in the model until it makes them
(``vilvm._runtime.deferred_loading``).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from vilvm._runtime.deferred_loading import (
    autoguides_without_parameters,
    defer_loading,
    deferred_state,
    mark_complete,
)
from vilvm._runtime.submodules import NETWORKS, PARAMS
from vilvm.lvm import ContractError, Pair, Wrapped

__all__ = ["check_complete", "load_state", "state_of"]

_SHOWN = 3  # names in a message


def state_of(lvm: Module) -> dict[str, Any]:
    """The state_dict of a model, with the entries that it has loaded and not used yet."""
    state = dict(lvm.state_dict())
    for prefix, part in _served(lvm):
        state |= {prefix + n: v for n, v in deferred_state(part).items()}
    return state


def check_complete(lvm: Module, state: Mapping[str, Any]) -> None:
    """Raises ContractError if an autoguide has no parameters yet, which a file would lack."""
    for name, guide in autoguides_without_parameters(lvm).items():
        if not any(n.startswith(f"{name}.") for n in state):
            raise ContractError(
                f"save: the autoguide {name!r} ({type(guide).__name__}) has no parameters before "
                "its first call; train the model, or call its guide once with a batch."
            )


def load_state(lvm: Module, state: Mapping[str, Any], whence: str) -> None:
    """Loads a state_dict into a model, all of it or nothing.

    Arguments:
        lvm: the model.
        state: of a model of the same class and sizes.
        whence: what holds it, for messages.

    Raises:
        ContractError: names, shapes or dtypes differ; the model is unchanged.
    """
    present = _present(lvm)
    absent = [n for n in state if n not in present]
    empty = [n for n in absent if _is_empty_buffer(lvm, n)]
    extra = [n for n in absent if n not in empty and not _may_wait(lvm, n)]
    _check(lvm, whence, sorted(present.keys() - state.keys()), extra)
    _check_alike(lvm, whence, present, state)
    _load(lvm, dict(state), empty, whence)


def _present(lvm: Module) -> dict[str, Any]:
    """The state_dict of a model, without the entries that wait for their parameter."""
    waiting = {n for prefix, part in _served(lvm) for n in _waiting(prefix, part)}
    return {n: v for n, v in lvm.state_dict().items() if n not in waiting}


def _load(lvm: Module, state: dict[str, Any], empty: list[str], whence: str) -> None:
    for name in empty:
        part, _, leaf = name.rpartition(".")
        lvm.get_submodule(part).register_buffer(leaf, state[name].clone())
    parts = list(_served(lvm))
    for _, part in parts:
        mark_complete(part, whence)
    for prefix, part in parts:
        defer_loading(part, state, prefix)
    with torch.no_grad():
        lvm.load_state_dict(state)


def _served(lvm: Module) -> Iterator[tuple[str, Module]]:
    """The parts that keep parameters made in a run, with the prefix of their names.

    Innermost first, so that the first part whose prefix fits a name is the one that keeps it.
    """
    found: dict[str, Module] = {"": lvm}
    for name, part in lvm.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(part, Pair):
            found[prefix] = part
        if isinstance(part, Wrapped):
            found[f"{prefix}lvm."] = part.lvm
    yield from sorted(found.items(), key=lambda item: -len(item[0]))


def _waiting(prefix: str, part: Module) -> list[str]:
    return [prefix + n for n in deferred_state(part)]


def _may_wait(lvm: Module, name: str) -> bool:
    """Whether an entry without a parameter belongs to a part that may make one when it runs."""
    for prefix, part in _served(lvm):
        if name.startswith(prefix):
            own = name.removeprefix(prefix)
            has_run = bool(part.__dict__.get("_pyro_constraints"))
            if own.startswith(f"{PARAMS}."):
                return not has_run
            guides = (f"{n}." for n in autoguides_without_parameters(part))
            return own.startswith((f"{NETWORKS}.", *guides))
    return False


def _is_empty_buffer(lvm: Module, name: str) -> bool:
    """Whether a model has declared a buffer and has not set it."""
    part, _, leaf = name.rpartition(".")
    try:
        buffers = lvm.get_submodule(part)._buffers
    except AttributeError:
        return False
    return leaf in buffers and buffers[leaf] is None


def _check(lvm: Module, whence: str, missing: list[str], extra: list[str]) -> None:
    """Raises ContractError if names are missing from the file, or extra in it."""
    faults = []
    if missing:
        faults.append(f"lacks {_listed(missing)}")
    if extra:
        faults.append(f"has {_listed(extra)}, which the model does not have")
    if faults:
        raise _mismatch(lvm, f"{whence} {' and '.join(faults)}")


def _check_alike(
    lvm: Module, whence: str, present: Mapping[str, Any], state: Mapping[str, Any]
) -> None:
    """Raises ContractError unless shapes and dtypes agree."""
    for name, own in present.items():
        kept = state[name]
        if isinstance(own, Tensor) != isinstance(kept, Tensor):
            raise _mismatch(lvm, f"{name!r} is of another kind in {whence}")
        if not isinstance(own, Tensor):
            continue
        if own.shape != kept.shape:
            raise _mismatch(
                lvm,
                f"{name!r} has shape {tuple(kept.shape)} in {whence}, and {tuple(own.shape)} in "
                "the model",
            )
        if own.dtype != kept.dtype:
            raise _mismatch(
                lvm,
                f"{name!r} is {kept.dtype} in {whence} and {own.dtype} in the model",
            )


def _mismatch(lvm: Module, what: str) -> ContractError:
    return ContractError(
        f"load: {what}; pass a {type(lvm).__name__} made with the same arguments, and of the same "
        "dtype (lvm.double())."
    )


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(n) for n in names[:_SHOWN])
    rest = len(names) - _SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown
