"""A run of training: the way of a step, the records, what is said in trouble, and what a
checkpoint holds.
"""

import hashlib
import math
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

import vilvm.training.checkpoint as checkpoint
from vilvm._compile import Compile, worth_compiling
from vilvm._runtime.distributed import ProcessGroup
from vilvm._runtime.files import NotWritten, read, write_atomic
from vilvm._runtime.memory import widen_heap
from vilvm._runtime.progress import ProgressBar
from vilvm._runtime.random import preserved_rng, rng_state, seeded, set_rng_state, set_seed
from vilvm._runtime.unchanged import Unchanged
from vilvm.data.data import Data
from vilvm.data.tensors import named_tensors, structure_of
from vilvm.lvm import ContractError, NonFiniteError, evaluation_mode, module_parameters, own_memory
from vilvm.training.batches import Batches, Turns
from vilvm.training.checkpoint_checks import check_state, counts_of
from vilvm.training.compiled_step import CompiledStep, Diverged
from vilvm.training.history import History, Record
from vilvm.training.model_arguments import Arguments, Call, Called, as_tensors, check_arguments
from vilvm.training.optimizers import (
    ByName,
    OptimizerFactory,
    SchedulerFactory,
    check_length,
    make_optimizer,
    make_scheduler,
)
from vilvm.training.result import Event, Fit
from vilvm.training.resume import Kept, Position, match
from vilvm.training.settings import describe, functions_of, words_of_optimizer, words_of_scheduler
from vilvm.training.signals import Interruption, interruptible
from vilvm.training.step import (
    NonFiniteLossError,
    Objective,
    Step,
    StepResult,
    check_objective,
    nest,
)
from vilvm.training.validation import ValidationResult, check, check_rows, look
from vilvm.weights import Layout, find_layout, weight_chunks
from vilvm.weights._per_datum import (
    INSTEAD,
    ByPosition,
    by_position,
    forget,
    remember,
    restart,
    unset_autoguides,
)
from vilvm.weights._vectorisation import VECTORISED, way_of
from vilvm.weights.checks import check_full_size
from vilvm.weights.log_weights import log_weights_pass

__all__ = ["Run"]

_WORTH_COMPILING = 5000  # steps from which a compiler's ten seconds are earned back
# at most, that are run eagerly at the start, for the sake of Pyro's checks of every datum
_CHECKED_STEPS = 2000
# of compiled steps between two looks at what they did, at signals and at the clock
_SECONDS_AT_ONCE = 0.1
_IN_TRAINING = "In training mode, the model or the guide"
_LACKS_DATA = "more than 1 value per channel"  # torch's words where batch normalisation has one
# so that a record, with its look at the validation data, costs little where an epoch is one step;
_MIN_STEPS_A_RECORD = 50
_SHARE_A_RECORD = 20  # and a twentieth of the steps so far, when these are more


@dataclass
class _Tally:
    """Sums since the last record."""

    loss: float = 0.0
    norm: float = 0.0
    applied: int = 0
    skipped: int = 0
    data: int = 0
    seconds: float = 0.0


def _unheard(_: str) -> None:
    """Stands where another rank speaks."""


@dataclass
class Run:
    """A run: what is given, and the state that a checkpoint holds."""

    lvm: Any
    objective: Objective
    batches: Batches | Turns
    validation: Data | None
    total: int
    seed: int
    patience: int | None
    skip: bool
    folder: Path | None
    checkpoint_seconds: float
    callbacks: Sequence[Callable[[Event], bool | None]]
    per_epoch: bool
    device: torch.device
    compile: Compile = "auto"
    signals: Interruption = field(default_factory=Interruption)
    ranks: ProcessGroup = field(default_factory=ProcessGroup)
    precision: str = "float32"
    arguments: Arguments | None = None
    after_step: Callable[[Any, int], Any] | None = None
    # in the objective: object, attribute and old value
    changed: list[tuple[Any, str, Any]] = field(default_factory=list)
    history: History = field(default_factory=History)
    at: int = 0
    tally: _Tally = field(default_factory=_Tally)
    seconds: float = 0.0
    skipped: int = 0
    best: dict[str, Any] | None = None
    best_step: int = 0
    best_bound: float = -math.inf
    stopped: str = "finished"
    # whether code of the user has run between steps, which may move options and counts
    hooked: bool = False

    def prepare(
        self, optimizer: OptimizerFactory, scheduler: SchedulerFactory | None, clip: float | None
    ) -> None:
        """Runs the pair once, which makes lazy parameters and checks the contract, then gives the
        parameters to the optimizer.
        """
        data = [
            *(b.data for b in self.batches.sources),
            *([] if self.validation is None else [self.validation]),
        ]
        self._unchanged = Unchanged(named for d in data for named in named_tensors(d.x))
        given = isinstance(optimizer, torch.optim.Optimizer) or hasattr(scheduler, "step")
        self.hooked = bool(self.callbacks) or self.after_step is not None or given
        self.objective_start = self.objective_state()
        self._layouts: dict[Any, Layout] = {}
        self._owned: set[str] = set()  # parameters of single data
        forget(self.lvm)
        self._saved_at, self._saved_time, self._resumed_at = -1, time.monotonic(), -1
        if self.arguments is not None:
            check_arguments(self.lvm, self._arguments(0))
        for source in self.batches.sources:
            self._check_source(source)
        self._check_validation()
        own_memory(self.lvm)
        self.ranks.broadcast([*self.lvm.parameters(), *self.lvm.buffers()])
        trainable = {n: p for n, p in self.lvm.named_parameters() if p.requires_grad}
        if not trainable:
            raise ContractError(
                f"{type(self.lvm).__name__} has no parameter to train: keep its networks in "
                "attributes of a torch.nn.Module, "
                "or declare parameters with pyro.param or pyro.module."
            )
        self.optimizer = make_optimizer(optimizer, trainable)
        by_name = optimizer.groups(trainable) if isinstance(optimizer, ByName) else []
        words = words_of_optimizer(self.optimizer, by_name)
        self.scheduler = None if scheduler is None else make_scheduler(scheduler, self.optimizer)
        if self.scheduler is not None:
            self._check_scheduler()
        self.compiled = CompiledStep(
            self.lvm,
            self.objective,
            self.optimizer,
            clip,
            log=self._log,
            kinds=len(self.batches.sources),
        )
        self.step: Step = self.compiled.eager
        self.compiled.eager.masked = tuple(
            {n for layout in self._layouts.values() for n in layout.masked}
        )
        if self.ranks.size == 1:  # of several, none can go back by itself
            self.compiled.keep = self._keep
        # By the length of the run, and not by a clock: two runs with one seed are the same.
        self.compiles = worth_compiling(self.compile, self.total, _WORTH_COMPILING)
        self.settings = {
            "lvm": type(self.lvm).__qualname__,
            "parameters": {
                n: f"{tuple(v.shape)} {v.dtype}"
                for n, v in self.lvm.state_dict().items()
                if isinstance(v, torch.Tensor)
            },
            "objective": describe(self.objective),
            "sites": self._sites(),
            "optimizer": words,
            "scheduler": words_of_scheduler(self.scheduler),
            "scheduler_interval": "epoch" if self.per_epoch else "step",
            "batch_size": self.batches.size,
            "clip": clip,
            "arguments": None if self.arguments is None else sorted(self._arguments(0)),
            "after_step": None
            if self.after_step is None
            else getattr(self.after_step, "__qualname__", type(self.after_step).__name__),
            "functions": functions_of(self.scheduler, self.arguments),
            "precision": self.precision,
            "seed": self.seed,
            "data": self.batches.data.fingerprint(),
            "validation": "none" if self.validation is None else self.validation.fingerprint(),
        }
        self._check_ranks()

    @property
    def _log(self) -> Callable[[str], None]:
        return print if self.ranks.is_main else _unheard

    def _check_source(self, batches: Batches) -> None:
        """That this objective can train this pair on batches of this source."""
        batch = batches(0)
        self._check_single_data(batches, batch)
        layout = self._layout(batch)
        check_objective(self.objective, layout.enumerated)
        if batches.data.divisible:
            check_full_size("fit", layout, len(batches.data), len(self.batches.data))
        self.changed += nest(
            self.objective, layout.nesting, partial(self._vectorises, batch, layout)
        )
        parts = not batches.whole
        if self.ranks.size > 1 and not batches.data.divisible:
            raise ContractError(
                "fit: these data cannot be shared out among ranks (their tensors share no first "
                "dimension); train them in one process."
            )
        if (parts or self.ranks.size > 1) and not layout.local and layout.scale == 1.0:
            part, instead = (
                (f"each batch of {batches.size}", "leave batch_size out")
                if parts
                else (f"the share of each of {self.ranks.size} ranks", "train it in one process")
            )
            raise ContractError(
                f"{type(self.lvm).__name__} has latents that its data share, or no plate over its "
                f"data, and would take {part} for all "
                f"{len(batches.data)}: {instead}, or give the plate its full size, "
                f"pyro.plate(..., {len(batches.data)}, subsample=batch)."
            )
        if parts or self.ranks.size > 1:
            self._check_axis(batches.data, layout, len(Data(batch)))
        if batches.leaves_out:
            self._log(
                "fit: the last batch of an epoch would hold one datum, of which batch "
                "normalisation has no statistics; it is left out, "
                f"another one every epoch ({len(batches.data)} data in batches of {batches.size})."
            )

    def _check_single_data(self, batches: Batches, batch: Any) -> None:
        """That a guide with parameters of single data, by their place, gets these data whole; it
        remembers which they are.
        """
        whole, unset = batches.whole and self.ranks.size == 1, unset_autoguides(self.lvm)
        try:
            self.num_data(batch)
            found = by_position(self.lvm, batch, self._layout(batch))
        except ContractError:
            restart(unset)
            found = None if whole else self._by_position_of_all(batches.data)
            if found is None:
                raise
        if found is None or (whole and not found.single):
            return
        if not whole or found.name in self._owned:
            restart(unset)
            what = "several sources of data" if whole else f"batches of {batches.size}"
            raise ContractError(
                f"fit: the guide's parameter {found.name!r} serves data by their place in the "
                f"batch, and {what} put others there: {INSTEAD}."
            )
        self._owned.add(found.name)
        # What a fresh transform makes of the data is never seen twice, so it cannot be told from
        # other data.
        if batches.data.transform is None or batches.data.transformed:
            remember(self.lvm, found.name, batch)

    def _by_position_of_all(self, data: Data) -> ByPosition | None:
        """What ``by_position`` finds on all data, of a guide that cannot run on part of them; None
        if it cannot run on all either.
        """
        with suppress(ContractError), seeded(self.seed, self.device):
            every = data.loaded().model_input()
            return by_position(self.lvm, every, find_layout(self.lvm, every, validate=False))
        return None

    def _sites(self) -> dict[str, str]:
        """The sites of model and guide, by name, with their distributions and the shapes of single
        events.
        """
        layouts = list(self._layouts.values())
        return {
            f"{name}, source {i}" if len(layouts) > 1 else name: words
            for i, layout in enumerate(layouts, start=1)
            for name, words in layout.sites.items()
        }

    def _check_axis(self, data: Data, layout: Layout, rows: int) -> None:
        """That the plate over the data is along the axis that batches are cut along, and not of
        their size by accident.
        """
        check_rows(self.lvm, layout, rows)
        other = rows - 1 if rows > 1 else 2
        if other > len(data):
            return
        # A pair that can take batches of one size only, as an autoguide can, is trained if it
        # meets no other.
        with seeded(self.seed, self.device), module_parameters(self.lvm, frozen=True):
            found = None
            with suppress(ContractError):
                found = find_layout(
                    self.lvm,
                    data.subset(slice(0, other)).model_input(),
                    validate=False,
                    plate=layout.data_plate,
                )
        if found is not None:
            check_rows(self.lvm, found, other)

    def _check_validation(self) -> None:
        """That the pair can take the validation data, and how they are laid out: as training data
        of their kind are, if there are such.
        """
        self._judged = self._plan
        if self.validation is None:
            return
        kinds = {kind: layout for (kind, _), layout in self._layouts.items()}
        if len(self.batches.sources) > 1:
            kind = structure_of(self.validation.x)
            first = (
                self.validation.subset(slice(0, self.batches.size))
                if self.validation.divisible
                else self.validation
            )
            self._judged = (
                kinds[kind] if kind in kinds else find_layout(self.lvm, first.loaded().x)
            )
        with seeded(self.seed, self.device):
            check(self.lvm, self.validation, self._judged)

    def _vectorises(self, batch: Any, layout: Layout) -> bool:
        with (
            torch.no_grad(),
            seeded(self.seed, self.device),
            module_parameters(self.lvm),
            evaluation_mode(self.lvm),
        ):
            return (
                way_of(
                    self.lvm,
                    batch,
                    log_weights_pass(self.lvm, layout),
                    layout.vectorisation,
                    self._log,
                )
                == VECTORISED
            )

    def _check_scheduler(self) -> None:
        """That the scheduler does not end before the run."""
        if self.per_epoch:
            check_length(self.scheduler, self.total // self.batches.epoch_steps, "epochs")
        else:
            check_length(self.scheduler, self.total)

    def _check_ranks(self) -> None:
        """That all ranks are about to do the same."""
        asked = (
            self.total,
            self.patience,
            self.skip,
            self.folder is not None,
            self.validation is not None,
            # A function may know its rank, to print on one alone; what it gives is the same.
            sorted((item for item in self.settings.items() if item[0] != "functions"), key=str),
        )
        words = hashlib.sha256(repr(asked).encode()).digest()
        mine = torch.tensor([list(words)], device=self.device)
        if not bool((self.ranks.gather(mine) == mine).all()):
            raise ValueError(
                f"fit: rank {self.ranks.rank} of {self.ranks.size} was given other data, another "
                "model or other settings than another rank; "
                "let every rank call fit alike, run_dir included, with what it builds from the "
                "same seed."
            )

    @property
    def _plan(self) -> Layout:
        """The layout of the first batch of the first source."""
        return next(iter(self._layouts.values()))

    def _layout(self, batch: Any) -> Layout:
        """The layout of batches like this one, met before."""
        return self._layouts[structure_of(batch), len(Data(batch))]

    # The way of a step
    # ---------------------------------------------------------------------------------------------------

    def _given(self) -> Any:
        """What the step at hand gives model and guide: a batch, with the arguments of the step
        behind it.
        """
        batch = self.batches(self.at)
        return batch if self.arguments is None else Call(batch, self._arguments(self.at))

    def _arguments(self, step: int) -> dict[str, torch.Tensor]:
        """The arguments of a step as tensors, so that they are inputs of a compiled step."""
        assert self.arguments is not None
        given = self.arguments(step)
        self._unchanged.check("The function arguments", "the data")
        return as_tensors(given, self.lvm, self.device)

    def num_data(self, batch: Any) -> float:
        """What the loss of a batch is divided by, to be per datum; 1 if the data share a latent,
        for the loss is then of all.
        """
        batch = batch.batch if isinstance(batch, Call) else batch
        kind, size = structure_of(batch), len(Data(batch))
        if (kind, size) not in self._layouts:
            first = next(
                (layout for (other, _), layout in self._layouts.items() if other == kind), None
            )
            plate = first.data_plate if first else None
            try:
                with seeded(self.seed, self.device):
                    self._layouts[kind, size] = find_layout(
                        self.lvm, batch, validate=first is None, plate=plate
                    )
            except ContractError as error:
                raise self._lacking_data(error) from None
        layout = self._layouts[kind, size]
        return layout.num_data * layout.scale if layout.local else 1.0

    def train_all(self, progress: bool | None) -> None:
        """From where the run is to its end."""
        self._warn_of_warmup()
        widen_heap()
        self._seed = torch.initial_seed()
        if self.at == 0:
            self.save()
        progress = progress if self.ranks.is_main else False
        with (
            interruptible() as self.signals,
            ProgressBar("training", self.total, self.at, progress) as bar,
            warnings.catch_warnings(),
        ):
            # Pyro's; ours says where and stops
            warnings.filterwarnings("ignore", "Encountered (NaN|[+]?inf)")
            # what is enumerated in one kind of batch may be observed in another
            if len(self.batches.sources) > 1:
                warnings.filterwarnings("ignore", "TraceEnum_ELBO found no sample sites")
            while self.at < self.total and self.stopped == "finished":
                before = self.at
                self.compiled.eager.flags = self._wishes()
                self.some_steps()
                bar.advance(
                    self.at - before, self._numbers() if self.at // 20 > before // 20 else None
                )
                # What is written down, or handed to the user, must be confirmed; elsewhere a run
                # can still go back.
                if (
                    self.at == self.total or (self.callbacks and self.at == self._next_record)
                ) and not self._confirmed():
                    continue
                if self.at == self._next_record:
                    self.record()
                    self.compiled.check_soon(always=bool(self.callbacks))
                    if self.callbacks and self.compiles and self.compiled.goes_back:
                        # all before the callbacks was confirmed, so none is called again
                        self._good = Kept(Position(self))
                    if self.stopped != "finished":
                        self._confirmed()  # else it is not stopped after all
                # All ranks stop and save after the same step, so of several each has heard the
                # wishes of all by now.
                stop, late = self._wishes() if self.ranks.size == 1 else self.compiled.eager.flags
                if (stop or late) and not self._confirmed():
                    continue
                if stop and self.stopped == "finished" and self.at < self.total:
                    self.stopped = "interrupted"
                if late:
                    self.save()
            self.save()
            if self.at == self.total and not (
                self.history.records and self.history.records[-1].step == self.at
            ):
                # Not in the checkpoint: a run that is resumed to go further would not have stopped
                # to look here.
                self.record()
                with self.signals.writing():
                    self._write_history()
        if self.skipped and self.skipped == self.at:
            warnings.warn(
                f"All {self.at} steps were skipped, their loss or gradient not being finite: "
                "nothing was trained.",
                stacklevel=3,
            )
        if self.stopped == "interrupted" and self.ranks.is_main:
            how = (
                ""
                if self.folder is None
                else f" Resume with the same call and resume=True (run folder {self.folder})."
            )
            print(f"Interrupted after step {self.at} of {self.total}.{how}")

    def _wishes(self) -> list[bool]:
        """Whether this rank would stop, and save."""
        return [
            self.signals.asked,
            self.ranks.is_main and time.monotonic() - self._saved_time > self.checkpoint_seconds,
        ]

    def some_steps(self) -> None:
        """Takes as many steps as can be taken before anything has to be looked at."""
        if self.compiles and not self._is_checked:
            self._start = Position(self)
        try:
            count = self._steps_at_once()
            if count < 2 or not self._launched(count):
                self.one_step()
        except Diverged as found:
            self._go_back(found)

    def _keep(self) -> None:
        """Keeps the state before this block of steps, up to which all were the eager ones."""
        self._good = Kept(self._start)

    def _go_back(self, found: Diverged) -> None:
        """Goes back to the last state that was kept."""
        self._good.restore()
        self.compiled.go_back(found, self.at)

    def _confirmed(self) -> bool:
        """Whether all compiled steps were the eager ones; if not, the run has gone back to where
        they were.
        """
        if self.compiled.keep is None or not self.compiled.unconfirmed:
            return True
        self._start = Position(self)
        try:
            batch = self._given()
            self.compiled.check_soon(always=True)
            with pyro.validation_enabled(False), module_parameters(self.lvm, frozen=True):
                self.compiled.ready(batch, self.num_data(batch))
        except Diverged as found:
            self._go_back(found)
            return False
        set_rng_state(self._start.generators, self.device)
        return True

    @property
    def _is_checked(self) -> bool:
        """Whether Pyro's checks are on: for the first epoch."""
        return self.at < min(self.batches.epoch_steps, _CHECKED_STEPS)

    def _steps_at_once(self) -> int:
        """Steps until there is something to look at, and a tenth of a second of them at most; 1
        unless they are compiled.
        """
        # The user's code runs between steps, which may move what a program holds for constant; or
        # the next batch is of another kind.
        alone = (
            self.after_step is not None
            or self.arguments is not None
            or len(self.batches.sources) > 1
        )
        if not self.compiles or self._is_checked or alone:
            return 1
        epoch, position = self.batches.epoch_steps, self.at % self.batches.epoch_steps
        # of one shape
        full = self.total if epoch == 1 else len(self.batches.data) // self.batches.size - position
        pace = (
            self.tally.seconds * self.batches.size / self.tally.data
            if self.tally.data
            else math.inf
        )
        return min(
            self.compiled.at_once,
            full,
            self._next_record - self.at,
            self.total - self.at,
            max(1, round(_SECONDS_AT_ONCE / pace)),
        )

    def _launched(self, count: int) -> bool:
        """Takes `count` steps and reads only then what they told, for which a GPU has to be waited
        for; False if the step is not compiled.

        After a step that is not good those behind it move nothing, so one goes back to it, and
        takes it by itself.
        """
        start, began = self._start, time.perf_counter()
        batch = self._given()
        with pyro.validation_enabled(False), module_parameters(self.lvm, frozen=True):
            program = self.compiled.ready(batch, self.num_data(batch))
        if program is None:
            start.restore()
            return False
        told: list[torch.Tensor] = []
        while True:
            try:
                told.append(self.compiled.launch(program, batch, told[-1] if told else None))
            except Exception as error:
                self.compiled.fail(error)
            self._count_step()
            # A scheduler may be the user's code, and so move what the program holds for constant.
            if len(told) == count or (self.scheduler is not None and program.guards.changed()):
                break
            batch = self._given()
        results, count = torch.stack(told).tolist(), len(told)
        good = next((i for i, (_, _, moved) in enumerate(results) if not moved), count)
        if good < count:
            start.restore()
            for _ in range(good):
                self.compiled.rehearse(program, self._given())
                self._count_step()
        # one by one, so that the sums do not depend on how many are taken at once
        for loss, norm, _ in results[:good]:
            self.tally.loss += loss
            self.tally.norm += norm
        self.tally.applied += good
        self._count_time(began, good * self.batches.size)
        if good < count:
            self._start = Position(self)
            self.one_step()
        return True

    def _count_step(self) -> None:
        self.at += 1
        if self.scheduler is not None and not isinstance(self.scheduler, ReduceLROnPlateau):
            if not self.per_epoch or self.at % self.batches.epoch_steps == 0:
                self.scheduler.step()

    def _count_time(self, began: float, data: int) -> None:
        elapsed = time.perf_counter() - began
        self.tally.data += data
        self.tally.seconds += elapsed
        self.seconds += elapsed

    def one_step(self) -> None:
        """Takes one step and adds it to the tally."""
        checked = self._is_checked
        step: Step = self.compiled if self.compiles and not checked else self.step
        before = rng_state(self.device)
        # What a forward pass moves by itself (batch statistics) is put back if the step is not
        # taken.
        buffers = [(b, b.clone()) for b in self.lvm.buffers()] if self.skip else []
        # Pyro's checks of support and shape, for the first epoch; NaN is watched for throughout.
        with pyro.validation_enabled(checked), module_parameters(self.lvm, frozen=True):
            batch = self._given()
            weight = self.batches.weight(self.at)
            # ranks add up, so each divides by more
            num_data = self.num_data(batch) / weight if weight else math.inf
            if self.compiles and checked:  # whose steps meet the shapes of all that follow
                self.compiled.prepare(batch, num_data)
            began = time.perf_counter()
            given = Unchanged(named_tensors(batch.batch if isinstance(batch, Call) else batch))
            try:
                result = step(batch, num_data)
            except ContractError:
                raise
            except ValueError as error:
                result = self._refused(error, before)
            except RuntimeError:  # autograd's, perhaps, of a tensor that was written into
                given.check(_IN_TRAINING)
                raise
            given.check(_IN_TRAINING)
        if result.applied:
            self.tally.loss += result.loss
            self.tally.norm += result.gradient_norm
            self.tally.applied += 1
            if self.after_step is not None:
                with torch.no_grad():
                    self.after_step(self.lvm, self.at + 1)
                self._unchanged.check("The function after_step", "the data")
        elif self.skip:
            for buffer, value in buffers:
                buffer.copy_(value)
            self.tally.skipped += 1
            self.skipped += 1
        else:
            raise NonFiniteLossError(self._explain(result.loss, before))
        self._count_time(began, self.batches.count(self.at))
        self._count_step()

    # Records
    # -------------------------------------------------------------------------------------------------------------

    @property
    def _next_record(self) -> int:
        """The step of the next record: an epoch after the last, or, where epochs are short, as
        many as take some time.
        """
        return self.record_after(self.history.records[-1].step if self.history.records else 0)

    def record_after(self, last: int) -> int:
        """The step of the record that follows one at step `last`."""
        epoch = self.batches.epoch_steps
        least = (
            max(_MIN_STEPS_A_RECORD, last // _SHARE_A_RECORD) if epoch < _MIN_STEPS_A_RECORD else 1
        )
        return last + epoch * math.ceil(least / epoch)

    def record(self) -> None:
        """Adds a row to the history, keeps the best parameters, and asks the callbacks."""
        began = time.perf_counter()
        self._check_untouched()
        self.ranks.broadcast([*self.lvm.buffers()])  # batch statistics are rank 0's
        with seeded(self.ranks.seed(self.seed) if self._judged.local else self.seed, self.device):
            bound, se, rate, distortion = self._look(self._looked_at())
        self.seconds += time.perf_counter() - began
        t = self.tally
        held_out = self.validation is not None
        self.history.records.append(
            Record(
                epoch=self.at // self.batches.epoch_steps,
                step=self.at,
                elbo=-t.loss / t.applied if t.applied else math.nan,
                validation_elbo=bound if held_out else math.nan,
                validation_se=se if held_out else math.nan,
                rate=rate,
                distortion=distortion,
                learning_rate=float(self.optimizer.param_groups[0].get("lr", math.nan)),
                gradient_norm=t.norm / t.applied if t.applied else math.nan,
                skipped=t.skipped,
                seconds=self.seconds,
                data_per_second=t.data / t.seconds,
            )
        )
        self.tally = _Tally()
        if held_out and bound > self.best_bound:
            self.best_bound, self.best_step = bound, self.at
            self.best = {
                n: v.detach().clone() if isinstance(v, torch.Tensor) else v
                for n, v in self.lvm.state_dict().items()
            }
        if isinstance(self.scheduler, ReduceLROnPlateau):
            # better is a lower loss, or a higher ELBO
            self.scheduler.step(-bound if self.scheduler.mode == "min" else bound)
        self._decide()
        if self.at < self.total and self.stopped == "finished":
            self._check_parameters()

    def _check_parameters(self) -> None:
        """Raises ContractError if a parameter would be left untrained that is to be trained now."""
        known = {id(p) for p in self.compiled.parameters}
        for name, parameter in self.lvm.named_parameters():
            if parameter.requires_grad and id(parameter) not in known:
                raise ContractError(
                    f"After step {self.at}: the optimizer does not know parameter {name!r}, which "
                    "was added, replaced or unfrozen since "
                    "training began. Change parameters in place, and unfreeze between two calls "
                    "of fit."
                )

    def _looked_at(self) -> Data:
        """What this rank looks at for a record: of the validation data its share, or its share of
        the last batch.
        """
        if self.validation is None:
            step = self.batches.looked_at(self.at - 1)
            batch = Data(self.batches(step))
            return batch if self.batches.weight(step) else batch.subset(slice(0, 0))
        shared_out = self.ranks.size > 1 and self._judged.local and self.validation.divisible
        return (
            self.validation.subset(self.ranks.shard(len(self.validation)))
            if shared_out
            else self.validation
        )

    def _look(self, data: Data) -> ValidationResult:
        try:
            return look(self.lvm, self.objective, data, self._judged, self.ranks)
        except ContractError as error:
            if not self._is_nonfinite(error):
                raise
            if self.skip:
                return ValidationResult(math.nan, math.nan, math.nan, math.nan)
            raise NonFiniteLossError(
                f"After step {self.at}, on a look at the data: {error} {self._kept()}"
            ) from None

    def _decide(self) -> None:
        if self._is_out_of_patience():
            self.stopped = "early"
        if self.callbacks:
            # so that the optimizer's state is whole where the user may look at it, or change it
            self.compiled.settle()
        answers = [self._answer(callback) for callback in self.callbacks]  # every one is told
        if self.ranks.any(any(answers), self.device):
            self.stopped = "callback"

    def _answer(self, callback: Callable[[Event], bool | None]) -> bool | None:
        """What a callback says; what it draws changes nothing of the run, and what it writes into
        the data is refused.
        """
        with preserved_rng(self.device):
            answer = callback(Event(self.lvm, self.history))
        self._unchanged.check(
            f"The callback {getattr(callback, '__qualname__', type(callback).__name__)}",
            "the data",
        )
        return answer

    def _check_untouched(self) -> None:
        """Raises ContractError if the data were written into, or torch's generators seeded, by
        what runs in a step.
        """
        self._unchanged.check(_IN_TRAINING, "the data")
        if torch.initial_seed() != self._seed:
            raise ContractError(
                "What runs in a step (model, guide, transform, arguments, after_step) seeds "
                "torch's generators (torch.manual_seed), so that "
                "steps draw the same: leave it out, and give the seed to fit (seed=...)."
            )

    def _is_out_of_patience(self) -> bool:
        return (
            self.patience is not None
            and sum(r.step > self.best_step for r in self.history) >= self.patience
        )

    def _numbers(self) -> str:
        t = self.tally
        parts = [f"epoch {1 + self.at // self.batches.epoch_steps}"]
        if t.applied:
            parts.append(f"ELBO {-t.loss / t.applied:.2f}")
        if self.history.records:
            parts.append(f"rate {self.history.records[-1].rate:.2f}")
        if self.compiled.seconds:
            parts.append(f"compiled in {self.compiled.seconds:.0f} s")
        if t.seconds:
            parts.append(f"{t.data / t.seconds:,.0f} data/s")
        return "  ".join(parts)

    # Trouble
    # -------------------------------------------------------------------------------------------------------------

    def _warn_of_warmup(self) -> None:
        warmup = getattr(self.objective, "warmup", 0)
        if warmup > self.total:
            warnings.warn(
                f"The KL warm-up takes {warmup} steps and training only {self.total}: the "
                "objective never becomes the ELBO. "
                "Train longer or warm up faster.",
                stacklevel=3,
            )

    def _is_nonfinite(self, error: ContractError | None) -> bool:
        """Whether an error is about numbers that are NaN or infinite, or follows from parameters
        that are.
        """
        if error is None or isinstance(error, NonFiniteError):
            return error is not None
        return not all(
            bool(p.isfinite().all()) for p in self.lvm.parameters() if p.is_floating_point()
        )

    def _lacking_data(self, error: ValueError) -> ValueError:
        """What is said where batch normalisation meets one datum; any other error as it is."""
        if _LACKS_DATA not in str(error):
            return error
        who = "the batch" if self.ranks.size == 1 else f"the share of rank {self.ranks.rank}"
        return ContractError(
            f"Step {self.at + 1}: {who} holds one datum, of which batch normalisation has no "
            "statistics: choose a batch_size that leaves "
            f"none over ({len(self.batches.data)} data in batches of {self.batches.size}, "
            f"{self.ranks.size} ranks)."
        )

    def _refused(self, error: ValueError, before: list[torch.Tensor]) -> StepResult:
        """What Pyro's checks have refused: a step that is not finite, or else data or a pair that
        break the contract.
        """
        if _LACKS_DATA in str(error):
            raise self._lacking_data(error) from None
        found = self._look_again(before, validate=False)
        if self._is_nonfinite(found):
            return StepResult(math.nan, math.nan, False)
        raise (found or self._look_again(before, validate=True) or error) from None

    def _look_again(self, before: list[torch.Tensor], validate: bool) -> ContractError | None:
        """What is wrong with the weights of the batch at hand, drawn with the noise of the step,
        or None.
        """
        set_rng_state(before, self.device)
        try:
            given = self._given()
            lvm, batch = (
                (Called(self.lvm, given.arguments), given.batch)
                if isinstance(given, Call)
                else (self.lvm, given)
            )
            with torch.no_grad():
                next(
                    weight_chunks(lvm, batch, 1, 1, validate=validate, layout=self._layout(batch))
                )
        except ContractError as error:
            return error
        return None

    def _explain(self, loss: float, before: list[torch.Tensor]) -> str:
        what = (
            f"the loss is {loss}"
            if not math.isfinite(loss)
            else "the loss is finite, but a gradient is NaN or infinite"
        )
        fault = self._look_again(before, validate=False)
        site = (
            "No log-density is NaN, so look for one that is −inf (data that the model holds for "
            "impossible), at the gradient, or at the objective."
        )
        site = (
            "Look at what the other ranks say."
            if fault is None and self.ranks.size > 1
            else site
            if fault is None
            else str(fault)
        )
        if self.batches.count(self.at) == 1 < len(self.batches.data):
            site += (
                " The batch holds one datum: if the pair takes statistics over its batch, choose "
                "a batch_size that leaves none over."
            )
        return (
            f"Step {self.at + 1} (epoch {1 + self.at // self.batches.epoch_steps}): {what}. "
            f"{site} The parameters are those after step "
            f"{self.at}. {self._kept()}"
        )

    def _kept(self) -> str:
        """What was last good on disk, and what to do."""
        kept = "There is no checkpoint, for no run_dir was given."
        if self.folder is not None:
            last = checkpoint.latest(self.folder / "checkpoint")
            kept = (
                f"The last good state on disk is {last}."
                if last
                else "No checkpoint was written yet."
            )
        return f"{kept} Try a smaller learning rate, clip=..., or nonfinite='skip'."

    # Checkpoints
    # ---------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes checkpoint and history, unless there is no folder or this step is saved already."""
        self.compiled.settle()
        self._saved_time = time.monotonic()
        if self.folder is None or self._saved_at == self.at:
            return
        generators = [
            self.ranks.gather(g.to(self.device)[None]).cpu() for g in rng_state(self.device)
        ]
        if not self.ranks.is_main:
            self._saved_at = self.at
            return
        with self.signals.writing():
            try:
                checkpoint.save(self.folder / "checkpoint", self.at, self.state(generators))
            except OSError as error:
                raise self._unwritten(error) from None
            self._saved_at = self.at
            self._write_history()

    def state(self, generators: list[torch.Tensor]) -> dict[str, Any]:
        """What a checkpoint holds; `generators` are those of all ranks, shape (ranks, bytes), the
        CPU's first.
        """
        optimizer = self.optimizer.state_dict()
        return {
            "settings": self.settings,
            "step": self.at,
            "epoch": self.at // self.batches.epoch_steps,
            "position": self.at % self.batches.epoch_steps,
            "model": dict(self.lvm.state_dict()),
            "optimizer": optimizer,
            "counts": counts_of(optimizer),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "objective": self.objective_state(),
            "objective_start": self.objective_start,
            "rng": [list(g) for g in zip(*generators, strict=True)],  # by rank
            "history": self.history.to_rows(),
            "tally": vars(self.tally),
            "seconds": self.seconds,
            "skipped": self.skipped,
            "best": self.best,
            "best_step": self.best_step,
            "best_bound": self.best_bound,
            "compiled": self.compiles,
            "hooked": self.hooked,
            "stopped": self.stopped if self.stopped in ("early", "callback") else "finished",
        }

    def objective_state(self) -> Any:
        """What the objective keeps from step to step, or None."""
        return self.objective.state_dict() if hasattr(self.objective, "state_dict") else None  # type: ignore[attr-defined]

    def _unwritten(self, error: OSError) -> checkpoint.CheckpointError:
        """The error of a checkpoint that could not be written: what is left, and what to do."""
        assert self.folder is not None
        remedy = error.remedy if isinstance(error, NotWritten) else "see to that folder"
        try:
            last = checkpoint.latest(self.folder / "checkpoint")
        except checkpoint.CheckpointError as other:
            return other
        kept = f"the last good one is {last}" if last else "there is none before it"
        return checkpoint.CheckpointError(
            f"The checkpoint of step {self.at} could not be written to {self.folder} "
            f"({error.strerror}); {kept}. "
            f"{remedy.capitalize()}, and resume."
        )

    def _write_history(self) -> None:
        """Writes history.csv, unless a run that has taken no step since it was resumed finds it
        whole.
        """
        if self.folder is None or not self.ranks.is_main:
            return
        file, text = self.folder / "history.csv", self.history.to_csv()
        if self.at == self._resumed_at:
            with suppress(OSError, UnicodeDecodeError):
                # Epoch and step of every row; the seconds of the last are new each time that it is
                # made.
                there, now = (
                    [line.split(",")[:2] for line in t.splitlines()]
                    for t in (read(file).decode(), text)
                )
                if there == now:
                    return
        try:
            write_atomic(file, text)
        except NotWritten as error:
            raise checkpoint.CheckpointError(
                f"{file} could not be written ({error.strerror}); the run itself is kept, up to "
                f"step {self._saved_at}. "
                f"{error.remedy.capitalize()}, and resume."
            ) from None

    def restore(self) -> None:
        """Takes up the newest checkpoint of the folder, if there is one, after it was compared
        with this run.
        """
        assert self.folder is not None
        found = checkpoint.latest(self.folder / "checkpoint")
        if found is None:
            return
        state = checkpoint.load(found)
        if self.ranks.is_main:
            checkpoint.sweep(found.parent)
        match(found, self.settings, state)
        check_state(found, state, self)
        self.lvm.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        if state["objective"] is not None:
            self.objective.load_state_dict(state["objective"])  # type: ignore[attr-defined]
        self.objective_start = state["objective_start"]
        self.at = self._saved_at = self._resumed_at = state["step"]
        self.history = History.from_rows(state["history"])
        self.tally = _Tally(**state["tally"])
        self.seconds, self.skipped, self.stopped = (
            state["seconds"],
            state["skipped"],
            state["stopped"],
        )
        self.best_step, self.best_bound = state["best_step"], state["best_bound"]
        self.hooked = self.hooked or state["hooked"]
        best = state["best"]
        self.best = best and {
            n: v.to(self.device) if isinstance(v, torch.Tensor) else v for n, v in best.items()
        }
        if self.stopped == "early" and not self._is_out_of_patience():
            self.stopped = "finished"  # there is more patience now than there was
        if self.compile == "auto":
            self.compiles = state["compiled"]  # as it began, whatever its length is now
        if len(state["rng"]) == self.ranks.size:
            set_rng_state(state["rng"][self.ranks.rank], self.device)
        else:  # as many ranks as there were not: new noise, which follows from what is known
            set_seed(self.ranks.seed(self.seed + 1 + self.at), self.device)

    def release(self) -> None:
        """Puts the objective back as it was given, which may be for another pair next."""
        for objective, name, value in self.changed:
            setattr(objective, name, value)

    def result(self) -> Fit:
        """The result, the best parameters put into the model."""
        if self.best is not None and self.stopped != "interrupted":
            self.lvm.load_state_dict(self.best)
        return Fit(
            history=self.history,
            steps=self.at,
            stopped=self.stopped,
            best_step=self.at
            if self.best is None or self.stopped == "interrupted"
            else self.best_step,
            seconds=self.seconds,
            compile_seconds=self.compiled.seconds,
            skipped=self.skipped,
            protocol=self.batches.data.protocol(),
            settings=self.settings,
        )
