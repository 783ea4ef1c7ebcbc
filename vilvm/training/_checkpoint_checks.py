"""Checks of the state of a checkpoint, before any of it is loaded.

Checksums reveal damage, but anyone can recompute them. So the state is also compared with the run
that loads it. Names, types, shapes, dtypes and memory orders must be the same. What follows from
the number of steps, the options and the history must agree with them. A state that passes is one
that this run could have reached.
"""

import math
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vilvm._runtime.random import rng_state
from vilvm.training._optimizer_checks import check_optimizer
from vilvm.training._run import Run, Tally
from vilvm.training._scheduler_checks import check_scheduler
from vilvm.training._templates import (
    AlteredError,
    check_like,
    check_same,
    is_count,
    require,
)
from vilvm.training.checkpoint import spoiled
from vilvm.training.history import Record, next_record

__all__ = ["check_state"]

_ENTRIES = {
    "settings",
    "step",
    "epoch",
    "position",
    "model",
    "optimizer",
    "counts",
    "scheduler",
    "objective",
    "objective_start",
    "rng",
    "history",
    "tally",
    "seconds",
    "skipped",
    "best",
    "best_step",
    "best_bound",
    "compiled",
    "hooked",
    "stopped",
}
# The errors that altered values may raise within a check.
_IMPROPER = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
)
_GENERATOR_BYTES = 16  # of the state of a generator on a GPU


def check_state(found: Path, state: Any, run: Run) -> None:
    """Raises CheckpointError unless a run could have reached a state.

    Arguments:
        found: the folder of the checkpoint.
        state: of the checkpoint; its settings are those of the run.
        run: the run that loads the state, before its first step.
    """
    try:
        require(
            isinstance(state, dict) and set(state) == _ENTRIES,
            "its state has other entries",
        )
        _check_position(state, run)
        require(
            found.name == f"step-{state['step']:09d}", f"it is of step {state['step']}"
        )
        _check_tally(state)
        _check_history(state, run)
        _check_skipped(state)
        _check_stopped(state, run)
        _check_tensors("model", state["model"], run.spec.lvm, state["hooked"])
        _check_best(state, run)
        check_optimizer(state, run)
        check_scheduler(state, run)
        _check_objective(state, run.spec.objective)
        _check_generators(state["rng"], run.spec.device)
    except AlteredError as error:
        raise spoiled(found, f"it is altered: {error}") from None
    except _IMPROPER:
        raise spoiled(
            found, "it is altered: this run cannot have reached its state"
        ) from None


def _check_position(state: Any, run: Run) -> None:
    """Checks the step and the flags of the run."""
    step = state["step"]
    epoch_steps = run.epoch_steps
    require(is_count(step), f"its step is {step!r:.40}")
    for name, value in (
        ("epoch", step // epoch_steps),
        ("position", step % epoch_steps),
    ):
        right = type(state[name]) is int and state[name] == value
        require(right, f"its {name} is not that of step {step}")
    for name in ("compiled", "hooked"):
        require(type(state[name]) is bool, f"{name} is {state[name]!r:.40}")
    stopped = state["stopped"]
    require(stopped in ("finished", "early", "callback"), f"stopped is {stopped!r:.40}")


def _check_tally(state: Any) -> None:
    """Checks the types of the sums since the last record."""
    tally = state["tally"]
    same = isinstance(tally, dict) and set(tally) == {f.name for f in fields(Tally)}
    require(same, "its tally has other entries")
    for name in ("applied", "skipped", "data"):
        require(is_count(tally[name]), "its tally holds no counts")
    sums = [tally["loss"], tally["norm"], tally["seconds"], state["seconds"]]
    for value in sums:
        finite = type(value) is float and math.isfinite(value)
        require(finite, "a sum of its tally is not finite")
    require(min(sums[1:]) >= 0, "a sum of its tally is negative")


def _check_history(state: Any, run: Run) -> None:
    """Checks the records, and that the tally begins where they end."""
    step = state["step"]
    rows = state["history"]
    tally = state["tally"]
    require(isinstance(rows, list), "its history is not a list")
    interval = run.spec.record_steps
    last, seconds = 0, 0.0
    for row, patience_ends in zip(rows, _ends_of_patience(rows, run), strict=True):
        due = next_record(last, interval)
        if patience_ends and last < row["step"] < due:
            due = row["step"]
        _check_record(row, run, due, due - last)
        require(
            row["seconds"] >= seconds,
            f"time runs backwards at its record of step {due}",
        )
        last = due
        seconds = row["seconds"]
    ends = last <= step < next_record(last, interval)
    require(ends, "its history does not end where its steps do")
    require(
        tally["applied"] + tally["skipped"] == step - last,
        "its tally is not of the steps since the last record",
    )
    data = sum(map(run.spec.batches.count, range(last, step)))
    require(tally["data"] == data, "its tally is not of the data since the last record")
    empty = (tally["loss"], tally["norm"]) == (0, 0)
    require(tally["applied"] or empty, "its tally sums up no steps")
    require(state["seconds"] >= seconds, "it has taken less time than its history")


def _ends_of_patience(rows: Any, run: Run) -> Iterator[bool]:
    """Whether some patience, a number of epochs, could have ended at each record."""
    best_step, bound = 0, -math.inf
    for row in rows:
        waited = row["step"] - best_step
        yield run.spec.validation is not None and waited % run.epoch_steps == 0
        if row["validation_elbo"] > bound:
            best_step, bound = row["step"], row["validation_elbo"]


def _check_skipped(state: Any) -> None:
    skipped = sum(row["skipped"] for row in state["history"])
    require(is_count(state["skipped"]), "its number of skipped steps is not a count")
    require(
        state["skipped"] == skipped + state["tally"]["skipped"],
        "its skipped steps are not those of its history",
    )


def _check_stopped(state: Any, run: Run) -> None:
    """Checks that a run that has stopped could stop there, and for that reason."""
    step = state["step"]
    stopped = state["stopped"]
    rows = state["history"]
    if stopped == "finished":
        return
    at_record = bool(rows) and rows[-1]["step"] == step
    require(at_record, "it has stopped between two records")
    if stopped == "early":
        has_validation = run.spec.validation is not None
        require(has_validation, "it has stopped early without validation data")
    else:
        had_callback = state["hooked"] or len(state["rng"]) > 1
        require(had_callback, "a callback has stopped it, and there was none")


def _check_record(
    row: Any,
    run: Run,
    step: int,
    taken: int,
) -> None:
    """Checks one row of the history, of `taken` steps up to `step`."""
    where = f"its record of step {step}"
    same = isinstance(row, dict) and set(row) == {f.name for f in fields(Record)}
    require(same, f"{where} has other entries")
    for field in fields(Record):
        value = row[field.name]
        require(type(value) is field.type, f"{where} has {field.name} = {value!r:.40}")
    here = row["step"] == step and row["epoch"] == step // run.epoch_steps
    require(here, f"{where} is of another step")
    _check_means(row, where, taken)
    for name in ("seconds", "data_per_second"):
        proper = math.isfinite(row[name]) and row[name] >= 0
        require(proper, f"{where} has {name} = {row[name]!r:.40}")
    rate = row["learning_rate"]
    require(not math.isinf(rate), f"{where} has learning_rate = {rate!r:.40}")
    _check_validation(row, where, run.spec.validation is not None)


def _check_means(row: Any, where: str, taken: int) -> None:
    """Checks the means over the steps of a record: finite, or NaN if all were skipped."""
    skipped = row["skipped"]
    require(0 <= skipped <= taken, f"{where} has skipped {skipped!r:.40} steps")
    proper = math.isnan if skipped == taken else math.isfinite
    means_proper = proper(row["elbo"]) and proper(row["gradient_norm"])
    require(means_proper, f"{where} has a mean that is not finite")
    require(not row["gradient_norm"] < 0, f"{where} has a negative norm")


def _check_validation(row: Any, where: str, has_validation: bool) -> None:
    """Checks the validation ELBO of a record."""
    require(not row["validation_se"] < 0, f"{where} has a negative standard error")
    if not has_validation:
        absent = math.isnan(row["validation_elbo"]) and math.isnan(row["validation_se"])
        require(
            absent, f"{where} has a validation ELBO, and the run no validation data"
        )


def _check_best(state: Any, run: Run) -> None:
    """Checks that the best step, bound and parameters are those of the best record."""
    step = 0
    bound = -math.inf
    best = state["best"]
    for row in state["history"]:
        if row["validation_elbo"] > bound:
            step = row["step"]
            bound = row["validation_elbo"]
    right_step = type(state["best_step"]) is int and state["best_step"] == step
    require(right_step, "its best step is not that of its history")
    right_bound = type(state["best_bound"]) is float and state["best_bound"] == bound
    require(right_bound, "its best bound is not that of its history")
    require(
        (best is None) == (bound == -math.inf),
        "it has best parameters without a best record, or none with one",
    )
    if best is None:
        return
    _check_tensors("best", best, run.spec.lvm, state["hooked"])
    if step == state["step"] and not state["hooked"]:
        for name, value in state["model"].items():
            check_same(f"best/{name}", best[name], value)


def _check_tensors(
    what: str,
    values: Any,
    lvm: torch.nn.Module,
    hooked: bool,
) -> None:
    """Checks the parameters and buffers of a model.

    Arguments:
        what: their name in the error.
        values: the tensors of the checkpoint by name.
        lvm: the model of the run.
        hooked: whether user code ran between steps; only then may a parameter be infinite.
    """
    known = lvm.state_dict()
    check_like(what, values, dict(known))
    _check_shared(what, values, known)
    trained = {n for n, p in lvm.named_parameters() if p.requires_grad}
    for name, value in values.items():
        if not isinstance(value, Tensor):
            continue
        if name in trained and bool(known[name].isfinite().all()):
            proper = ~value.isnan() if hooked else value.isfinite()
            require(bool(proper.all()), f"{what}/{name} is not finite")
        if name.endswith(("running_var", "num_batches_tracked")):
            require(bool((value >= 0).all()), f"{what}/{name} is negative")


def _check_shared(what: str, values: Any, known: Any) -> None:
    """Checks that a tensor with two names has the same values under both."""
    first: dict[Any, str] = {}  # the first name of every tensor
    for name, value in values.items():
        if not isinstance(value, Tensor) or not value.numel():
            continue
        place = (known[name].data_ptr(), *known[name].shape, *known[name].stride())
        other = first.setdefault(place, name)
        if other != name:
            check_same(f"{what}/{name}", value, values[other])


def _check_objective(state: Any, objective: Any) -> None:
    """Checks the state of the objective, and that it counts the steps of the run."""
    kept = state["objective"]
    start = state["objective_start"]
    has_state = hasattr(objective, "state_dict")
    same_kind = (kept is not None) == has_state == (start is not None)
    require(same_kind, "it has an objective of another kind")
    if not has_state:
        return
    proper = objective.state_dict()
    check_like("objective", kept, proper)
    check_like("objective_start", start, proper)
    if "step" in proper and hasattr(objective, "advance") and not state["hooked"]:
        # The objective may or may not have counted a step that was skipped.
        taken = kept["step"] - start["step"]
        applied = state["step"] - state["skipped"]
        counts = is_count(start["step"]) and is_count(taken, applied, state["step"])
        require(counts, "its objective counts other steps")


def _check_generators(states: Any, device: torch.device) -> None:
    """Checks the states of torch's generators: for each rank the CPU's and perhaps a GPU's."""
    require(isinstance(states, list) and states, "it has no generators")
    for rank in states:
        require(isinstance(rank, list), "it has no generators")
    number = len(states[0])
    for rank in states:
        require(len(rank) == number and number in (1, 2), "it has other generators")
    own = rng_state(device)
    for rank in states:
        for kept in rank:
            _check_bytes(kept)
        require(rank[0].shape == own[0].shape, "a generator is of another kind")
        torch.Generator().set_state(rank[0])
        if number == 2:
            require(
                rank[1].numel() == _GENERATOR_BYTES, "a generator is of another kind"
            )
            if len(own) == 2:
                torch.Generator(device).set_state(rank[1].cpu())


def _check_bytes(kept: Any) -> None:
    is_bytes = (
        isinstance(kept, Tensor) and kept.dtype == torch.uint8 and kept.dim() == 1
    )
    require(is_bytes, "the state of a generator is not bytes")
