"""What a checkpoint must agree with before a run is taken up from it, in words; and the way back
within a run.
"""

import copy
from pathlib import Path
from typing import Any

import torch

from vilvm._runtime.random import rng_state, set_rng_state
from vilvm.training.checkpoint import CheckpointError, spoiled

__all__ = ["Kept", "Position", "match"]


def match(found: Path, mine: dict[str, Any], state: Any) -> None:
    """Raises CheckpointError at the first setting of a run (`mine`) that is not that of the
    `state` of the checkpoint `found`.
    """
    theirs = state.get("settings") if isinstance(state, dict) else None
    if not isinstance(theirs, dict) or set(theirs) != set(mine):
        raise spoiled(found, "it is altered: it has other settings than those of a run")
    for name, value in mine.items():
        other = theirs[name]
        if type(value) is type(other) and value == other:
            continue
        if name == "functions" and _of_two_pythons(value, other):
            continue
        raise CheckpointError(
            f"Checkpoint {found} {_difference(name, value, other)}; or start a new run."
        )


def _of_two_pythons(value: dict[str, str], other: Any) -> bool:
    """Whether functions are the same but for what another version of Python makes of them."""
    return (
        isinstance(other, dict) and set(other) == set(value) and other["Python"] != value["Python"]
    )


def _difference(name: str, value: Any, other: Any) -> str:
    """In what a setting differs, and what to do."""
    if name in ("data", "validation"):
        return f"was made with other {name} data or another transform; resume with the same"
    if not isinstance(value, dict) or not isinstance(other, dict):
        return f"was made with {name} = {other}, this run has {value}; resume with the same"
    key = min(k for k in {*value, *other} - {"Python"} if other.get(k) != value.get(k))
    before, now = (f"{d[key]}"[:200] if key in d else "none" for d in (other, value))
    if name == "functions":
        return (
            f"was made with another function, by its code or its constants: {key}; resume with "
            "the same"
        )
    return (
        f"is of a model whose {name} differ, first {key!r} ({before}, now {now}); build the model "
        "as it was"
    )


class Position:
    """Where a run is, but for what a step that is not good leaves alone: parameters, buffers, the
    optimizer's moments.
    """

    def __init__(self, run: Any):
        self.run, self.at, self.generators = run, run.at, rng_state(run.device)
        self.groups = [
            {k: v for k, v in g.items() if k != "params"} for g in run.optimizer.param_groups
        ]
        self.scheduler = (
            None if run.scheduler is None else copy.deepcopy(run.scheduler.state_dict())
        )
        self.objective = run.objective_state()
        self.counts = run.compiled.counts

    def restore(self) -> None:
        """Puts the run back."""
        run, run.at, run.compiled.counts = self.run, self.at, self.counts
        set_rng_state(self.generators, run.device)
        for group, values in zip(run.optimizer.param_groups, self.groups, strict=True):
            group.update(values)
        if run.scheduler is not None:
            run.scheduler.load_state_dict(self.scheduler)
        if self.objective is not None:
            run.objective.load_state_dict(self.objective)


class Kept:
    """A copy of all that a run moves, at a position, to which the run can go back."""

    def __init__(self, position: Position):
        run = position.run
        self.position = position
        self.tensors = [
            (t, t.detach().clone()) for t in (*run.lvm.parameters(), *run.lvm.buffers())
        ]
        self.optimizer = copy.deepcopy(run.optimizer.state_dict())
        self.tally, self.records = copy.copy(run.tally), list(run.history.records)
        self.rest = {
            n: getattr(run, n) for n in ("skipped", "best", "best_step", "best_bound", "stopped")
        }

    def restore(self) -> None:
        """Puts the run back; the seconds that it took stay."""
        run = self.position.run
        with torch.no_grad():
            for tensor, value in self.tensors:
                tensor.copy_(value)
        run.optimizer.load_state_dict(self.optimizer)
        self.position.restore()
        run.tally = copy.copy(self.tally)
        run.history.records[:] = self.records
        for name, value in self.rest.items():
            setattr(run, name, value)
