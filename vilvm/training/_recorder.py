"""The recorder of a run: history, validation, best parameters, callbacks and progress."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from vilvm._runtime.random import preserved_rng, seeded
from vilvm.data.data import Data
from vilvm.lvm import ContractError
from vilvm.trackers.tracker import Tracker
from vilvm.training._failures import is_nonfinite, last_checkpoint
from vilvm.training._run import Run, Tally, tracked_settings
from vilvm.training._validation import ValidationResult, validate
from vilvm.training.history import Record, next_record
from vilvm.training.result import Event
from vilvm.training.step import NonFiniteLossError

__all__ = ["IN_TRAINING", "Recorder"]

# The subject of an error message.
IN_TRAINING = "In training mode, the model or the guide"


class Recorder:
    """Writes the history of a run and decides whether it stops.

    Arguments:
        run: after its generators were seeded.
    """

    def __init__(self, run: Run):
        self.run = run
        self._seed = torch.initial_seed()

    @property
    def next_step(self) -> int:
        """The step of the next record: at the steady interval, or before, where patience ends."""
        spec = self.run.spec
        state = self.run.state
        due = next_record(state.last_record, spec.record_steps)
        if spec.patience_steps is None:
            return due
        end = state.best_step + spec.patience_steps
        # A run that is resumed with less patience may be past its end.
        ahead = state.last_record < end and state.step <= end
        return min(due, end) if ahead else due

    def record(self) -> None:
        """Adds a row to the history, keeps the best parameters, and calls the callbacks."""
        spec = self.run.spec
        state = self.run.state
        began = time.perf_counter()
        self._check_untouched()
        spec.ranks.broadcast([*spec.lvm.buffers()])  # batch statistics are rank 0's
        found = self._validated()
        state.seconds += time.perf_counter() - began
        state.history.records.append(self._row(found))
        self._track(state.history.records[-1])
        state.tally = Tally()
        if spec.validation is not None:
            self._keep_best(found.elbo)
        self._step_scheduler(found.elbo)
        self._decide()
        if state.step < spec.total and state.running:
            self._check_parameters()

    def progress(self) -> str:
        """The numbers beside the progress bar."""
        state = self.run.state
        tally = state.tally
        epoch, epochs = (
            max(1, math.ceil(step / self.run.epoch_steps))
            for step in (state.step, self.run.spec.total)
        )
        parts = [f"epoch {epoch} of {epochs}"]
        # a guide that puts a latent on one point has no ELBO
        is_point = bool(self.run.validation_layout.degenerate)
        if tally.applied:
            name = "log p(x, z)" if is_point else "ELBO"
            parts.append(f"{name} {tally.elbo:.2f}")
        if state.history.records and not is_point:
            parts.append(f"rate {state.history.records[-1].rate:.2f}")
        if self.run.compiled.seconds:
            parts.append(f"compiled in {self.run.compiled.seconds:.0f} s")
        if tally.seconds:
            parts.append(f"{tally.data / tally.seconds:,.0f} data/s")
        return "  ".join(parts)

    def _row(self, found: ValidationResult) -> Record:
        state = self.run.state
        tally = state.tally
        held_out = (math.nan, math.nan)
        if self.run.spec.validation is not None:
            held_out = found.elbo, found.se
        return Record(
            epoch=state.step // self.run.epoch_steps,
            step=state.step,
            elbo=tally.elbo,
            validation_elbo=held_out[0],
            validation_se=held_out[1],
            rate=found.rate,
            distortion=found.distortion,
            learning_rate=float(self.run.optimizer.param_groups[0].get("lr", math.nan)),
            gradient_norm=tally.gradient_norm,
            skipped=tally.skipped,
            seconds=state.seconds,
            data_per_second=tally.data / tally.seconds,
        )

    def _keep_best(self, bound: float) -> None:
        """Copies the parameters if their validation ELBO is the best so far."""
        state = self.run.state
        if not bound > state.best_bound:
            return
        state.best_bound = bound
        state.best_step = state.step
        state.best = {n: _copied(v) for n, v in self.run.spec.lvm.state_dict().items()}

    def _step_scheduler(self, bound: float) -> None:
        """Steps a ``ReduceLROnPlateau``, on the ELBO or, if it minimises, its negative."""
        scheduler = self.run.scheduler
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(-bound if scheduler.mode == "min" else bound)

    # Tracker
    # ------------------------------------------------------------------------------------

    def track_settings(self) -> None:
        """Sends the settings to the tracker, on the main rank."""
        if self._tracker is not None:
            with preserved_rng(self.run.spec.device):
                self._tracker.settings(tracked_settings(self.run))

    def _track(self, record: Record) -> None:
        """Sends the finite numbers of a record to the tracker."""
        if self._tracker is None:
            return
        numbers = {n: v for n, v in vars(record).items() if math.isfinite(v)}
        with preserved_rng(self.run.spec.device):
            self._tracker.metrics(numbers.pop("step"), numbers)

    @property
    def _tracker(self) -> Tracker | None:
        spec = self.run.spec
        return spec.tracker if spec.ranks.is_main else None

    # Validation
    # ------------------------------------------------------------------------------------

    def _validated(self) -> ValidationResult:
        """ELBO, rate and distortion; with ``nonfinite="skip"``, NaN if they are not finite."""
        run = self.run
        spec = self.run.spec
        seed = spec.seed
        if spec.validation is None:
            # one noise at all records would give them one error, and `rates` averages over them
            seed += 1 + run.state.step
        layout = run.validation_layout
        if layout.local:
            seed = spec.ranks.seed(seed)
        with seeded(seed, spec.device):
            data = self._validation_share()
            try:
                return validate(spec.lvm, spec.objective, data, layout, spec.ranks)
            except ContractError as error:
                if not is_nonfinite(spec.lvm, error):
                    raise
                if spec.skip:
                    return ValidationResult(math.nan, math.nan, math.nan, math.nan)
                raise NonFiniteLossError(
                    f"After step {run.state.step}, on the data of the record: {error} "
                    f"{last_checkpoint(spec)}"
                ) from None

    def _validation_share(self) -> Data:
        """This rank's share of the validation data or, without any, of the last batch."""
        spec = self.run.spec
        if spec.validation is None:
            step = spec.batches.record_batch(self.run.state.step - 1)
            batch = Data(spec.batches(step))
            return batch if spec.batches.weight(step) else batch.subset(slice(0, 0))
        shared = spec.parallel and self.run.validation_layout.local
        if not (shared and spec.validation.divisible):
            return spec.validation
        return spec.validation.subset(spec.ranks.shard(len(spec.validation)))

    # Stopping and callbacks
    # ------------------------------------------------------------------------------------

    def _decide(self) -> None:
        """Stops a run that is out of patience, or if a callback of any rank asks for it."""
        spec = self.run.spec
        state = self.run.state
        if state.out_of_patience(spec.patience_steps):
            state.stopped = "early"
        if spec.callbacks:
            # so that a callback reads or changes the complete state of the optimizer
            self.run.compiled.settle()
        # A list, so that every callback is called.
        answers = [self._call(callback) for callback in spec.callbacks]
        if spec.ranks.any(any(answers), spec.device):
            state.stopped = "callback"

    def _call(self, callback: Callable[[Event], bool | None]) -> bool | None:
        """The answer of a callback; its draws do not affect the run.

        Raises:
            ContractError: it changed the data in place.
        """
        with preserved_rng(self.run.spec.device):
            answer = callback(Event(self.run.spec.lvm, self.run.state.history))
        name = getattr(callback, "__qualname__", type(callback).__name__)
        self.run.inputs.check_data(f"The callback {name}")
        return answer

    # Checks
    # ------------------------------------------------------------------------------------

    def _check_untouched(self) -> None:
        """Raises ContractError if a step changed the data in place, or seeded the generators."""
        self.run.inputs.check_data(IN_TRAINING)
        if torch.initial_seed() != self._seed:
            raise ContractError(
                "Code in a step (model, guide, transform, arguments or after_step) seeds torch's "
                "generators (torch.manual_seed), so every step draws the same numbers: remove the "
                "call, and give the seed to fit (seed=...)."
            )

    def _check_parameters(self) -> None:
        """Raises ContractError if the optimizer lacks a parameter that is now to be trained."""
        known = {id(p) for p in self.run.compiled.parameters}
        for name, parameter in self.run.spec.lvm.named_parameters():
            if parameter.requires_grad and id(parameter) not in known:
                raise ContractError(
                    f"After step {self.run.state.step}: the optimizer does not know parameter "
                    f"{name!r}, which was added, replaced or unfrozen since training began. "
                    "Change parameters in place, and unfreeze between two calls of fit."
                )


def _copied(value: Any) -> Any:
    """A detached copy of a tensor; any other value unchanged."""
    return value.detach().clone() if isinstance(value, torch.Tensor) else value
