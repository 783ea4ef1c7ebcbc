"""The return of a run to an earlier step: to a position, or to a snapshot in memory."""

import copy
from typing import Any

import torch

from vilvm._runtime.random import rng_state, set_rng_state
from vilvm.training._run import Run, objective_state

__all__ = ["Position", "Snapshot"]

_KEPT = ("skipped", "best", "best_step", "best_bound", "stopped")  # of the state


class Position:
    """Counts, generators and options of a run.

    Parameters, buffers and the optimizer's moments are not copied: a non-finite step leaves them
    unchanged.
    """

    def __init__(self, run: Run):
        self.run = run
        self.step = run.state.step
        self.generators = rng_state(run.spec.device)
        self.groups = [_options(group) for group in run.optimizer.param_groups]
        self.scheduler: Any = None
        if run.scheduler is not None:
            self.scheduler = copy.deepcopy(run.scheduler.state_dict())
        self.objective = objective_state(run.spec.objective)
        self.counts = run.compiled.counts

    def restore(self) -> None:
        """Returns the run to this position."""
        run = self.run
        run.state.step = self.step
        run.compiled.counts = self.counts
        set_rng_state(self.generators, run.spec.device)
        for group, options in zip(run.optimizer.param_groups, self.groups, strict=True):
            group.update(options)
        if run.scheduler is not None:
            run.scheduler.load_state_dict(self.scheduler)
        if self.objective is not None:
            run.spec.objective.load_state_dict(self.objective)  # type: ignore[attr-defined]


class Snapshot:
    """A copy of all that a run changes, at a position.

    Arguments:
        position: taken when nothing has changed since.
    """

    def __init__(self, position: Position):
        run = position.run
        self.position = position
        tensors = (*run.spec.lvm.parameters(), *run.spec.lvm.buffers())
        self.tensors = [(t, t.detach().clone()) for t in tensors]
        self.optimizer = copy.deepcopy(run.optimizer.state_dict())
        self.tally = copy.copy(run.state.tally)
        self.num_records = len(run.state.history)
        self.kept = {name: getattr(run.state, name) for name in _KEPT}

    def restore(self) -> None:
        """Returns the run to the snapshot; the seconds since then remain counted."""
        run = self.position.run
        with torch.no_grad():
            for tensor, value in self.tensors:
                tensor.copy_(value)
        run.optimizer.load_state_dict(self.optimizer)
        self.position.restore()
        run.state.tally = copy.copy(self.tally)
        del run.state.history.records[self.num_records :]
        for name, value in self.kept.items():
            setattr(run.state, name, value)


def _options(group: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in group.items() if k != "params"}
