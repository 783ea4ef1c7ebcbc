"""Loading a state_dict into a model before its first call.

A model creates its ``pyro.param`` values, networks and autoguide parameters when it first runs.
Entries of a state_dict whose parameter does not exist yet are kept, and loaded when the model
creates the parameter.

A model that ``load_state`` of ``vilvm.saving`` has loaded is complete: a parameter that it creates
later and that was not loaded is an error.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.infer.autoguide.guides import AutoGuide
from torch import Tensor
from torch.nn import Module, Parameter

from vilvm._runtime.errors import ContractError
from vilvm._runtime.random import preserved_rng
from vilvm._runtime.submodules import NETWORKS, PARAMS, params_of

__all__ = [
    "autoguides_without_parameters",
    "check_complete",
    "check_shape",
    "defer_loading",
    "deferred_state",
    "is_loading",
    "load_deferred",
    "loading_autoguides",
    "mark_complete",
    "restart_autoguide",
]

# in the __dict__ of a model: the entries that wait, and the file that all of them come from;
# in that of an autoguide: how to let its entries wait again
_WAITING, _COMPLETE, _AGAIN = "_waiting", "_loaded_from", "_loaded_again"


def defer_loading(lvm: Module, state: dict[str, Any], prefix: str) -> None:
    """Moves the entries without a parameter in `lvm` out of a state_dict, and keeps them.

    The values of ``pyro.param`` become parameters at once.

    Arguments:
        lvm: the model that loads.
        state: the state_dict; entries that are kept are removed from it.
        prefix: the start of the keys that belong to `lvm`.
    """
    present = lvm.state_dict().keys() - deferred_state(lvm).keys()
    later = (
        f"{NETWORKS}.",
        *(f"{name}." for name in autoguides_without_parameters(lvm)),
    )
    for full in [k for k in state if k.startswith(prefix)]:
        name = full.removeprefix(prefix)
        if name in present:
            continue
        if name.startswith(f"{PARAMS}."):
            value = Parameter(state[full].detach().clone())
            params_of(lvm)[name.removeprefix(f"{PARAMS}.")] = value
        elif name.startswith(later):
            lvm.__dict__.setdefault(_WAITING, {})[name] = (
                state.pop(full).detach().clone()
            )


def deferred_state(lvm: object) -> dict[str, Tensor]:
    """The entries that ``defer_loading`` keeps, by their name in a state_dict."""
    return getattr(lvm, "__dict__", {}).get(_WAITING, {})


def autoguides_without_parameters(lvm: Module) -> dict[str, AutoGuide]:
    """The autoguides of a model that have no parameters yet, by name.

    They create them for the first batch that they are called with.
    """
    return {
        n: m
        for n, m in lvm.named_modules()
        if isinstance(m, AutoGuide) and m.prototype_trace is None
    }


def mark_complete(lvm: Module, whence: str) -> None:
    """Records that a model was loaded whole, and forgets the entries of an earlier loading.

    Arguments:
        lvm: the model, before entries are kept.
        whence: what it was loaded from, for messages.
    """
    lvm.__dict__.pop(_WAITING, None)
    lvm.__dict__[_COMPLETE] = whence


def is_loading(lvm: object) -> bool:
    """Whether a new autoguide parameter of this model must come from what was loaded."""
    return bool(deferred_state(lvm)) or _COMPLETE in getattr(lvm, "__dict__", {})


def check_complete(lvm: object, what: str) -> None:
    """Raises ContractError if a new part of the model, which was loaded whole, was not loaded.

    Arguments:
        lvm: the model.
        what: the new part.
    """
    whence = getattr(lvm, "__dict__", {}).get(_COMPLETE)
    if whence is not None:
        raise ContractError(
            f"{what} is not in {whence}, which this model was loaded from: load the file into the "
            "model that was saved."
        )


def restart_autoguide(guide: AutoGuide) -> None:
    """Lets an autoguide create its parameters again; those that were loaded are loaded again."""
    guide.prototype_trace = None
    waiting, entries = guide.__dict__.get(_AGAIN, ({}, {}))
    waiting.update(entries)


def check_shape(name: str, loaded: Tensor, made: Tensor) -> None:
    """Raises ContractError unless a loaded parameter has the shape and dtype that is declared."""
    if loaded.dtype != made.dtype:
        raise ContractError(
            f"{name!r} is {made.dtype} here, and {loaded.dtype} in the state_dict that was "
            "loaded: load that of a model of the same precision."
        )
    if loaded.shape != made.shape:
        raise ContractError(
            f"{name!r} has shape {tuple(made.shape)} here, and {tuple(loaded.shape)} in the "
            "state_dict that was loaded: load that of a model with the same sizes."
        )


def load_deferred(lvm: Any, prefix: str, module: Module) -> None:
    """Loads the kept entries under `prefix` into a new part of the model."""
    deferred = deferred_state(lvm)
    under_prefix = {
        n.removeprefix(prefix): v for n, v in deferred.items() if n.startswith(prefix)
    }
    loaded = _own_entries(module, under_prefix)
    made = _own_entries(module, module.state_dict())
    if not loaded:
        if made:
            check_complete(lvm, repr(prefix + min(made)))
        return
    _check_names(prefix, made, loaded)
    for name, value in loaded.items():
        check_shape(prefix + name, value, made[name])
    module.load_state_dict(loaded, strict=False)  # the names were checked
    for name in loaded:
        del deferred[prefix + name]


def _own_entries(module: Module, entries: dict[str, Any]) -> dict[str, Any]:
    """The entries without those of guides in an AutoGuideList, which load them after it."""
    inner = tuple(f"{n}." for n in autoguides_without_parameters(module) if n)
    return {n: v for n, v in entries.items() if not n.startswith(inner)}


def _check_names(prefix: str, made: dict[str, Any], loaded: dict[str, Any]) -> None:
    for name in sorted(made.keys() ^ loaded.keys()):
        missing = "here"
        if name in made:
            missing = "in the state_dict that was loaded"
        raise ContractError(
            f"{prefix + name!r} is not {missing}: load the state_dict of a model with the same "
            "parts."
        )


@contextmanager
def loading_autoguides(lvm: Any) -> Iterator[None]:
    """A context in which an autoguide loads its kept entries as soon as it has parameters."""
    guides = {
        name: guide
        for name, guide in autoguides_without_parameters(lvm).items()
        # an outer context may have set it
        if "_setup_prototype" not in vars(guide) and not _loaded_within(lvm, guide)
    }
    for name, guide in guides.items():
        object.__setattr__(
            guide, "_setup_prototype", _setup_and_load(lvm, f"{name}.", guide)
        )
    try:
        yield
    finally:
        for guide in guides.values():
            object.__delattr__(guide, "_setup_prototype")


def _loaded_within(lvm: Any, guide: AutoGuide) -> bool:
    """Whether an inner model of `lvm` was loaded whole, and has this autoguide."""
    inner = [m for m in lvm.modules() if m is not lvm and _COMPLETE in m.__dict__]
    return any(guide is part for m in inner for part in m.modules())


def _setup_and_load(lvm: Any, prefix: str, guide: Any) -> Any:
    def setup(*args: Any, **kwargs: Any) -> None:
        # without a trace in the generators: a loaded guide draws the same at every call
        with preserved_rng(_device(args)):
            type(guide)._setup_prototype(guide, *args, **kwargs)
            # Pyro makes a flow on first use
            if guide.__dict__.get("transform", ...) is None:
                guide.get_posterior()
        entries = {n: v for n, v in deferred_state(lvm).items() if n.startswith(prefix)}
        try:
            load_deferred(lvm, prefix, guide)
            guide.__dict__[_AGAIN] = deferred_state(lvm), entries
        except ContractError:
            guide.prototype_trace = None  # so that the next call raises again
            raise

    return setup


def _device(batch: Any) -> torch.device:
    """The device of the first tensor of a batch."""
    ahead = [batch]
    while ahead:
        value = ahead.pop()
        if isinstance(value, Tensor):
            return value.device
        if isinstance(value, list | tuple):
            ahead += value
        elif isinstance(value, dict):
            ahead += value.values()
    return torch.device("cpu")
