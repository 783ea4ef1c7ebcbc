"""A training run: its specification, the objects that it uses, and its state."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vilvm._compile import Compile
from vilvm._runtime.distributed import ProcessGroup
from vilvm._runtime.unchanged import Unchanged
from vilvm.data.data import Data
from vilvm.data.tensors import named_tensors
from vilvm.lvm import ContractError
from vilvm.trackers.tracker import Tracker
from vilvm.training._batches import Batches, Turns
from vilvm.training._layouts import Layouts, explain_small_batch
from vilvm.training._model_arguments import Arguments, Call, as_tensors
from vilvm.training._signals import Interruption
from vilvm.training.compiled_step import CompiledStep
from vilvm.training.history import History
from vilvm.training.result import Event, Fit
from vilvm.training.step import Objective
from vilvm.weights import Layout

__all__ = [
    "Run",
    "RunSpec",
    "RunState",
    "StepInputs",
    "Tally",
    "objective_state",
    "tracked_settings",
]

_PLAIN = str | int | float


@dataclass(frozen=True)
class RunSpec:
    """The checked arguments of ``fit``, with the data on their device and epochs as steps."""

    lvm: Any
    objective: Objective
    batches: Batches | Turns
    total: int
    record_steps: int
    device: torch.device
    validation: Data | None = None
    seed: int = 0
    patience_steps: int | None = None
    clip: float | None = None
    skip: bool = False
    folder: Path | None = None
    checkpoint_seconds: float = math.inf
    callbacks: Sequence[Callable[[Event], bool | None]] = ()
    per_epoch: bool = False
    compile: Compile = "auto"
    ranks: ProcessGroup = field(default_factory=ProcessGroup)
    precision: str = "float32"
    arguments: Arguments | None = None
    after_step: Callable[[Any, int], Any] | None = None
    tracker: Tracker | None = None

    @property
    def observed(self) -> bool:
        """Whether code of the user receives the records, which it must not receive twice."""
        return bool(self.callbacks) or self.tracker is not None

    @property
    def log(self) -> Callable[[str], None]:
        """Prints a line on the main rank only."""
        return print if self.ranks.is_main else _silent

    @property
    def parallel(self) -> bool:
        """Whether several ranks share the data."""
        return self.ranks.size > 1


def _silent(_: str) -> None:
    """Prints nothing."""


@dataclass
class Tally:
    """Sums since the last record."""

    loss: float = 0.0
    norm: float = 0.0
    applied: int = 0
    skipped: int = 0
    data: int = 0
    seconds: float = 0.0

    @property
    def elbo(self) -> float:
        """Minus the mean loss of the steps that moved the parameters; NaN without any."""
        return -self.loss / self.applied if self.applied else math.nan

    @property
    def gradient_norm(self) -> float:
        """The mean norm over the steps that moved the parameters; NaN without any."""
        return self.norm / self.applied if self.applied else math.nan


@dataclass
class RunState:
    """What changes during a run, besides model, optimizer, scheduler and objective.

    Arguments:
        step: steps taken.
        history: the records so far.
        tally: sums since the last record.
        seconds: of training.
        skipped: steps that were not finite and changed nothing.
        best: the parameters of the best record, with validation data.
        best_step: the step of that record.
        best_bound: its validation ELBO, nats per datum.
        stopped: why training ended, "finished" until it does.
        hooked: whether code of the user runs between steps and may change options and counts.
        compiles: whether the run compiles its steps.
    """

    step: int = 0
    history: History = field(default_factory=History)
    tally: Tally = field(default_factory=Tally)
    seconds: float = 0.0
    skipped: int = 0
    best: dict[str, Any] | None = None
    best_step: int = 0
    best_bound: float = -math.inf
    stopped: str = "finished"
    hooked: bool = False
    compiles: bool = False

    @property
    def last_record(self) -> int:
        """The step of the last record, 0 without any."""
        records = self.history.records
        return records[-1].step if records else 0

    @property
    def running(self) -> bool:
        """Whether nothing has stopped the run."""
        return self.stopped == "finished"

    def out_of_patience(self, patience_steps: int | None) -> bool:
        """Whether so many steps have passed since the best validation ELBO."""
        return patience_steps is not None and (
            self.step - self.best_step >= patience_steps
        )


class StepInputs:
    """The inputs of each step: its batch and arguments. Also detects writes into the data.

    Arguments:
        spec: of the run.
    """

    def __init__(self, spec: RunSpec):
        self.spec = spec
        data = [b.data for b in spec.batches.sources]
        if spec.validation is not None:
            data.append(spec.validation)
        self._unchanged = Unchanged(named for d in data for named in named_tensors(d.x))

    def __call__(self, step: int) -> Any:
        """The batch of a step, as a ``Call`` if the step has arguments."""
        batch = self.spec.batches(step)
        if self.spec.arguments is None:
            return batch
        return Call(batch, self.arguments(step))

    def stacked(
        self, step: int, count: int
    ) -> tuple[list[torch.Tensor], list[int]] | None:
        """The batches of `count` steps, none of which ends an epoch; see ``Batches.stacked``."""
        batches = self.spec.batches
        if self.spec.arguments is not None or not isinstance(batches, Batches):
            return None
        return batches.stacked(step, count)

    def arguments(self, step: int) -> dict[str, torch.Tensor]:
        """The arguments of a step as tensors, which are inputs of a compiled step."""
        assert self.spec.arguments is not None
        given = self.spec.arguments(step)
        self.check_data("The function arguments")
        return as_tensors(given, self.spec.lvm, self.spec.device)

    def check_data(self, who: str) -> None:
        """Raises ContractError, naming `who`, if the data were changed in place."""
        self._unchanged.check(who, "the data")


@dataclass
class Run:
    """What the loop, the recorder and the checkpoints of one run share.

    Arguments:
        spec: the checked arguments of ``fit``.
        inputs: the inputs of each step.
        layouts: of the batches met so far.
        validation_layout: of the data that a record evaluates.
        optimizer: a torch optimizer of all trainable parameters.
        scheduler: a torch learning-rate scheduler, or None.
        compiled: the compiled step, which holds the eager one.
        settings: all that a checkpoint must agree with to be resumed.
        objective_start: the state of the objective before the run.
        state: what changes during the run.
        signals: the signals that ask it to stop.
    """

    spec: RunSpec
    inputs: StepInputs
    layouts: Layouts
    validation_layout: Layout
    optimizer: Any
    scheduler: Any
    compiled: CompiledStep
    settings: dict[str, Any]
    objective_start: Any
    state: RunState
    signals: Interruption = field(default_factory=Interruption)

    @property
    def epoch_steps(self) -> int:
        """Steps of one epoch."""
        return self.spec.batches.epoch_steps

    def current_inputs(self) -> Any:
        """The inputs of the next step."""
        return self.inputs(self.state.step)

    def num_data(self, batch: Any) -> float:
        """The divisor that makes a batch's loss one per datum; 1 if the data share a latent."""
        batch = batch.batch if isinstance(batch, Call) else batch
        try:
            layout = self.layouts.find(batch)
        except ContractError as error:
            raise explain_small_batch(
                error, self.state.step, self.spec.batches
            ) from None
        return layout.num_data * layout.scale if layout.local else 1.0

    def result(self) -> Fit:
        """The result, with the best parameters loaded into the model."""
        spec = self.spec
        state = self.state
        best_step = state.step
        if state.best is not None and state.stopped != "interrupted":
            spec.lvm.load_state_dict(state.best)
            best_step = state.best_step
        return Fit(
            history=state.history,
            steps=state.step,
            stopped=state.stopped,
            best_step=best_step,
            seconds=state.seconds,
            compile_seconds=self.compiled.seconds,
            skipped=state.skipped,
            protocol=spec.batches.data.protocol(),
            settings=self.settings,
        )


def tracked_settings(run: Run) -> dict[str, Any]:
    """The settings of a run that a tracker compares: numbers, text and None."""
    spec = run.spec
    epoch = run.epoch_steps
    plain = {n: v for n, v in run.settings.items() if isinstance(v, _PLAIN | None)}
    trained = sum(p.numel() for p in spec.lvm.parameters() if p.requires_grad)
    return {
        **plain,
        "trained_parameters": trained,
        "steps": spec.total,
        "epochs": spec.total / epoch,
        "validate_every": spec.record_steps / epoch,
        "patience": spec.patience_steps and spec.patience_steps // epoch,
    }


def objective_state(objective: Any) -> Any:
    """The state of the objective, or None if it has none."""
    return objective.state_dict() if hasattr(objective, "state_dict") else None
