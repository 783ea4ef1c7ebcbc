"""The training step as one compiled graph: loss, gradients, clipping and Adam, for any pair and
any Pyro objective.

Pyro's handlers run in Python, and do the same at every step. So they are run once, under a tracer
(``vilvm._compile``): what is left is a graph from parameters, data and noise to loss and
gradients. Clipping and Adam are put behind it, and torch's Inductor makes one program of the
whole. The numbers that change from step to step, learning rate, bias corrections, the weight of an
annealed rate, are inputs, as are all tensors that the model closes over. Noise is drawn by torch's
own generators in the order of the eager step, so that a seed means the same draws.

A graph holds what Python did at tracing time. The Python state that it read
(``vilvm._compile.guards``) is compared before every block of steps; where it has changed, the step
is traced anew. State that cannot be seen is looked for by its effect: before a program is used,
again after 1, 2, 4, 8, ... steps, and after user code has run, loss and gradients are compared
with those of the eager step on the batch at hand and the same noise. Where they differ late, the
run goes back to the last comparison that held (``Diverged``). Where no graph can be made, the
eager step takes its place, and one line says so.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor

from vilvm._compile import (
    MOST_PROGRAMS,
    Compiler,
    Graph,
    Guards,
    UntraceableError,
    inductor,
    moving,
    shapes,
    trace,
    why,
    written,
)
from vilvm._runtime.random import rng_state, set_rng_state
from vilvm.data.tensors import map_tensors, structure_of, tensors_of
from vilvm.lvm import LatentVariableModel
from vilvm.training._adam import GraphAdam
from vilvm.training.capture import Captured
from vilvm.training.step import EagerStep, Objective, StepResult, backward, no_gradient

__all__ = ["CompiledStep", "Diverged"]

_TOLERANCE = 1e-4  # relative, of loss and gradients; sums in another order differ by some 1e-6
_ROUNDING = 1e-5  # of the sum of the sizes of the loss's terms
# relative change of parameters and data, which shows by how much rounding may move a gradient,
_SHAKE = 1e-6
_SHAKES = 10.0  # so many times
_ABSOLUTE = 1e-8  # of an entry of a buffer
_NEGLIGIBLE = 1e-6  # of the norm of all gradients, below which that of one parameter is rounding
_FAR = 1000  # steps, at most, between two comparisons
_NEAR = 200  # steps, at least, from a comparison to that of a record
# times that state has changed and no graph with it, from which comparisons alone look after it
_IRRELEVANT = 3
# steps, at least and on average, between two replacements of a tensor, each of which takes a new
# trace
_SELDOM = 50
_RETURNS = 3  # times that a run may go back before its steps are eager


class Diverged(RuntimeError):
    """Compiled steps that were taken were not, or may not have been, the eager ones.

    Arguments:
        reason: in words.
        failed: whether the program itself failed, so that the steps should be eager from there on.
    """

    def __init__(self, reason: str, failed: bool = False):
        super().__init__(reason)
        self.failed = failed


class _Program(NamedTuple):
    """A compiled step for batches of one shape.

    Arguments:
        run: the compiled graph.
        closed: the tensors that the pair closes over, by reference.
        moved: the parameters that have a gradient.
        own: where among `closed` are parameters and buffers of the model, which the program may
            change.
        buffers: where among `closed` are the buffers that a step changes.
        launch: `run` with all that stays the same from step to step put in; takes the rest.
        code: the graph as text.
        guards: the Python state that the trace read.
        moving: the state that the trace itself moved, which another run must leave as it then was.
    """

    run: Callable[..., Any]
    closed: list[Tensor]
    moved: list[Tensor]
    own: list[int]
    buffers: list[int]
    launch: Callable[..., Any]
    code: str
    guards: Guards
    moving: Guards


class CompiledStep:
    """A training step that is compiled at its first call for every shape of batch, and eager where
    that is not possible.

    Arguments:
        lvm: the model and guide.
        objective: any Pyro ELBO; one with ``numbers`` (see ``vilvm.objectives.Annealed``) may
            change these without a new graph.
        optimizer: Adam and AdamW become part of the graph; any other is stepped behind it.
        clip: largest norm of the gradient of the loss per datum, or None.
        log: is given the one line that says why a step is eager.
        compiler: makes a program of a function of tensors and such tensors.
        kinds: how many kinds of batch there are. Of several, each may move parameters of its own,
            which a torch optimizer counts apart, so the optimizer is stepped behind the graph.
    """

    def __init__(
        self,
        lvm: LatentVariableModel,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        clip: float | None = None,
        log: Callable[[str], None] = print,
        compiler: "Compiler | None" = None,
        kinds: int = 1,
    ):
        self.eager = EagerStep(lvm, objective, optimizer, clip)
        self.lvm, self.objective, self.optimizer, self.clip, self.log = (
            lvm,
            objective,
            optimizer,
            clip,
            log,
        )
        self.compiler = inductor if compiler is None else compiler
        self.parameters = self.eager.parameters
        # Between gradients and update, ranks have something to say to each other.
        alone = self.eager.ranks.size == 1 and kinds == 1
        self.adam = (
            GraphAdam(optimizer, self.parameters)
            if GraphAdam.serves(optimizer) and alone
            else None
        )
        self.refused: str | None = None  # why the step is eager
        self.seconds = 0.0  # that compiling took
        # Called when a comparison has held, before further steps; only with it can a run go back
        # (``Diverged``).
        self.keep: Callable[[], None] | None = None
        # of one shape, one for every state of Python
        self._programs: dict[Any, list[_Program]] = {}
        self._taken, self._check_at, self._checked_at = 0, 0, 0
        self._returned, self._has_kept = 0, False
        self._noise: list[Tensor] = []  # the generators at the start of a comparison
        self._replaced = 0  # how often a tensor that a graph reads was
        self._irrelevant: dict[str, int] = {}  # by place, how often its change changed no graph
        self._started = torch.tensor(
            [0.0, 0.0, 1.0], dtype=torch.float64, device=self.parameters[0].device
        )

    def __call__(self, batch: Any, num_data: float) -> StepResult:
        """Moves the parameters one step down the loss per datum of `batch`."""
        program = self.ready(batch, num_data)
        if program is None:
            return self.eager(batch, num_data)
        try:
            told = self.launch(program, batch)
        except Exception as error:
            self.fail(error)
            return self.eager(batch, num_data)
        if self.adam is None:
            return self.eager.update(told)
        loss, norm, good = told.tolist()
        self.adam.taken -= not good
        return StepResult(loss, norm, bool(good))

    @property
    def at_once(self) -> int:
        """How many steps may be launched before one looks at what they did; 0 if each has to be
        looked at.
        """
        return (
            max(1, self._check_at - self._taken)
            if self.adam is not None and self.refused is None
            else 0
        )

    @property
    def goes_back(self) -> bool:
        """Whether the run may still have to go back."""
        return self.refused is None and self.keep is not None

    @property
    def unconfirmed(self) -> bool:
        """Whether steps were taken since the last comparison with the eager step."""
        return self.refused is None and self._taken > self._checked_at

    def check_soon(self, always: bool) -> None:
        """Lets the next step be compared with the eager one: `always`, or if the last comparison
        is some steps ago.
        """
        if always or self._taken - self._checked_at >= _NEAR:
            self._check_at = self._taken

    @property
    def counts(self) -> tuple[int, int, int, Sequence[Tensor]]:
        """Steps taken and what else counts them, to be put back."""
        adam = self.adam
        return (
            (self._taken, adam.counted, adam.taken, adam.moved)
            if adam
            else (self._taken, 0, 0, ())
        )

    @counts.setter
    def counts(self, counts: tuple[int, int, int, Sequence[Tensor]]) -> None:
        self._taken, counted, taken, moved = counts
        self._check_at, self._checked_at = (
            max(self._check_at, self._taken),
            min(self._checked_at, self._taken),
        )
        if self.adam is not None:
            self.adam.counted, self.adam.taken, self.adam.moved = counted, taken, moved

    def ready(self, batch: Any, num_data: float) -> _Program | None:
        """The program for batches like this one, held against the eager step when that is due;
        None if the step is eager.
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

    def prepare(self, batch: Any, num_data: float) -> _Program | None:
        """The program for batches like this one, compiled if there is none; None if the step is
        eager.
        """
        if self.refused is not None:
            return None
        if self.adam is not None and not GraphAdam.serves(self.optimizer):
            return self._refuse(
                f"an option of {type(self.optimizer).__name__} was changed that is no part of the "
                "graph"
            )
        if self.adam is not None and self.adam.is_reset:
            self._programs.clear()
        key = (
            structure_of(batch),
            shapes(tensors_of(batch)),
            num_data,
            tuple(p.requires_grad for p in self.parameters),
            None if self.adam is None else self.adam.decays,
        )
        programs = self._programs.setdefault(key, [])
        for program in programs:
            if program.guards.changed() is None:
                return program
        began, changed = time.perf_counter(), programs[-1].guards.what() if programs else ""
        try:
            if len(programs) >= MOST_PROGRAMS:
                raise UntraceableError(
                    f"{changed}, after {len(programs)} such changes; keep it in a buffer of the "
                    "module"
                )
            if self._replaced > MOST_PROGRAMS and self._taken < _SELDOM * self._replaced:
                raise UntraceableError(
                    f"{changed} {self._replaced} times; change it in place (.copy_, .fill_)"
                )
            program = self._compile(batch, num_data, programs)
        except UntraceableError as error:
            return self._refuse(str(error))
        self.seconds += time.perf_counter() - began
        checked = self._checked(program, batch, num_data)
        if checked is not None:
            self._add(programs, checked, changed)
        return checked

    def _add(self, programs: list[_Program], program: _Program, changed: str) -> None:
        """Keeps a program, in place of those of the same graph; says so if it was made because
        state has `changed`.
        """
        same = [p for p in programs if p.run is program.run]
        for place in (p.guards.changed() for p in same):
            # another tensor is another input
            if place is not None and isinstance(place.value, Tensor):
                self._replaced += 1
            elif place is not None:
                self._irrelevant[place.name] = self._irrelevant.get(place.name, 0) + 1
        programs[:] = [p for p in programs if p.run is not program.run] + [program]
        if changed and not same:
            self.log(
                f"The step of {type(self.lvm).__name__} is compiled anew after {self._taken} "
                f"compiled steps: {changed}."
            )

    def fail(self, error: Exception) -> None:
        """A program has failed in the middle of a step: the run goes back if it can, and its steps
        are eager from there on.
        """
        reason = f"its program fails ({why(error)})"
        if self.keep is not None:
            raise Diverged(reason, failed=True) from error
        self._refuse(reason)

    def go_back(self, found: Diverged, step: int) -> None:
        """The run has gone back to `step`, where all programs are made anew, or none any more."""
        self._returned += 1
        self._programs.clear()
        self._check_at = self._taken
        if found.failed or self._returned > _RETURNS:
            self._refuse(f"{found}; training went back to step {step}")
        else:
            self.log(
                f"The step of {type(self.lvm).__name__} is compiled anew, and training went back "
                f"to step {step}: {found}."
            )

    def differs(self, batch: Any, num_data: float, tolerance: float = _TOLERANCE) -> str | None:
        """Where a compiled step is not the eager one on the same noise, in words; None if it is,
        or can only be taken eagerly.

        Arguments:
            batch, num_data: as for a step.
            tolerance: relative, of the loss and of the gradient of every parameter.
        """
        try:
            program = self._compile(batch, num_data)
        except UntraceableError:
            return None
        return self._difference(program, batch, num_data, tolerance)

    def settle(self) -> None:
        """Writes into the optimizer the number of steps, which is kept beside it."""
        if self.adam is not None:
            self.adam.settle()

    def _refuse(self, reason: str) -> None:
        self.settle()
        self.refused = reason
        self.log(
            f"The step of {type(self.lvm).__name__} is not compiled, and runs eagerly: {reason}."
        )

    # Making
    # -------------------------------------------------------------------------------------------------------------

    def _compile(self, batch: Any, num_data: float, others: Sequence[_Program] = ()) -> _Program:
        """Traces loss and gradients, appends the update, and compiles the whole, unless one of the
        `others` is of the same graph.
        """
        moved: list[Tensor] = []

        def gradients(*given: Tensor) -> list[Tensor]:
            inputs = iter(given)
            inner = map_tensors(lambda _: next(inputs), batch)
            for p in self.parameters:
                p.grad = None
            with _given(self.objective, list(inputs)):
                loss = backward(
                    self.lvm, self.objective, inner, self.parameters, num_data, self.eager.masked
                )
            moved[:] = [p for p in self.parameters if p.grad is not None]
            return [loss.detach(), *(p.grad for p in moved if p.grad is not None)]

        given = [*tensors_of(batch), *self._numbers()]
        buffers = list(self.lvm.buffers())  # type: ignore[attr-defined]
        before = [(b, b._version, b.clone()) for b in buffers]
        with self._undone():
            watched = Guards.of(
                [self.lvm, self.lvm.model, self.lvm.guide, self.objective], self._is_input
            )
            graph = trace(gradients, given)
            guards, moved_state = watched.settled(graph.closed)
            guards = Guards(
                [p for p in guards.places if self._irrelevant.get(p.name, 0) < _IRRELEVANT]
            )
            # By value and by the graph too: batch normalisation counts no version, and may write
            # what was there, such as a mean of zero.
            changed = {
                id(b)
                for b, version, old in before
                if b._version != version or not torch.equal(b, old)
            }
            changed |= {id(t) for t in written(graph)} & {id(b) for b in buffers}
        if not moved:
            raise no_gradient(self.lvm, self.objective)
        own = {id(t) for t in [*self.lvm.parameters(), *buffers]}  # type: ignore[attr-defined]
        program = _Program(
            run=_nothing,
            closed=graph.closed,
            moved=moved,
            own=[i for i, t in enumerate(graph.closed) if id(t) in own],
            buffers=[i for i, t in enumerate(graph.closed) if id(t) in changed],
            launch=_nothing,
            code=graph.module.code,
            guards=guards,
            moving=moved_state,
        )
        for other in others:
            if _alike(program, other):
                return program._replace(
                    run=other.run, launch=self._launcher(other.run, program, len(given))
                )
        whole, inputs = self._with_update(graph, program, given)
        run = self.compiler(whole, inputs)
        return program._replace(run=run, launch=self._launcher(run, program, len(given)))

    def _is_input(self, holder: Any, key: Any) -> bool:
        """Whether a place is that of a number which the objective hands in, and is no matter for a
        guard.
        """
        inputs: Any = self.objective if hasattr(self.objective, "numbers") else None
        counted = inputs.state_dict() if hasattr(inputs, "state_dict") else {}
        return holder is vars(self.objective) and key in counted

    def _launcher(
        self, run: Callable[..., Any], program: _Program, num_given: int
    ) -> Callable[..., Any]:
        """`run` with the tensors put in that are changed in place, and so are the same ones at
        every step.
        """
        fixed = [*program.closed, *([] if self.adam is None else self.adam.moments(program.moved))]

        def arranged(given: Sequence[Tensor], fixed: Sequence[Tensor]) -> Any:
            return run(*given[:num_given], *fixed, *given[num_given:])

        # Without the update in it, a graph would hand out gradients that the next replay changes.
        if self.adam is not None and self.parameters[0].is_cuda:
            return Captured(arranged, fixed, self.log)
        return lambda *given: arranged(given, fixed)

    def _with_update(
        self, graph: Graph, program: _Program, given: list[Tensor]
    ) -> tuple[Callable[..., list[Tensor]], list[Tensor]]:
        """Loss, gradients and update as one function of a flat list of tensors; and such a list."""
        num_given, num_closed = len(given), len(graph.closed)
        place = {id(t): i for i, t in enumerate(graph.closed)}
        if any(id(p) not in place for p in program.moved):
            raise UntraceableError("a parameter that the graph does not read")

        def whole(*flat: Tensor) -> list[Tensor]:
            given, closed, rest = (
                flat[:num_given],
                flat[num_given : num_given + num_closed],
                flat[num_given + num_closed :],
            )
            before = [(closed[i], closed[i].clone()) for i in program.buffers]
            loss, *grads = graph.module(*given, *closed)
            if self.adam is None:
                return [loss, *grads]
            *state, numbers, told = rest
            # Row by row, which the compiler makes a loop of in less than half the time of one sum
            # over all.
            squares = [
                g.float().square().sum(-1).sum() if g.dim() else g.float().square() for g in grads
            ]
            norm = torch.stack(squares).sum().sqrt()
            good = loss.isfinite() & norm.isfinite() & (told[2] > 0)
            if self.clip is not None:
                factor = (self.clip / (norm + 1e-6)).clamp(max=1.0)
                grads = [g * factor for g in grads]
            parameters = [closed[place[id(p)]] for p in program.moved]
            self.adam.update(program.moved, parameters, grads, state, numbers, good)
            for buffer, old in before:
                buffer.copy_(torch.where(good, buffer, old))
            return [torch.stack([loss.double(), norm.double(), good.double()])]

        state = (
            []
            if self.adam is None
            else [*self.adam.blank(program.moved), self.adam.numbers(), self._started]
        )
        return whole, [*given, *graph.closed, *state]

    def _numbers(self) -> list[Tensor]:
        """What the objective changes from step to step."""
        numbers = getattr(self.objective, "numbers", None)
        return (
            []
            if numbers is None
            else [torch.tensor(n, device=self.parameters[0].device) for n in numbers()]
        )

    # Taking a step
    # ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def launch(self, program: _Program, batch: Any, before: Tensor | None = None) -> Tensor:
        """Takes one step without waiting for it, and supposes that it is good.

        Arguments:
            program: from ``ready``.
            batch: of the shape that the program is for.
            before: what the step before this one told. If that was not good, this one moves
                nothing either, nor does any after it.

        Returns:
            (loss, gradient norm, 1 if the parameters moved), float64; or the loss alone, the
            gradients being the parameters' own, if the update is not part of the graph.
        """
        given = [*tensors_of(batch), *self._numbers()]
        if self.adam is None:
            told, *grads = program.launch(*given)
            for p in self.parameters:
                p.grad = None
            for p, grad in zip(program.moved, grads, strict=True):
                p.grad = grad
        else:
            (told,) = program.launch(
                *given, self.adam.numbers(), self._started if before is None else before
            )
        self._count()
        return told

    def rehearse(self, program: _Program, batch: Any) -> None:
        """Draws and counts what a step draws and counts, and moves nothing."""
        self._gradients(program, batch)
        self._count()

    def _count(self) -> None:
        self._taken += 1
        if self.adam is not None:
            self.adam.taken += 1
        if hasattr(self.objective, "advance"):
            self.objective.advance()  # type: ignore[attr-defined]

    # Holding it against the eager step
    # ----------------------------------------------------------------------------------

    def _checked(self, program: _Program, batch: Any, num_data: float) -> _Program | None:
        """The program, if it does what the eager step does here and now; nothing is moved."""
        difference = self._difference(program, batch, num_data)
        return program if difference is None else self._refuse(difference)

    def _confirmed(self, program: _Program, batch: Any, num_data: float) -> _Program | None:
        """The program, if it still does what the eager step does.

        Raises:
            Diverged: it does not, and the run can go back.
        """
        difference = self._difference(program, batch, num_data)
        if difference is None:
            self._checked_at, self._check_at = (
                self._taken,
                self._taken + max(1, min(self._taken, _FAR)),
            )
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

    def _difference(
        self, program: _Program, batch: Any, num_data: float, tolerance: float = _TOLERANCE
    ) -> str | None:
        """Where loss or gradients of program and eager step differ, in words, or None."""
        with self._undone():
            loss, expected, buffers = self._eager(batch, num_data)
            moved = program.moving.changed()
        if moved is not None:
            return moving(moved.name)
        with self._undone(), torch.no_grad():
            try:
                found_loss, found, closed = self._gradients(program, batch)
            except Exception as error:
                return why(error)
        if not (math.isfinite(loss) and math.isfinite(found_loss)):
            same = math.isfinite(loss) == math.isfinite(found_loss)
            return None if same else f"its loss is {found_loss}, and that of the eager step {loss}"
        apart = abs(found_loss - loss)
        if apart > tolerance * abs(loss) and apart > _ROUNDING * self._terms(batch, num_data):
            return (
                f"its loss {found_loss:.8g} is not that of the eager step, {loss:.8g}, on the "
                "same noise"
            )
        name = self._far(expected, found, tolerance)
        changed = {id(t): closed[i] for i, t in enumerate(program.closed)}
        other = self._buffers_differ(buffers, changed)
        # perhaps terms that cancel, whose rounding is not relative to their sum
        if name is not None or other:
            with self._undone():
                _, nearby, near = self._eager(_shaken(batch), num_data, shaken=True)
            name = name and self._far(expected, found, tolerance, nearby)
            other = other and self._buffers_differ(buffers, changed, near)
        if name is not None:
            return f"its gradient of {name!r} is not that of the eager step on the same noise"
        return (
            "a buffer (batch statistics, say) is not what the eager step makes it"
            if other
            else None
        )

    def _buffers_differ(
        self,
        buffers: list[tuple[Tensor, Tensor]],
        found: dict[int, Tensor],
        near: list[tuple[Tensor, Tensor]] | None = None,
    ) -> bool:
        """Whether a buffer is not what the eager step makes it; `near` is what that makes it after
        a change of relative size 1e-6.
        """
        for i, (buffer, value) in enumerate(buffers):
            if id(buffer) not in found or not value.numel():
                continue
            mine, value = found[id(buffer)].double(), value.double()
            allowed = _TOLERANCE * value.abs() + _ABSOLUTE
            # the largest of its entries, for of any one it may be small by chance
            if near is not None:
                allowed = allowed + _SHAKES * (near[i][1].double() - value).abs().max()
            if not bool((((mine - value).abs() <= allowed) | (mine == value)).all()):
                return True
        return False

    def _eager(
        self, batch: Any, num_data: float, shaken: bool = False
    ) -> tuple[float, list[Tensor | None], list[tuple[Tensor, Tensor]]]:
        """Loss and gradients of the eager step, and every buffer with its value after it;
        `shaken`: parameters are moved a little meanwhile.
        """
        kept = [p.detach().clone() for p in self.parameters] if shaken else []
        # What Pyro would refuse or warn of, the eager step explains.
        with pyro.validation_enabled(False), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for p in self.parameters:
                p.grad = None
                if shaken:
                    p.data.mul_(1 + _SHAKE * (2 * torch.rand_like(p) - 1))
            if shaken:
                set_rng_state(self._noise, self.parameters[0].device)
            try:
                loss = backward(
                    self.lvm, self.objective, batch, self.parameters, num_data, self.eager.masked
                )
            finally:
                for p, value in zip(self.parameters, kept, strict=False):
                    p.data.copy_(value)
        return (
            loss.item(),
            [p.grad for p in self.parameters],
            [(b, b.clone()) for b in self.lvm.buffers()],
        )  # type: ignore[attr-defined]

    def _far(
        self,
        expected: list[Tensor | None],
        found: dict[int, Tensor],
        tolerance: float,
        nearby: list[Tensor | None] | None = None,
    ) -> str | None:
        """The name of a parameter whose gradient is not the `expected` one; `nearby` is that one
        after a change of relative size 1e-6.
        """
        total = math.sqrt(sum(float(g.double().square().sum()) for g in expected if g is not None))
        names = {id(p): n for n, p in self.lvm.named_parameters()}  # type: ignore[attr-defined]
        for i, (p, grad) in enumerate(zip(self.parameters, expected, strict=True)):
            other = found.get(id(p))
            grad = torch.zeros_like(p) if grad is None else grad
            other = torch.zeros_like(p) if other is None else other
            error = float((grad - other).double().norm())
            allowed = tolerance * float(grad.double().norm()) + _NEGLIGIBLE * total
            shaken = None if nearby is None else nearby[i]
            if shaken is not None:
                allowed += _SHAKES * float((grad - shaken).double().norm())
            if not (error <= allowed and math.isfinite(total)):
                return names.get(id(p), "a parameter")
        return None

    def _terms(self, batch: Any, num_data: float) -> float:
        """The sum of the sizes of the loss's terms, over `num_data`, by which its rounding is
        measured.
        """
        with (
            self._undone(),
            torch.no_grad(),
            pyro.validation_enabled(False),
            warnings.catch_warnings(),
            _Sizes() as sizes,
        ):
            warnings.simplefilter("ignore")
            self.objective.loss(self.lvm.model, self.lvm.guide, batch)
        return sizes.total / num_data

    def _gradients(
        self, program: _Program, batch: Any
    ) -> tuple[float, dict[int, Tensor], list[Tensor]]:
        """Loss and gradients by the program, run on copies of all that it changes; and the closed
        tensors after it.
        """
        closed = [
            t.detach().clone() if i in program.own else t for i, t in enumerate(program.closed)
        ]
        given = [*tensors_of(batch), *self._numbers()]
        if self.adam is None:
            loss, *grads = program.run(*given, *closed)
            return loss.item(), dict(zip(map(id, program.moved), grads, strict=True)), closed
        state = self.adam.blank(program.moved)
        (told,) = program.run(*given, *closed, *state, self.adam.numbers(1), self._started)
        loss, norm, _ = told.tolist()
        clipped = 1.0 if self.clip is None else min(1.0, self.clip / (norm + 1e-6))
        return loss, self.adam.gradients(program.moved, state, clipped), closed

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """Puts back what running the pair changes: gradients, buffers, generators, the objective's
        count of steps.
        """
        device = self.parameters[0].device
        self._noise = states = rng_state(device)
        grads = [p.grad for p in self.parameters]
        buffers = [(b, b.clone()) for b in self.lvm.buffers()]  # type: ignore[attr-defined]
        counted = self.objective.state_dict() if hasattr(self.objective, "state_dict") else None  # type: ignore[attr-defined]
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            for p, grad in zip(self.parameters, grads, strict=True):
                p.grad = grad
            if counted is not None:
                self.objective.load_state_dict(counted)  # type: ignore[attr-defined]
            set_rng_state(states, device)


def _alike(program: _Program, other: _Program) -> bool:
    """Whether two programs are of the same graph, for tensors of the same shapes in the same
    parts.
    """
    place, place_of_other = ({id(t): i for i, t in enumerate(p.closed)} for p in (program, other))
    return (
        program.code == other.code
        and shapes(program.closed) == shapes(other.closed)
        and (program.own, program.buffers) == (other.own, other.buffers)
        and [place.get(id(p)) for p in program.moved]
        == [place_of_other.get(id(p)) for p in other.moved]
    )


class _Sizes(Messenger):
    """Adds up the sizes of the log-densities of what is drawn and observed within it."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def _pyro_post_sample(self, msg: Any) -> None:
        size = msg["fn"].log_prob(msg["value"], *msg["args"], **msg["kwargs"]).abs()
        self.total += float(
            (scale_and_mask(size, scale=msg["scale"], mask=msg["mask"]))
            .double()
            .nan_to_num()
            .sum()
        )


def _shaken(batch: Any) -> Any:
    """A batch whose real numbers are changed a little, relatively; counts and labels are left."""

    def shaken(t: Tensor) -> Tensor:
        is_whole = not t.is_floating_point() or bool((t == t.round()).all())
        return t if is_whole else t * (1 + _SHAKE * (2 * torch.rand_like(t) - 1))

    return map_tensors(shaken, batch)


def _nothing(*_: Any) -> None:
    """Stands where a program will be."""


def _given(objective: Any, numbers: list[Tensor]) -> Any:
    """A context in which the objective takes its numbers from tensors."""
    return objective.given(*numbers) if numbers else nullcontext()
