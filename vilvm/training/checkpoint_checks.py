"""What the state of a checkpoint must look like, before any of it is taken up.

Checksums show damage, and can be computed anew. So a state is compared with that of the run which
is to take it up: the same names, types, shapes, dtypes and orders in memory; and what follows from
the number of steps, from the options and from the history must follow. Whatever passes is a state
that this run can have been in. The optimizer's state, which a fresh run does not have yet, is
compared with that of a copy of the optimizer after one step.
"""

import copy
import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingWarmRestarts,
    LambdaLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from vilvm._runtime.random import rng_state
from vilvm.training.checkpoint import spoiled
from vilvm.training.history import Record

__all__ = ["check_state", "counts_of", "order_of"]

_ENTRIES = {
    "settings", "step", "epoch", "position", "model", "optimizer", "counts", "scheduler", "objective",
    "objective_start", "rng", "history", "tally", "seconds", "skipped", "best", "best_step", "best_bound", "compiled",
    "hooked", "stopped",
}  # fmt: skip
# What a scheduler of torch moves, of itself and of its optimizer; all else is an option.
_MOVES = {
    "last_epoch",
    "_step_count",
    "_last_lr",
    "_get_lr_called_within_step",
    "_is_initial",
    "T_cur",
    "T_i",
}
_MOVES |= {"best", "num_bad_epochs", "cooldown_counter", "_schedulers"}
_SCHEDULED = {"lr", "betas", "momentum"}
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
# relative to the base learning rate: schedulers multiply step by step what is compared in closed
# form
_LR_ERROR = 1e-5


class _Improper(Exception):
    """What is wrong with a state, in words."""


def check_state(found: Path, state: Any, run: Any) -> None:
    """Raises CheckpointError unless `state`, read from `found`, is one that `run` can have been
    in.

    That its settings are those of the run, ``match`` has seen to.
    """
    try:
        _require(isinstance(state, dict) and set(state) == _ENTRIES, "its state has other entries")
        _check_place(state, run)
        _require(found.name == f"step-{state['step']:09d}", f"it is of step {state['step']}")
        _check_history(state, run)
        _check_tensors("model", state["model"], run.lvm, state["hooked"])
        _check_best(state, run)
        _check_optimizer(state, run)
        _check_scheduler(state, run)
        _check_objective(state, run)
        _check_generators(state["rng"], run)
    except _Improper as error:
        raise spoiled(found, f"it is altered: {error}") from None
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        RuntimeError,
        TypeError,
        ValueError,
    ):
        raise spoiled(
            found, "it is altered: its state is none that this run can have had"
        ) from None


def order_of(tensor: Tensor) -> list[int]:
    """The dimensions by their strides in memory, the largest first; none of a contiguous tensor."""
    return (
        []
        if tensor.is_contiguous()
        else sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    )


def counts_of(optimizer: Mapping[str, Any]) -> list[float | None]:
    """By parameter, how many steps the state of an optimizer has counted; −1 of one that does not
    count, None without state.
    """
    kept = optimizer["state"]
    number = sum(len(g["params"]) for g in optimizer["param_groups"])
    return [None if i not in kept else float(kept[i].get("step", -1)) for i in range(number)]


def _require(holds: Any, what: str) -> None:
    if not holds:
        raise _Improper(what)


def _is_count(value: Any, least: int = 0, most: float = math.inf) -> bool:
    return type(value) is int and least <= value <= most


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _check_place(state: Any, run: Any) -> None:
    at, steps, tally = state["step"], run.batches.epoch_steps, state["tally"]
    _require(_is_count(at), f"its step is {at!r:.40}")
    for name, value in (("epoch", at // steps), ("position", at % steps)):
        _require(
            type(state[name]) is int and state[name] == value,
            f"its {name} is not that of step {at}",
        )
    for name in ("compiled", "hooked"):
        _require(type(state[name]) is bool, f"{name} is {state[name]!r:.40}")
    _require(
        state["stopped"] in ("finished", "early", "callback"),
        f"stopped is {state['stopped']!r:.40}",
    )
    _require(
        isinstance(tally, dict) and set(tally) == set(vars(run.tally)),
        "its tally has other entries",
    )
    _require(
        all(_is_count(tally[n]) for n in ("applied", "skipped", "data")),
        "its tally holds no counts",
    )
    sums = [tally["loss"], tally["norm"], tally["seconds"], state["seconds"]]
    _require(
        all(type(v) is float and math.isfinite(v) for v in sums),
        "a sum of its tally is not finite",
    )
    _require(min(sums[1:]) >= 0, "a sum of its tally is negative")


def _check_history(state: Any, run: Any) -> None:
    at, rows, tally = state["step"], state["history"], state["tally"]
    _require(isinstance(rows, list), "its history is no list")
    last, skipped, seconds = 0, 0, 0.0
    for row in rows:
        step = run.record_after(last)
        _check_record(row, run, step, step - last)
        _require(row["seconds"] >= seconds, f"time runs backwards at its record of step {step}")
        last, skipped, seconds = step, skipped + row["skipped"], row["seconds"]
    _require(last <= at < run.record_after(last), "its history does not end where its steps do")
    _require(
        tally["applied"] + tally["skipped"] == at - last,
        "its tally is not of the steps since the last record",
    )
    data = sum(map(run.batches.count, range(last, at)))
    _require(tally["data"] == data, "its tally is not of the data since the last record")
    _require(
        tally["applied"] or (tally["loss"], tally["norm"]) == (0, 0), "its tally sums up no steps"
    )
    _require(state["seconds"] >= seconds, "it has taken less time than its history")
    _require(_is_count(state["skipped"]), "its skipped steps are no count")
    _require(
        state["skipped"] == skipped + tally["skipped"],
        "its skipped steps are not those of its history",
    )
    _require(
        state["stopped"] == "finished" or (at == last and at > 0),
        "it has stopped between two records",
    )
    _require(
        state["stopped"] != "early" or run.validation is not None,
        "it has stopped early without validation data",
    )
    asked = state["hooked"] or len(state["rng"]) > 1
    _require(
        state["stopped"] != "callback" or asked, "a callback has stopped it, and there was none"
    )


def _check_record(row: Any, run: Any, step: int, taken: int) -> None:
    where = f"its record of step {step}"
    _require(
        isinstance(row, dict) and set(row) == {f.name for f in fields(Record)},
        f"{where} has other entries",
    )
    for field in fields(Record):
        _require(
            type(row[field.name]) is field.type,
            f"{where} has {field.name} = {row[field.name]!r:.40}",
        )
    _require(
        row["step"] == step and row["epoch"] == step // run.batches.epoch_steps,
        f"{where} is of another step",
    )
    _require(0 <= row["skipped"] <= taken, f"{where} has skipped {row['skipped']!r:.40} steps")
    means = row["elbo"], row["gradient_norm"]
    moved = row["skipped"] < taken
    _require(
        all(map(math.isfinite if moved else math.isnan, means)),
        f"{where} has a mean that is not finite",
    )
    _require(not row["gradient_norm"] < 0, f"{where} has a negative norm")
    for name in ("seconds", "data_per_second"):
        _require(
            math.isfinite(row[name]) and row[name] >= 0, f"{where} has {name} = {row[name]!r:.40}"
        )
    _require(
        not math.isinf(row["learning_rate"]),
        f"{where} has learning_rate = {row['learning_rate']!r:.40}",
    )
    _require(not row["validation_se"] < 0, f"{where} has a negative standard error")
    if run.validation is None:
        held_out = row["validation_elbo"], row["validation_se"]
        _require(
            all(map(math.isnan, held_out)),
            f"{where} has a validation ELBO, and the run no validation data",
        )


def _check_best(state: Any, run: Any) -> None:
    step, bound = 0, -math.inf
    for row in state["history"]:
        if row["validation_elbo"] > bound:
            step, bound = row["step"], row["validation_elbo"]
    _require(
        type(state["best_step"]) is int and state["best_step"] == step,
        "its best step is not that of its history",
    )
    _require(
        type(state["best_bound"]) is float and state["best_bound"] == bound,
        "its best bound is not that of its history",
    )
    _require(
        (state["best"] is None) == (bound == -math.inf),
        "it has best parameters without a best record, or none with one",
    )
    if state["best"] is not None:
        _check_tensors("best", state["best"], run.lvm, state["hooked"])
        if step == state["step"] and not state["hooked"]:
            for name, value in state["model"].items():
                _same(f"best/{name}", state["best"][name], value)


def _check_tensors(what: str, values: Any, lvm: torch.nn.Module, hooked: bool) -> None:
    """The parameters and buffers of a model; only user code that runs between steps may make a
    parameter infinite.
    """
    known = lvm.state_dict()
    _like(what, values, dict(known))
    trained = {n for n, p in lvm.named_parameters() if p.requires_grad}
    first: dict[Any, str] = {}  # the name of every tensor, of which some have two
    for name, value in values.items():
        if not isinstance(value, Tensor):
            continue
        place = (known[name].data_ptr(), *known[name].shape, *known[name].stride())
        if value.numel() and first.setdefault(place, name) != name:
            _same(f"{what}/{name}", value, values[first[place]])
        if name in trained and bool(known[name].isfinite().all()):
            fine = ~value.isnan() if hooked else value.isfinite()
            _require(bool(fine.all()), f"{what}/{name} is not finite")
        if name.endswith(("running_var", "num_batches_tracked")):
            _require(bool((value >= 0).all()), f"{what}/{name} is negative")


def _like(path: str, value: Any, template: Any) -> None:
    """That a value is built as `template` is; numbers may differ, if they are finite where the
    template's are.
    """
    if isinstance(template, Tensor):
        _require(isinstance(value, Tensor), f"{path} is no tensor")
        built, proper = ((tuple(t.shape), t.dtype, order_of(t)) for t in (value, template))
        for part, one, other in zip(
            ("shape", "type", "order in memory"), built, proper, strict=True
        ):
            _require(one == other, f"{path} has {part} {one}, and this run's has {other}")
    elif isinstance(template, dict):
        _require(
            isinstance(value, dict) and set(value) == set(template), f"{path} has other entries"
        )
        for key, part in template.items():
            _like(f"{path}/{key}", value[key], part)
    elif isinstance(template, list | tuple):
        _require(
            type(value) is type(template) and len(value) == len(template),
            f"{path} is built otherwise",
        )
        for i, part in enumerate(template):
            _like(f"{path}/{i}", value[i], part)
    elif type(template) in (int, float):
        right = type(value) in (int, float) and (
            math.isfinite(value) or not math.isfinite(template)
        )
        _require(right, f"{path} is {value!r:.40}")
    else:
        _require(type(value) is type(template), f"{path} is {value!r:.40}")


def _same(path: str, value: Any, template: Any) -> None:
    _like(path, value, template)
    if isinstance(template, Tensor):
        same = bool(((value == template) | (value.isnan() & template.isnan())).all())
        _require(same, f"{path} has other values than it must have")
    else:
        same = type(value) is type(template) and (value == template or value != value)
        _require(same, f"{path} is {value!r:.40}, and must be {template!r:.40}")


# The optimizer and the scheduler
# -----------------------------------------------------------------------------------------


def _check_optimizer(state: Any, run: Any) -> None:
    kept, fresh = state["optimizer"], run.optimizer.state_dict()
    _require(isinstance(kept, dict) and set(kept) == set(fresh), "its optimizer has other entries")
    groups, proper = kept["param_groups"], fresh["param_groups"]
    _require(
        isinstance(groups, list) and len(groups) == len(proper),
        "its optimizer has other groups of parameters",
    )
    own = type(run.optimizer).__module__.startswith(
        "torch.optim."
    )  # others may move their options, as Pyro's ClippedAdam does its lr
    free = {*_SCHEDULED} if run.scheduler is not None else set()
    for i, (group, template) in enumerate(zip(groups, proper, strict=True)):
        _like(f"optimizer/param_groups/{i}", group, template)
        for name, option in template.items():
            if name == "params" or (own and not (state["hooked"] or name in free)):
                _same(f"optimizer/param_groups/{i}/{name}", group[name], option)
        for beta in group.get("betas", ()):
            _require(
                0 <= float(beta) <= 1,
                f"optimizer/param_groups/{i}/betas are {group['betas']!r:.40}",
            )
    _check_moments(state, run, fresh)


def _check_moments(state: Any, run: Any, fresh: Any) -> None:
    kept, applied = state["optimizer"]["state"], state["step"] - state["skipped"]
    parameters = [p for g in run.optimizer.param_groups for p in g["params"]]
    _require(isinstance(kept, dict), "its optimizer has other entries")
    _require(
        all(_is_count(i, 0, len(parameters) - 1) for i in kept),
        "its optimizer is of other parameters",
    )
    _require(set(fresh["state"]) <= set(kept), "its optimizer lacks a parameter")
    stepped = _stepped(run.optimizer, state["optimizer"]["param_groups"])
    for i, values in kept.items():
        path = f"optimizer/state/{i}"
        _require(isinstance(values, dict), f"{path} has other entries")
        if stepped:
            _like(path, values, stepped[i])
        for name, value in values.items():
            _check_moment(f"{path}/{name}", name, value, parameters[i])
    counts = counts_of(state["optimizer"])
    _require(
        state["counts"] == counts,
        "the steps that its optimizer counts are not those of the checkpoint",
    )
    counted = [c for c in counts if c is not None and c >= 0]
    _require(all(c.is_integer() for c in counted), "its optimizer counts parts of steps")
    if state["hooked"] or not any("step" in values for values in stepped.values()):
        return
    _require(
        max(counted, default=0) <= applied <= sum(counted),
        f"its optimizer has not counted {applied} steps",
    )
    for i, count in enumerate(counts):
        moments = (
            [kept[i][n] for n in ("exp_avg", "exp_avg_sq") if n in kept[i]] if count == 0 else []
        )
        _require(
            not any(bool(m.any()) for m in moments), f"optimizer/state/{i} has moments of no step"
        )


def _check_moment(path: str, name: str, value: Any, parameter: Tensor) -> None:
    if isinstance(value, Tensor):
        _require(bool(value.isfinite().all()), f"{path} is not finite")
        # A fused optimizer walks through both side by side in memory, whatever their shapes.
        alike = value.shape == parameter.shape and order_of(value) == order_of(parameter)
        _require(name != "exp_avg" or alike, f"{path} is laid out otherwise than its parameter")
    elif isinstance(value, float | int):
        _require(math.isfinite(value), f"{path} is {value}")
    if name in _SQUARES or name == "step":
        _require(
            bool((value >= 0).all()) if isinstance(value, Tensor) else value >= 0,
            f"{path} is negative",
        )


def _stepped(optimizer: Any, groups: Any) -> dict[int, Any]:
    """The state of a copy of `optimizer`, with the options of `groups`, after a step; nothing
    where no copy can take one.
    """
    for options in (groups, optimizer.param_groups):
        try:
            twin = copy.deepcopy(optimizer)
            for group, given in zip(twin.param_groups, options, strict=True):
                group.update({k: copy.deepcopy(v) for k, v in given.items() if k != "params"})
                for p in group["params"]:
                    p.grad = torch.zeros_like(p)
            twin.step()
        # an optimizer of the user's, which needs more than gradients; or options that none can
        # have
        except Exception:
            continue
        _require(options is groups, "its optimizer has options with which it takes no step")
        return twin.state_dict()["state"]
    return {}


def _check_scheduler(state: Any, run: Any) -> None:
    kept, scheduler, hooked = state["scheduler"], run.scheduler, state["hooked"]
    _require(
        (kept is None) == (scheduler is None),
        "it has a scheduler, and is to have none, or the other way round",
    )
    if scheduler is None:
        return
    proper = scheduler.state_dict()
    if not _is_of_torch(scheduler):
        _like("scheduler", kept, proper)
        return
    steps = state["step"] // run.batches.epoch_steps if run.per_epoch else state["step"]
    if isinstance(scheduler, ReduceLROnPlateau):
        steps = len(state["history"])
        seen = [s * r["validation_elbo"] for r in state["history"] for s in (-1, 1)]
        seen = [value for value in seen if math.isfinite(value)] or [proper["best"]]
        _require(hooked or kept["best"] in seen, "scheduler/best is in no record")
    _check_schedule("scheduler", scheduler, kept, proper, None if hooked else steps)
    if hooked:
        return
    rates = [float(g["lr"]) for g in state["optimizer"]["param_groups"]]
    _require(
        list(map(float, kept["_last_lr"])) == rates,
        "its learning rates are not those of its scheduler",
    )
    expected = _rates_at(scheduler, steps) or rates
    for base, rate, other in zip(
        getattr(scheduler, "base_lrs", rates), rates, expected, strict=True
    ):
        near = abs(rate - float(other)) <= _LR_ERROR * max(abs(float(base)), abs(float(other)))
        _require(
            near,
            f"its learning rate is {rate:g}, and is {float(other):g} at step {steps} of its "
            "scheduler",
        )


def _is_of_torch(scheduler: Any) -> bool:
    inner = getattr(scheduler, "_schedulers", ())
    return type(scheduler).__module__ == LambdaLR.__module__ and all(map(_is_of_torch, inner))


def _check_schedule(path: str, scheduler: Any, kept: Any, proper: Any, steps: int | None) -> None:
    """That a scheduler of torch has its own options, and is where it is after so many of its
    steps; None if that is unknown.
    """
    _require(isinstance(kept, dict) and set(kept) == set(proper), f"{path} has other entries")
    for name, value in proper.items():
        if name not in _MOVES:
            _same(f"{path}/{name}", kept[name], value)
        elif name != "_schedulers":
            _like(f"{path}/{name}", kept[name], value)
    for name in {
        "last_epoch",
        "_step_count",
        "T_cur",
        "T_i",
        "num_bad_epochs",
        "cooldown_counter",
    } & set(proper):
        _require(_is_count(kept[name], -1), f"{path}/{name} is {kept[name]!r:.40}")
    if steps is not None:
        _check_turn(path, scheduler, kept, proper, steps)
    inner = getattr(scheduler, "_schedulers", [])
    _require(not inner or len(kept["_schedulers"]) == len(inner), f"{path} has other parts")
    for i, part in enumerate(inner):
        mine, theirs, taken = kept["_schedulers"][i], proper["_schedulers"][i], steps
        if steps is not None and not isinstance(scheduler, ChainedScheduler):
            taken = _turn(scheduler, i, steps, theirs)
        _check_schedule(f"{path}/{i}", part, mine, theirs, taken)


def _check_turn(path: str, scheduler: Any, kept: Any, proper: Any, steps: int) -> None:
    if "last_epoch" in proper:
        _same(f"{path}/last_epoch", kept["last_epoch"], proper["last_epoch"] + steps)
    if "_step_count" in proper:
        first = proper["_step_count"]
        _require(
            first <= kept["_step_count"] <= first + steps + 1,
            f"{path}/_step_count is {kept['_step_count']}",
        )
    if "cooldown_counter" in proper:
        few = kept["cooldown_counter"] <= scheduler.cooldown and kept["num_bad_epochs"] <= steps
        _require(few, f"{path} counts more records than there are")
    if isinstance(scheduler, CosineAnnealingWarmRestarts):
        place = _since_restart(scheduler, kept["last_epoch"])
        _require((kept["T_cur"], kept["T_i"]) == place, f"{path} restarts elsewhere")


def _turn(scheduler: SequentialLR, i: int, steps: int, proper: Any) -> int:
    """How far part `i` of a sequence is from where it began, after so many steps of the whole."""
    marks = [0, *scheduler._milestones, math.inf]
    if bisect_right(scheduler._milestones, steps) < i:
        return 0
    ended = int(min(steps, marks[i + 1] - 1))
    return ended if i == 0 else ended - int(marks[i]) - int(proper.get("last_epoch", 0))


def _since_restart(scheduler: CosineAnnealingWarmRestarts, steps: int) -> tuple[int, int]:
    since, length = steps, scheduler.T_0
    if scheduler.T_mult == 1:
        return since % length, length
    while since >= length:
        since, length = since - length, length * scheduler.T_mult
    return since, length


def _rates_at(scheduler: Any, steps: int) -> list[float] | None:
    """The learning rates after so many steps of a scheduler, where there is a formula for them."""
    formula = getattr(scheduler, "_get_closed_form_lr", None)
    if isinstance(scheduler, LambdaLR | OneCycleLR | CosineAnnealingWarmRestarts):
        formula = scheduler.get_lr
    if formula is None:
        return None
    before = vars(scheduler).copy()
    options = [dict(g) for g in scheduler.optimizer.param_groups]
    try:
        scheduler.last_epoch, scheduler._get_lr_called_within_step = steps, True
        if isinstance(scheduler, CosineAnnealingWarmRestarts):
            scheduler.T_cur, scheduler.T_i = _since_restart(scheduler, steps)
        return [float(rate) for rate in formula()]
    finally:
        vars(scheduler).update(before)
        for group, values in zip(scheduler.optimizer.param_groups, options, strict=True):
            group.update(values)


# Objective and generators
# ------------------------------------------------------------------------------------------------


def _check_objective(state: Any, run: Any) -> None:
    kept, start = state["objective"], state["objective_start"]
    has_state = hasattr(run.objective, "state_dict")
    _require(
        (kept is not None) == has_state == (start is not None),
        "it has an objective of another kind",
    )
    if not has_state:
        return
    proper = run.objective.state_dict()
    _like("objective", kept, proper)
    _like("objective_start", start, proper)
    if "step" in proper and hasattr(run.objective, "advance") and not state["hooked"]:
        # A step that fails may do so before it is counted.
        taken = kept["step"] - start["step"]
        counts = _is_count(start["step"]) and _is_count(
            taken, state["step"] - state["skipped"], state["step"]
        )
        _require(counts, "its objective counts other steps")


def _check_generators(states: Any, run: Any) -> None:
    _require(
        isinstance(states, list) and states and all(isinstance(s, list) for s in states),
        "it has no generators",
    )
    _require(
        len({len(s) for s in states}) == 1 and len(states[0]) in (1, 2), "it has other generators"
    )
    own = rng_state(run.device)
    for rank in states:
        for i, kept in enumerate(rank):
            _require(
                isinstance(kept, Tensor) and kept.dtype == torch.uint8 and kept.dim() == 1,
                "a generator is no bytes",
            )
            _require(i > 0 or kept.shape == own[0].shape, "a generator is of another kind")
        torch.Generator().set_state(rank[0])
        if len(rank) == 2:
            _require(rank[1].numel() == 16, "a generator is of another kind")
            if len(own) == 2:
                torch.Generator(run.device).set_state(rank[1].cpu())
