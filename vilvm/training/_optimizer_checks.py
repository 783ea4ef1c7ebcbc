"""Checks of the optimizer in a checkpoint.

A fresh run has no optimizer state yet, so the state in the checkpoint is compared with that of a
copy of the optimizer after one step.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vilvm.training._run import Run
from vilvm.training._templates import check_like, check_same, is_count, require
from vilvm.training.checkpoint import order_of

__all__ = ["check_optimizer", "counts_of"]

_SCHEDULED = {"lr", "betas", "momentum"}  # options that a scheduler may change
_SQUARES = {
    "exp_avg_sq",
    "max_exp_avg_sq",
    "square_avg",
    "sum",
    "acc_delta",
    "row_var",
    "col_var",
    "variance",
}
_MOMENTS = ("exp_avg", "exp_avg_sq")


def counts_of(optimizer: Mapping[str, Any]) -> list[float | None]:
    """How many steps the state of an optimizer has counted, by parameter.

    Arguments:
        optimizer: the ``state_dict`` of a torch optimizer.

    Returns:
        For each parameter a number; −1 if its state counts no steps, None if it has no state.
    """
    kept = optimizer["state"]
    number = sum(len(g["params"]) for g in optimizer["param_groups"])
    return [
        float(kept[i].get("step", -1)) if i in kept else None for i in range(number)
    ]


def check_optimizer(state: Any, run: Run) -> None:
    """Raises AlteredError unless the run could have reached the optimizer's state."""
    kept = state["optimizer"]
    fresh = run.optimizer.state_dict()
    require(
        isinstance(kept, dict) and set(kept) == set(fresh),
        "its optimizer has other entries",
    )
    groups = kept["param_groups"]
    proper = fresh["param_groups"]
    require(
        isinstance(groups, list) and len(groups) == len(proper),
        "its optimizer has other groups of parameters",
    )
    free = _free_options(state, run)
    for i, (group, template) in enumerate(zip(groups, proper, strict=True)):
        _check_group(f"optimizer/param_groups/{i}", group, template, free)
    stepped = _after_one_step(run.optimizer, groups)
    _check_all_moments(kept["state"], fresh["state"], stepped, run)
    _check_counts(state, stepped)


def _free_options(state: Any, run: Run) -> set[str] | None:
    """The options of a group that may have changed since it was made; None if all may."""
    # Optimizers outside torch may change their options: Pyro's ClippedAdam changes its lr.
    of_torch = type(run.optimizer).__module__.startswith("torch.optim.")
    if state["hooked"] or not of_torch:
        return None
    return set() if run.scheduler is None else _SCHEDULED


def _check_group(
    path: str,
    group: Any,
    template: Any,
    free: set[str] | None,
) -> None:
    check_like(path, group, template)
    for name, option in template.items():
        if name == "params" or (free is not None and name not in free):
            check_same(f"{path}/{name}", group[name], option)
    for beta in group.get("betas", ()):
        require(0 <= float(beta) <= 1, f"{path}/betas are {group['betas']!r:.40}")


def _check_all_moments(
    kept: Any,
    fresh: Any,
    stepped: dict[int, Any],
    run: Run,
) -> None:
    """Checks the state of each parameter.

    Arguments:
        kept: the state by parameter in the checkpoint.
        fresh: the state by parameter of the run.
        stepped: the state by parameter of a copy of the optimizer after one step.
        run: before its first step.
    """
    parameters = [p for g in run.optimizer.param_groups for p in g["params"]]
    require(isinstance(kept, dict), "its optimizer has other entries")
    known = all(is_count(i, 0, len(parameters) - 1) for i in kept)
    require(known, "its optimizer is of other parameters")
    require(set(fresh) <= set(kept), "its optimizer lacks a parameter")
    for i, values in kept.items():
        path = f"optimizer/state/{i}"
        require(isinstance(values, dict), f"{path} has other entries")
        if stepped:
            check_like(path, values, stepped[i])
        for name, value in values.items():
            _check_moment(f"{path}/{name}", name, value, parameters[i])


def _check_moment(
    path: str,
    name: str,
    value: Any,
    parameter: Tensor,
) -> None:
    if isinstance(value, Tensor):
        require(bool(value.isfinite().all()), f"{path} is not finite")
        # A fused optimizer reads both in the order of memory, whatever their shapes.
        alike = value.shape == parameter.shape and order_of(value) == order_of(
            parameter
        )
        require(
            name != "exp_avg" or alike,
            f"{path} has another memory order than its parameter",
        )
    elif isinstance(value, float | int):
        require(math.isfinite(value), f"{path} is {value}")
    if name == "step" or name in _SQUARES:
        holds = bool((value >= 0).all()) if isinstance(value, Tensor) else value >= 0
        require(holds, f"{path} is negative")


def _check_counts(state: Any, stepped: dict[int, Any]) -> None:
    """Checks that the steps the optimizer has counted are those of the run.

    Arguments:
        state: of the checkpoint.
        stepped: the state of a copy of the optimizer after one step.
    """
    optimizer = state["optimizer"]
    applied = state["step"] - state["skipped"]
    kept = optimizer["state"]
    counts = counts_of(optimizer)
    require(
        state["counts"] == counts,
        "the steps that its optimizer counts are not those of the checkpoint",
    )
    counted = [c for c in counts if c is not None and c >= 0]
    require(all(c.is_integer() for c in counted), "its optimizer counts parts of steps")
    if state["hooked"] or not any("step" in values for values in stepped.values()):
        return
    require(
        max(counted, default=0) <= applied <= sum(counted),
        f"its optimizer has not counted {applied} steps",
    )
    for i, count in enumerate(counts):
        if count == 0:
            _check_blank(f"optimizer/state/{i}", kept[i])


def _check_blank(path: str, values: Any) -> None:
    """Raises AlteredError unless the moments of a parameter that was not moved are zero."""
    moments = [values[n] for n in _MOMENTS if n in values]
    require(not any(bool(m.any()) for m in moments), f"{path} has moments of no step")


def _after_one_step(optimizer: Any, groups: Any) -> dict[int, Any]:
    """The state of a copy of an optimizer after one step.

    Arguments:
        optimizer: of the run.
        groups: with the options for the copy.

    Returns:
        The state by parameter; empty if no copy can take a step, for example because a user's
        optimizer needs more than gradients.
    """
    for options in (groups, optimizer.param_groups):
        try:
            twin = _stepped_copy(optimizer, options)
        except Exception:
            continue
        require(
            options is groups, "its optimizer has options with which it takes no step"
        )
        return twin.state_dict()["state"]
    return {}


def _stepped_copy(optimizer: Any, groups: Any) -> Any:
    """A copy of an optimizer, with the options of `groups`, after a step of zero gradients."""
    twin = copy.deepcopy(optimizer)
    for group, given in zip(twin.param_groups, groups, strict=True):
        group.update({k: copy.deepcopy(v) for k, v in given.items() if k != "params"})
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    twin.step()
    return twin
