"""The training loop: takes steps, writes records, saves checkpoints, and stops.

Compiled steps are launched in blocks, and their results read once a block, so that a GPU is not
synchronised at every step. They are compared with the eager step from time to time; if they
differ, the run returns to the last comparison that passed.
"""

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from vilvm._runtime.memory import widen_heap
from vilvm._runtime.progress import ProgressBar
from vilvm._runtime.random import rng_state, set_rng_state
from vilvm._runtime.unchanged import Unchanged
from vilvm.data.tensors import named_tensors
from vilvm.lvm import ContractError, module_parameters
from vilvm.training._block import Block
from vilvm.training._failures import nonfinite_step, refused_step
from vilvm.training._model_arguments import Call
from vilvm.training._recorder import IN_TRAINING, Recorder
from vilvm.training._rollback import Position, Snapshot
from vilvm.training._run import Run
from vilvm.training._signals import interruptible
from vilvm.training._state import Checkpoints
from vilvm.training.compiled_step import Diverged, Program
from vilvm.training.step import Step, StepResult

__all__ = ["Loop"]

# The most steps at the start that run eagerly, with Pyro's checks of every datum.
_CHECKED_STEPS = 2000
# The duration of a block of compiled steps. Signals and clock are checked after each block.
_SECONDS_AT_ONCE = 0.1
_PROGRESS_EVERY = 20  # steps


class Loop:
    """The loop over the steps of a run.

    Arguments:
        run: prepared, with seeded generators.
        checkpoints: of the run.
    """

    def __init__(self, run: Run, checkpoints: Checkpoints):
        self.run = run
        self.state = run.state
        self.compiled = run.compiled
        self.checkpoints = checkpoints
        self.recorder = Recorder(run)
        self._start: Position  # of the block of steps
        self._good: Snapshot | None = None  # the last confirmed state
        if not run.spec.parallel:  # ranks cannot return to an earlier step one by one
            self.compiled.keep = self._keep

    def train(self, progress: bool) -> None:
        """Takes all steps that are left.

        Arguments:
            progress: whether to show the progress.
        """
        run = self.run
        spec = self.run.spec
        _warn_of_warmup(spec.objective, spec.total)
        widen_heap()
        if self.state.step == 0:
            self.checkpoints.save()
        if not spec.ranks.is_main:
            progress = False
        self.recorder.track_settings()
        with (
            interruptible() as run.signals,
            ProgressBar("training", spec.total, self.state.step, progress) as bar,
            _without_pyro_warnings(len(spec.batches.sources)),
        ):
            while self.state.step < spec.total and self.state.running:
                self._advance(bar)
            self.checkpoints.save()
            self._record_last()
        self._report_end()

    def _advance(self, bar: ProgressBar) -> None:
        """Takes some steps; then records, stops or saves if that is due."""
        before = self.state.step
        self.compiled.eager.flags = self._requests()
        self.take_steps()
        last = self.state.step == self.run.spec.total
        numbers = None
        if last or self.state.step // _PROGRESS_EVERY > before // _PROGRESS_EVERY:
            numbers = self.recorder.progress()
        bar.advance(self.state.step - bar.done, numbers)
        # Compiled steps are confirmed before they are reported; until then the run can go back.
        due = self._record_due
        if (last or (due and self.run.spec.observed)) and not self._confirmed():
            return
        if due:
            self._record()
        self._stop_or_save()

    @property
    def _record_due(self) -> bool:
        return self.state.step == self.recorder.next_step

    def _record(self) -> None:
        spec = self.run.spec
        self.recorder.record()
        self.compiled.check_soon(always=bool(spec.callbacks))
        if spec.observed and self.state.compiles and self.compiled.goes_back:
            # The run never returns to a step before this one, so no callback is called twice.
            self._good = Snapshot(Position(self.run))
        if not self.state.running:
            self._confirmed()  # if this fails, the run has not stopped

    def _requests(self) -> list[bool]:
        """Whether this rank asks to stop, and whether it asks to save."""
        return [self.run.signals.asked, self.checkpoints.due]

    def _stop_or_save(self) -> None:
        """Ends the run after a signal, and saves it when a checkpoint is due."""
        # All ranks stop and save after the same step: each knows the requests of all by now.
        requests = self._requests()
        if self.run.spec.parallel:
            requests = self.compiled.eager.flags
        stop, save = requests
        if (stop or save) and not self._confirmed():
            return
        if stop and self.state.running and self.state.step < self.run.spec.total:
            self.state.stopped = "interrupted"
        if save:
            self.checkpoints.save()

    def _record_last(self) -> None:
        """Adds a record of the last step.

        It is not in the checkpoint: a run that is resumed with more steps does not record here.
        """
        if self.state.last_record < self.state.step == self.run.spec.total:
            self.recorder.record()
            self.checkpoints.write_history()

    def _report_end(self) -> None:
        state = self.state
        spec = self.run.spec
        if state.skipped and state.skipped == state.step:
            warnings.warn(
                f"All {state.step} steps were skipped because their loss or gradient was not "
                "finite: nothing was trained.",
                stacklevel=4,
            )
        if state.stopped == "interrupted" and spec.ranks.is_main:
            how = ""
            if spec.folder is not None:
                how = f" Resume with the same call and resume=True (run folder {spec.folder})."
            print(f"Interrupted after step {state.step} of {spec.total}.{how}")

    # Going back
    # ------------------------------------------------------------------------------------

    def _keep(self) -> None:
        """Keeps the state before this block of steps; all earlier steps are confirmed."""
        self._good = Snapshot(self._start)

    def _go_back(self, found: Diverged) -> None:
        """Returns to the last snapshot."""
        assert self._good is not None
        self._good.restore()
        self.compiled.go_back(found, self.state.step)

    def _confirmed(self) -> bool:
        """Whether all compiled steps equal the eager ones; if not, the run has gone back."""
        if self.compiled.keep is None or not self.compiled.unconfirmed:
            return True
        self._start = Position(self.run)
        try:
            batch = self.run.current_inputs()
            self.compiled.check_soon(always=True)
            self._ready(batch)
        except Diverged as found:
            self._go_back(found)
            return False
        set_rng_state(self._start.generators, self.run.spec.device)
        return True

    def _ready(self, batch: Any) -> Program | None:
        """The program for a batch, compared with the eager step when that is due."""
        with (
            pyro.validation_enabled(False),
            module_parameters(self.run.spec.lvm, frozen=True),
        ):
            return self.compiled.ready(batch, self.run.num_data(batch))

    # Steps
    # ------------------------------------------------------------------------------------

    def take_steps(self) -> None:
        """Takes as many steps as can be taken before signals, clock or data must be checked."""
        if self.state.compiles and not self._is_checked:
            self._start = Position(self.run)
        try:
            count = self._steps_at_once()
            if count < 2 or not self._launch_block(count):
                self._one_step()
        except Diverged as found:
            self._go_back(found)

    @property
    def _is_checked(self) -> bool:
        """Whether Pyro's checks are on: for the first epoch."""
        return self.state.step < min(self.run.epoch_steps, _CHECKED_STEPS)

    def _steps_at_once(self) -> int:
        """How many steps to launch: until the next event, and for 0.1 s at most; 1 if eager."""
        spec = self.run.spec
        state = self.state
        epoch = self.run.epoch_steps
        # User code between steps may change what a program holds constant. With several sources,
        # the next batch is of another kind.
        user_code = spec.after_step is not None or spec.arguments is not None
        one_by_one = user_code or len(spec.batches.sources) > 1
        if one_by_one or not state.compiles or self._is_checked:
            return 1
        same_shape = spec.total
        if epoch > 1:  # the last batch of an epoch may be smaller
            same_shape = (
                len(spec.batches.data) // spec.batches.size - state.step % epoch
            )
        step_seconds = math.inf
        if state.tally.data:
            step_seconds = state.tally.seconds * spec.batches.size / state.tally.data
        return min(
            self.compiled.at_once,
            same_shape,
            self.recorder.next_step - state.step,
            spec.total - state.step,
            max(1, round(_SECONDS_AT_ONCE / step_seconds)),
        )

    def _launch_block(self, count: int) -> bool:
        """Launches compiled steps and synchronises once after them.

        Steps after one that is not finite change nothing; the run returns to that one and takes
        it alone.

        Returns:
            False if the step is not compiled; nothing has changed then.
        """
        start = self._start
        began = time.perf_counter()
        batch = self.run.current_inputs()
        program = self._ready(batch)
        if program is None:
            start.restore()
            return False
        results = self._launched(program, batch, count)
        finite = next(
            (i for i, (_, _, moved) in enumerate(results) if not moved), len(results)
        )
        if finite < len(results):
            start.restore()
            for _ in range(finite):
                self.compiled.rehearse(program, self.run.current_inputs())
                self._count_step()
        # added one by one, so that the sums do not depend on the size of the block
        for loss, norm, _ in results[:finite]:
            self.state.tally.loss += loss
            self.state.tally.norm += norm
        self.state.tally.applied += finite
        self._count_time(began, finite * self.run.spec.batches.size)
        if finite < len(results):
            self._start = Position(self.run)
            self._one_step()
        return True

    def _launched(
        self,
        program: Program,
        batch: Any,
        count: int,
    ) -> list[list[float]]:
        """Loss, gradient norm and whether the parameters moved, of up to `count` steps."""
        block = self.compiled.block(program)
        given = self.run.inputs.stacked(self.state.step, count) if block else None
        if block is not None and given is not None:
            return self._launched_together(program, block, given, count)
        results: list[Tensor] = []
        before: Tensor | None = None
        while True:
            try:
                before = self.compiled.launch(program, batch, before)
                results.append(before)
            except Exception as error:
                self.compiled.fail(error)
            self._count_step()
            if len(results) == count or self._scheduler_changed(program):
                return torch.stack(results).tolist()
            batch = self.run.current_inputs()

    def _launched_together(
        self,
        program: Program,
        block: Block,
        given: tuple[list[Tensor], list[int]],
        count: int,
    ) -> list[list[float]]:
        """The same, from steps that are taken without Python between them."""
        added = 0
        while added < count:
            left = count - added if self.run.scheduler is None else 1
            new = self.compiled.add_to(block, left)
            added += new
            self._count_step(new)
            if self._scheduler_changed(program):
                break
        try:
            return block.launch(*given).tolist()
        except Exception as error:
            self.compiled.fail(error)
            raise

    def _scheduler_changed(self, program: Program) -> bool:
        """Whether the scheduler, which may be user code, changed what the program holds fixed."""
        return self.run.scheduler is not None and program.guards.changed() is not None

    def _one_step(self) -> None:
        """Takes one step and adds it to the tally."""
        spec = self.run.spec
        state = self.state
        checked = self._is_checked
        noise = rng_state(spec.device)
        buffers: list[tuple[Tensor, Tensor]] = []
        if spec.skip:  # batch statistics, which a forward pass changes
            buffers = [(b, b.clone()) for b in spec.lvm.buffers()]
        # Pyro checks support and shape during the first epoch; finiteness is always checked.
        with pyro.validation_enabled(checked), module_parameters(spec.lvm, frozen=True):
            batch = self.run.current_inputs()
            num_data = self._num_data_of_share(batch)
            if state.compiles and checked:  # the first epoch has batches of every shape
                self.compiled.prepare(batch, num_data)
            began = time.perf_counter()
            step: Step = self.compiled.eager
            if state.compiles and not checked:
                step = self.compiled
            result = self._tried(step, batch, num_data, noise)
        if result.applied:
            self._count_applied(result)
        elif spec.skip:
            for buffer, value in buffers:
                buffer.copy_(value)
            state.tally.skipped += 1
            state.skipped += 1
        else:
            raise nonfinite_step(self.run, result.loss, noise)
        self._count_time(began, spec.batches.count(state.step))
        self._count_step()

    def _num_data_of_share(self, batch: Any) -> float:
        """The divisor of this rank's loss, with which the losses of all ranks add up to a mean."""
        weight = self.run.spec.batches.weight(self.state.step)
        return self.run.num_data(batch) / weight if weight else math.inf

    def _tried(
        self,
        step: Step,
        batch: Any,
        num_data: float,
        noise: list[Tensor],
    ) -> StepResult:
        """The result of a step; raises ContractError if it changed its batch in place."""
        given = batch.batch if isinstance(batch, Call) else batch
        unchanged = Unchanged(named_tensors(given))
        try:
            result = step(batch, num_data)
        except ContractError:
            raise
        except ValueError as error:
            result = refused_step(self.run, error, noise)
        except RuntimeError:  # perhaps autograd's, about a tensor changed in place
            unchanged.check(IN_TRAINING)
            raise
        unchanged.check(IN_TRAINING)
        return result

    def _count_applied(self, result: StepResult) -> None:
        """Adds a step that moved the parameters to the tally, and calls ``after_step``."""
        spec = self.run.spec
        tally = self.state.tally
        tally.loss += result.loss
        tally.norm += result.gradient_norm
        tally.applied += 1
        if spec.after_step is not None:
            with torch.no_grad():
                spec.after_step(spec.lvm, self.state.step + 1)
            self.run.inputs.check_data("The function after_step")

    def _count_step(self, count: int = 1) -> None:
        """Counts steps, several only without a scheduler, and steps the scheduler if it is due."""
        self.state.step += count
        scheduler = self.run.scheduler
        if scheduler is None or isinstance(scheduler, ReduceLROnPlateau):
            return
        if not self.run.spec.per_epoch or self.state.step % self.run.epoch_steps == 0:
            scheduler.step()

    def _count_time(self, began: float, data: int) -> None:
        elapsed = time.perf_counter() - began
        self.state.tally.data += data
        self.state.tally.seconds += elapsed
        self.state.seconds += elapsed


@contextmanager
def _without_pyro_warnings(sources: int) -> Iterator[None]:
    """Hides warnings that do not apply, or that our own errors replace."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Encountered (NaN|[+]?inf)")
        # Sites that are enumerated in one kind of batch may be observed in another.
        if sources > 1:
            warnings.filterwarnings("ignore", "TraceEnum_ELBO found no sample sites")
        yield


def _warn_of_warmup(objective: Any, total: int) -> None:
    warmup = getattr(objective, "warmup", 0)
    if warmup > total:
        warnings.warn(
            f"The KL warm-up takes {warmup} steps and training only {total}: the objective never "
            "becomes the ELBO. Train longer or warm up faster.",
            stacklevel=3,
        )
