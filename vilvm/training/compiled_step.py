"""The compiled training step, for any pair and any Pyro objective.

The whole step, loss, gradients, clipping and Adam, is one program
(``vilvm.training._traced_step``), and the steps of a small model run in one call
(``vilvm.training._block``). The numbers that change from step to step, learning rate, bias
corrections, the weight of an annealed rate, are inputs, and so are all tensors that the model
closes over. Noise is drawn by torch's own generators in the order of the eager step, so that a
seed gives the same draws.

Tracing freezes Python control flow. The Python state that the trace read
(``vilvm._compile.guards``) is compared before every block of steps; if it has changed, the step is
traced again. Other state is detected by its effect: before a program is used, again after 1, 2, 4,
8, ... steps, and after user code has run, loss and gradients are compared with those of the eager
step on the same batch and noise (``vilvm.training._step_comparison``). If a later comparison
fails, the run returns to the last one that passed (``Diverged``). If no graph can be made, the
step is eager, and one line says why.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vilvm._compile import (
    Compiler,
    UntraceableError,
    machine_code,
    reason_of,
    shapes,
)
from vilvm.data.tensors import structure_of, tensors_of
from vilvm.lvm import LatentVariableModel
from vilvm.training._adam import GraphAdam
from vilvm.training._block import Block
from vilvm.training._program_cache import ProgramCache
from vilvm.training._step_comparison import TOLERANCE, Comparison
from vilvm.training._traced_step import Program, StepTracer
from vilvm.training.step import EagerStep, Objective, StepResult

__all__ = ["CompiledStep", "Diverged"]

_MAX_INTERVAL = 1000  # steps between two comparisons
_MAX_NATIVE = 20_000  # the same for native programs, whose steps are short
_MIN_INTERVAL = 200  # steps between a comparison and the one at a record
_MAX_RETURNS = 3  # times that a run may go back before its steps become eager

_Counts = tuple[int, int, int, Sequence[Tensor]]


class Diverged(RuntimeError):
    """Compiled steps were, or may have been, different from the eager ones.

    Arguments:
        reason: the difference, as a clause.
        failed: whether the program itself failed, so that the steps must be eager from now on.
    """

    def __init__(self, reason: str, failed: bool = False):
        super().__init__(reason)
        self.failed = failed


class CompiledStep:
    """A training step that is compiled for every shape of batch, and eager if that is impossible.

    Arguments:
        lvm: the model and guide.
        objective: any Pyro ELBO; one with ``numbers`` (see ``vilvm.objectives.Annealed``) may
            change these without a new graph.
        optimizer: Adam and AdamW become part of the graph; any other is stepped after it.
        clip: largest norm of the gradient of the loss per datum, or None.
        log: receives the lines that explain when and why a step is compiled again, or eager.
        compiler: makes a program of a function of tensors and example tensors; ``machine_code``
            by default.
        kinds: how many kinds of batch there are. With several, each may move parameters of its
            own, whose steps a torch optimizer counts separately, so the optimizer is stepped after
            the graph.

    Examples:
        >>> import torch, vilvm
        >>> from pyro.infer import Trace_ELBO
        >>> from vilvm._compile import graph
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.training.compiled_step import CompiledStep
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(8, 6)
        >>> adam = torch.optim.Adam(lvm.parameters())
        >>> step = CompiledStep(lvm, Trace_ELBO(max_plate_nesting=1), adam, compiler=graph)
        >>> step(x, num_data=8.0).applied
        True
    """

    def __init__(
        self,
        lvm: LatentVariableModel,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        clip: float | None = None,
        *,
        log: Callable[[str], None] = print,
        compiler: "Compiler | None" = None,
        kinds: int = 1,
    ):
        self.eager = EagerStep(lvm, objective, optimizer, clip)
        self.lvm = lvm
        self.objective = objective
        self.optimizer = optimizer
        self.log = log
        self.parameters = self.eager.parameters
        # Ranks sum their gradients before the update, which is then not part of the graph.
        alone = self.eager.ranks.size == 1 and kinds == 1
        self.adam: GraphAdam | None = None
        if alone and GraphAdam.serves(optimizer):
            self.adam = GraphAdam(optimizer, self.parameters)
        self.tracer = StepTracer(
            self.eager, self.adam, machine_code if compiler is None else compiler, log
        )
        self.programs = ProgramCache(self.tracer)
        self.comparison = Comparison(self.eager, self.adam, self.tracer)
        self.refused: str | None = None  # why the step is eager
        self.seconds = 0.0  # of compilation
        # Called when a comparison has passed; without it a run cannot go back.
        self.keep: Callable[[], None] | None = None
        self._taken, self._check_at, self._checked_at = 0, 0, 0  # steps
        self._returned, self._has_kept = 0, False

    def __call__(self, batch: Any, num_data: float) -> StepResult:
        """Moves the parameters by one step on the loss per datum.

        Arguments:
            batch: a batch, or a ``Call``.
            num_data: what the loss is divided by.
        """
        program = self.ready(batch, num_data)
        if program is None:
            return self.eager(batch, num_data)
        try:
            result = self.launch(program, batch)
        except Exception as error:
            self.fail(error)
            return self.eager(batch, num_data)
        if self.adam is None:
            return self.eager.update(result)
        loss, norm, good = result.tolist()
        self.adam.taken -= not good
        return StepResult(loss, norm, bool(good))

    @property
    def at_once(self) -> int:
        """How many steps may be launched before their results are read; 0 if each must be read."""
        if self.adam is None or self.refused is not None:
            return 0
        return max(1, self._check_at - self._taken)

    @property
    def goes_back(self) -> bool:
        """Whether the run may still have to go back."""
        return self.refused is None and self.keep is not None

    @property
    def unconfirmed(self) -> bool:
        """Whether steps were taken since the last comparison with the eager step."""
        return self.refused is None and self._taken > self._checked_at

    def check_soon(self, always: bool) -> None:
        """Compares the next step with the eager one: `always`, or if the last comparison is at
        least 200 steps ago.
        """
        if always or self._taken - self._checked_at >= _MIN_INTERVAL:
            self._check_at = self._taken

    @property
    def counts(self) -> _Counts:
        """Steps taken, and what the graph's Adam counts, for a later return to this step."""
        if self.adam is None:
            return self._taken, 0, 0, ()
        return self._taken, self.adam.counted, self.adam.taken, self.adam.moved

    @counts.setter
    def counts(self, counts: _Counts) -> None:
        self._taken, counted, taken, moved = counts
        self._check_at = max(self._check_at, self._taken)
        self._checked_at = min(self._checked_at, self._taken)
        if self.adam is not None:
            self.adam.counted = counted
            self.adam.taken = taken
            self.adam.moved = moved

    def settle(self) -> None:
        """Writes the number of steps, which is counted outside the optimizer, into its state."""
        if self.adam is not None:
            self.adam.settle()

    # Which program
    # ------------------------------------------------------------------------------------

    def ready(self, batch: Any, num_data: float) -> Program | None:
        """The program for batches like this one, compared with the eager step when that is due.

        Returns:
            The program; None if the step is eager.

        Raises:
            Diverged: it differs from the eager step, and the run can go back.
        """
        program = self.prepare(batch, num_data)
        if program is not None and self._taken >= self._check_at:
            program = self._confirmed(program, batch, num_data)
        if program is not None and self.adam is not None:
            try:
                self.adam.count(program.moved)
            except UntraceableError as error:
                return self._refuse(str(error))
        return program

    def prepare(self, batch: Any, num_data: float) -> Program | None:
        """The program for batches like this one, compiled if there is none; None if eager."""
        if self.refused is not None or not self._adam_serves():
            return None
        key = self._key(batch, num_data)
        return self.programs.valid(key) or self._compiled(batch, num_data, key)

    def _adam_serves(self) -> bool:
        """Whether the graph's Adam still updates as the optimizer does; refuses to compile if not.

        New moments, which the user put into the optimizer, need new programs.
        """
        if self.adam is None:
            return True
        if not GraphAdam.serves(self.optimizer):
            self._refuse(
                f"an option of {type(self.optimizer).__name__} was changed that is not part of "
                "the graph"
            )
            return False
        if self.adam.is_reset:
            self.programs.clear()
        return True

    def _key(self, batch: Any, num_data: float) -> tuple[Any, ...]:
        """The key of a program: all that it depends on, except Python state."""
        trained = tuple(p.requires_grad for p in self.parameters)
        decays = self.adam and self.adam.decays
        return structure_of(batch), shapes(tensors_of(batch)), num_data, trained, decays

    def _compiled(
        self,
        batch: Any,
        num_data: float,
        key: Any,
    ) -> Program | None:
        """A new program, added under its key, if it equals the eager step."""
        began = time.perf_counter()
        changed = self.programs.what_changed(key)
        try:
            self.programs.check_changes(key, self._taken)
            program = self.tracer.program(batch, num_data, self.programs.of(key))
        except UntraceableError as error:
            return self._refuse(str(error))
        self.seconds += time.perf_counter() - began
        difference = self.comparison.difference(program, batch, num_data)
        if difference is not None:
            return self._refuse(difference)
        is_new = self.programs.add(key, program)
        if changed and is_new:
            self.log(
                f"The step of {type(self.lvm).__name__} is compiled anew after {self._taken} "
                f"compiled steps: {changed}."
            )
        return program

    # Launching
    # ------------------------------------------------------------------------------------

    @torch.no_grad()
    def launch(
        self,
        program: Program,
        batch: Any,
        before: Tensor | None = None,
    ) -> Tensor:
        """Takes one step without waiting for it.

        Arguments:
            program: from ``ready``.
            batch: of the shape that the program is for.
            before: the result of the step before. If that was not finite, this step changes
                nothing, and neither do those after it.

        Returns:
            (loss, gradient norm, 1 if the parameters moved), float64, shape (3,); or the loss
            alone, with gradients in the parameters, if the update is not part of the graph.
        """
        given = [*tensors_of(batch), *self.tracer.numbers()]
        if self.adam is None:
            result, *grads = program.launch(*given)
            for p in self.parameters:
                p.grad = None
            for p, grad in zip(program.moved, grads, strict=True):
                p.grad = grad
        else:
            if before is None:
                before = self.tracer.start
            (numbers,) = self.adam.numbers()
            (result,) = program.launch(*given, numbers, before)
        self._count()
        return result

    def block(self, program: Program) -> Block | None:
        """An empty block of steps to be taken together; None if each must be launched alone."""
        if self.adam is None or not Block.serves(program):
            return None
        return Block(program, self.tracer, self.adam)

    def add_to(self, block: Block, count: int) -> int:
        """Adds steps to a block, at most `count`, and counts them; returns how many."""
        added = block.add(count)
        self._count(added)
        return added

    def rehearse(self, program: Program, batch: Any) -> None:
        """Advances generators and counts as a step does, but changes no parameter."""
        self.comparison.run_on_copies(program, batch)
        self._count()

    def _count(self, count: int = 1) -> None:
        self._taken += count
        if self.adam is not None:
            self.adam.taken += count
        if hasattr(self.objective, "advance"):
            for _ in range(count):
                self.objective.advance()  # type: ignore[attr-defined]

    # Comparison with the eager step
    # ------------------------------------------------------------------------------------

    def differs(
        self,
        batch: Any,
        num_data: float,
        tolerance: float = TOLERANCE,
    ) -> str | None:
        """How a new program differs from the eager step; None if it does not, or there is none.

        Arguments:
            batch, num_data: as for a step.
            tolerance: relative, of the loss and of the gradient of every parameter.
        """
        try:
            program = self.tracer.program(batch, num_data)
        except UntraceableError:
            return None
        return self.comparison.difference(program, batch, num_data, tolerance)

    def _confirmed(
        self,
        program: Program,
        batch: Any,
        num_data: float,
    ) -> Program | None:
        """The program, if it still equals the eager step; None if the step becomes eager.

        Raises:
            Diverged: it does not, and the run can go back.
        """
        difference = self.comparison.difference(program, batch, num_data)
        if difference is None:
            self._checked_at = self._taken
            most = _MAX_NATIVE if Block.serves(program) else _MAX_INTERVAL
            self._check_at = self._taken + max(1, min(self._taken, most))
            if self.keep is not None:
                self.keep()
                self._has_kept = True
            return program
        late = (
            f"{difference} (after {self._taken} compiled steps: something changes between steps "
            "in Python)"
        )
        if self._has_kept:
            raise Diverged(late)
        return self._refuse(late if self._taken else difference)

    def fail(self, error: Exception) -> None:
        """Ends compiled steps, because a program failed during a step.

        Raises:
            Diverged: the run can go back.
        """
        reason = f"its program fails ({reason_of(error)})"
        if self.keep is not None:
            raise Diverged(reason, failed=True) from error
        self._refuse(reason)

    def go_back(self, found: Diverged, step: int) -> None:
        """Drops all programs, because the run went back to `step`; eager from now on if a program
        failed, or if this happens for the fourth time.
        """
        self._returned += 1
        self.programs.clear()
        self._check_at = self._taken
        if found.failed or self._returned > _MAX_RETURNS:
            self._refuse(f"{found}; training went back to step {step}")
        else:
            self.log(
                f"The step of {type(self.lvm).__name__} is compiled anew, and training went back "
                f"to step {step}: {found}."
            )

    def _refuse(self, reason: str) -> None:
        """Makes all further steps eager, and logs why."""
        self.settle()
        self.refused = reason
        self.log(
            f"The step of {type(self.lvm).__name__} is not compiled, and runs eagerly: {reason}."
        )
