"""Checks of the learning-rate scheduler in a checkpoint: its options and its position."""

import math
from bisect import bisect_right
from typing import Any

from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingWarmRestarts,
    LambdaLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from vilvm.training._run import Run
from vilvm.training._templates import check_like, check_same, is_count, require

__all__ = ["check_scheduler"]

# The attributes that a torch scheduler changes; all others are options.
_COUNTS = {
    "last_epoch",
    "_step_count",
    "T_cur",
    "T_i",
    "num_bad_epochs",
    "cooldown_counter",
}
_CHANGES = _COUNTS | {
    "_last_lr",
    "_get_lr_called_within_step",
    "_is_initial",
    "best",
    "_schedulers",
}
# Relative to the base learning rate. Schedulers multiply step by step, so their rates differ from
# the closed form by rounding.
_LR_ERROR = 1e-5


def check_scheduler(state: Any, run: Run) -> None:
    """Raises AlteredError unless the scheduler's state follows from the steps of the run."""
    kept = state["scheduler"]
    scheduler = run.scheduler
    hooked = state["hooked"]
    require(
        (kept is None) == (scheduler is None),
        "it has a scheduler and the run has none, or the reverse",
    )
    if scheduler is None:
        return
    proper = scheduler.state_dict()
    if not _is_of_torch(scheduler):
        check_like("scheduler", kept, proper)
        return
    steps = _steps_taken(state, run)
    if isinstance(scheduler, ReduceLROnPlateau) and not hooked:
        _check_best(kept, proper, state["history"])
    _check_schedule("scheduler", scheduler, kept, proper, None if hooked else steps)
    if not hooked:
        _check_rates(state, scheduler, steps)


def _steps_taken(state: Any, run: Run) -> int:
    """How many steps the scheduler of a run has taken."""
    if isinstance(run.scheduler, ReduceLROnPlateau):
        return len(state["history"])
    if run.spec.per_epoch:
        return state["step"] // run.epoch_steps
    return state["step"]


def _check_best(kept: Any, proper: Any, history: Any) -> None:
    """Raises AlteredError unless the best value of ``ReduceLROnPlateau`` is in a record."""
    seen = [sign * row["validation_elbo"] for row in history for sign in (-1, 1)]
    seen = [value for value in seen if math.isfinite(value)] or [proper["best"]]
    require(kept["best"] in seen, "scheduler/best is in no record")


def _check_rates(state: Any, scheduler: Any, steps: int) -> None:
    """Raises AlteredError unless the learning rates are those of the scheduler at its step."""
    rates = [float(g["lr"]) for g in state["optimizer"]["param_groups"]]
    last = list(map(float, state["scheduler"]["_last_lr"]))
    require(last == rates, "its learning rates are not those of its scheduler")
    expected = _rates_at(scheduler, steps) or rates
    bases = getattr(scheduler, "base_lrs", rates)
    for base, rate, other in zip(bases, rates, expected, strict=True):
        scale = max(abs(float(base)), abs(float(other)))
        require(
            abs(rate - float(other)) <= _LR_ERROR * scale,
            f"its learning rate is {rate:g}, and is {float(other):g} at step {steps} of its "
            "scheduler",
        )


def _is_of_torch(scheduler: Any) -> bool:
    """Whether a scheduler, with those inside it, is one of torch's."""
    inner = getattr(scheduler, "_schedulers", ())
    return type(scheduler).__module__ == LambdaLR.__module__ and all(
        map(_is_of_torch, inner)
    )


def _check_schedule(
    path: str,
    scheduler: Any,
    kept: Any,
    proper: Any,
    steps: int | None,
) -> None:
    """Raises AlteredError unless a scheduler of torch has its own options and counts.

    Arguments:
        path: names the scheduler in the error.
        scheduler: of the run.
        kept: its state in the checkpoint.
        proper: its state in a fresh run.
        steps: how many steps it has taken; None if that is unknown.
    """
    require(
        isinstance(kept, dict) and set(kept) == set(proper), f"{path} has other entries"
    )
    for name, value in proper.items():
        if name not in _CHANGES:
            check_same(f"{path}/{name}", kept[name], value)
        elif name != "_schedulers":
            check_like(f"{path}/{name}", kept[name], value)
    for name in _COUNTS & set(proper):
        require(is_count(kept[name], -1), f"{path}/{name} is {kept[name]!r:.40}")
    if steps is not None:
        _check_counts(path, scheduler, kept, proper, steps)
    _check_parts(path, scheduler, kept, proper, steps)


def _check_parts(
    path: str,
    scheduler: Any,
    kept: Any,
    proper: Any,
    steps: int | None,
) -> None:
    """Checks the schedulers inside one; see ``_check_schedule``."""
    inner = getattr(scheduler, "_schedulers", [])
    require(
        not inner or len(kept["_schedulers"]) == len(inner), f"{path} has other parts"
    )
    for i, part in enumerate(inner):
        mine = kept["_schedulers"][i]
        theirs = proper["_schedulers"][i]
        taken = steps
        if steps is not None and not isinstance(scheduler, ChainedScheduler):
            taken = _steps_of_part(scheduler, i, steps, theirs)
        _check_schedule(f"{path}/{i}", part, mine, theirs, taken)


def _check_counts(
    path: str,
    scheduler: Any,
    kept: Any,
    proper: Any,
    steps: int,
) -> None:
    """Raises AlteredError unless a scheduler counts the steps that it has taken."""
    if "last_epoch" in proper:
        check_same(
            f"{path}/last_epoch", kept["last_epoch"], proper["last_epoch"] + steps
        )
    if "_step_count" in proper:
        first = proper["_step_count"]
        require(
            first <= kept["_step_count"] <= first + steps + 1,
            f"{path}/_step_count is {kept['_step_count']}",
        )
    if "cooldown_counter" in proper:
        few = (
            kept["cooldown_counter"] <= scheduler.cooldown
            and kept["num_bad_epochs"] <= steps
        )
        require(few, f"{path} counts more records than there are")
    if isinstance(scheduler, CosineAnnealingWarmRestarts):
        expected = _since_restart(scheduler, kept["last_epoch"])
        require((kept["T_cur"], kept["T_i"]) == expected, f"{path} restarts elsewhere")


def _steps_of_part(
    scheduler: SequentialLR,
    i: int,
    steps: int,
    proper: Any,
) -> int:
    """How many steps part `i` of a sequence has taken after `steps` of the whole."""
    marks = [0, *scheduler._milestones, math.inf]
    if bisect_right(scheduler._milestones, steps) < i:
        return 0
    ended = int(min(steps, marks[i + 1] - 1))
    if i == 0:
        return ended
    return ended - int(marks[i]) - int(proper.get("last_epoch", 0))


def _since_restart(
    scheduler: CosineAnnealingWarmRestarts, steps: int
) -> tuple[int, int]:
    """Steps since the last restart, and from that restart to the next."""
    since = steps
    length = scheduler.T_0
    if scheduler.T_mult == 1:
        return since % length, length
    while since >= length:
        since = since - length
        length = length * scheduler.T_mult
    return since, length


def _rates_at(scheduler: Any, steps: int) -> list[float] | None:
    """The learning rates of a scheduler after `steps`; None if there is no formula for them."""
    formula = getattr(scheduler, "_get_closed_form_lr", None)
    if isinstance(scheduler, LambdaLR | OneCycleLR | CosineAnnealingWarmRestarts):
        formula = scheduler.get_lr
    if formula is None:
        return None
    before = vars(scheduler).copy()
    options = [dict(g) for g in scheduler.optimizer.param_groups]
    try:
        scheduler.last_epoch = steps
        scheduler._get_lr_called_within_step = True
        if isinstance(scheduler, CosineAnnealingWarmRestarts):
            scheduler.T_cur, scheduler.T_i = _since_restart(scheduler, steps)
        return [float(rate) for rate in formula()]
    finally:
        vars(scheduler).update(before)
        for group, values in zip(
            scheduler.optimizer.param_groups, options, strict=True
        ):
            group.update(values)
