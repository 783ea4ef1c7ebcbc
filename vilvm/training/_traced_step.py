"""The traced training step: loss, gradients, clipping and Adam as one program.

The handlers of Pyro run in Python and do the same at every step, so they are run once, under a
tracer (``vilvm._compile``). The result is a graph from parameters, data and noise to loss and
gradients. Clipping and Adam are appended, and torch's Inductor compiles the whole.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vilvm._compile import (
    Compiler,
    Graph,
    Guards,
    UntraceableError,
    mutated_inputs,
    shapes,
    trace,
)
from vilvm._runtime.random import rng_state, set_rng_state
from vilvm.data.tensors import map_tensors, tensors_of
from vilvm.training._adam import GraphAdam
from vilvm.training._capture import Captured
from vilvm.training.step import EagerStep, backward, no_gradient

__all__ = ["Program", "StepTracer", "numbers_of", "undone"]

# A place of Python state that has changed this often without changing the graph is no longer
# guarded. Comparisons with the eager step still detect its effect.
_IRRELEVANT = 3


class Program(NamedTuple):
    """A compiled step for batches of one shape.

    Arguments:
        run: the compiled graph.
        closed: the tensors that the pair closes over, by reference.
        moved: the parameters that have a gradient.
        own: the positions in `closed` of parameters and buffers, which the program may change.
        buffers: the positions in `closed` of the buffers that a step changes.
        launch: `run` with the tensors filled in that are the same at every step.
        code: the graph as text.
        guards: the Python state that the trace read.
        moved_state: the state that the trace changed; another run must not change it again.
    """

    run: Callable[..., Any]
    closed: list[Tensor]
    moved: list[Tensor]
    own: list[int]
    buffers: list[int]
    launch: Callable[..., Any]
    code: str
    guards: Guards
    moved_state: Guards


class StepTracer:
    """Makes programs of a training step.

    Arguments:
        eager: the step that is traced.
        adam: the optimizer as part of the graph; None if it is stepped after the graph.
        compiler: makes a program of a function of tensors and example tensors.
        log: receives one line if no CUDA graph can be captured.
    """

    def __init__(
        self,
        eager: EagerStep,
        adam: GraphAdam | None,
        compiler: Compiler,
        log: Callable[[str], None],
    ):
        self.eager = eager
        self.adam = adam
        self.compiler = compiler
        self.log = log
        # By place, how often its value has changed without changing the graph.
        self.irrelevant: Counter[str] = Counter()
        device = eager.parameters[0].device
        # Stands for the result of a step before the first: loss, gradient norm, 1 for finite.
        self.start = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64, device=device)

    def program(
        self,
        batch: Any,
        num_data: float,
        others: Sequence[Program] = (),
    ) -> Program:
        """Traces and compiles a step.

        Arguments:
            batch: the program serves batches of its shape.
            num_data: what the loss is divided by.
            others: programs that are reused if their graph is the same.

        Raises:
            UntraceableError: no graph can be made, or the compiler fails.
            ContractError: no parameter has a gradient.
        """
        given = [*tensors_of(batch), *self.numbers()]
        graph, program = self._traced(batch, num_data, given)
        for other in others:
            if _same_graph(program, other):
                return self._launchable(program, other.run, len(given))
        whole, inputs = self._with_update(graph, program, given)
        return self._launchable(program, self.compiler(whole, inputs), len(given))

    def numbers(self) -> list[Tensor]:
        """The numbers that the objective changes from step to step, as tensors."""
        return numbers_of(self.eager.objective, self.eager.parameters[0].device)

    def _traced(
        self,
        batch: Any,
        num_data: float,
        given: list[Tensor],
    ) -> tuple[Graph, Program]:
        """The graph of loss and gradients, and a program that does not run yet."""
        eager = self.eager
        lvm = self.eager.lvm
        moved: list[Tensor] = []

        def gradients(*flat: Tensor) -> list[Tensor]:
            inputs = iter(flat)
            inner = map_tensors(lambda _: next(inputs), batch)
            for p in eager.parameters:
                p.grad = None
            with _with_numbers(eager.objective, list(inputs)):
                loss = backward(
                    lvm,
                    eager.objective,
                    inner,
                    eager.parameters,
                    num_data,
                    masked=eager.masked,
                )
            moved[:] = [p for p in eager.parameters if p.grad is not None]
            return [loss.detach(), *(p.grad for p in moved if p.grad is not None)]

        buffers = list(lvm.buffers())  # type: ignore[attr-defined]
        before = [(b, b._version, b.clone()) for b in buffers]
        with undone(eager):
            roots = [lvm, lvm.model, lvm.guide, eager.objective]
            watched = Guards.of(roots, self._is_input)
            graph = trace(gradients, given)
            guards, moved_state = watched.settled(graph.closed)
            # Batch normalisation does not raise the version, and may write an equal value.
            changed = {id(t) for t in mutated_inputs(graph)} & set(map(id, buffers))
            for buffer, version, old in before:
                if _was_changed(buffer, version, old):
                    changed.add(id(buffer))
        if not moved:
            raise no_gradient(lvm, eager.objective)
        own = {id(t) for t in [*lvm.parameters(), *buffers]}  # type: ignore[attr-defined]
        return graph, Program(
            run=_not_compiled,
            closed=graph.closed,
            moved=moved,
            own=_positions(graph.closed, own),
            buffers=_positions(graph.closed, changed),
            launch=_not_compiled,
            code=graph.module.code,
            guards=self._relevant(guards),
            moved_state=moved_state,
        )

    def _relevant(self, guards: Guards) -> Guards:
        """The guards without places whose changes have changed no graph."""
        places = (p for p in guards.places if self.irrelevant[p.name] < _IRRELEVANT)
        return Guards(list(places))

    def _is_input(self, holder: Any, key: Any) -> bool:
        """Whether a place holds a number that the objective passes as an input."""
        objective: Any = self.eager.objective
        if holder is not vars(objective) or not hasattr(objective, "numbers"):
            return False
        return hasattr(objective, "state_dict") and key in objective.state_dict()

    def _launchable(
        self,
        program: Program,
        run: Callable[..., Any],
        num_given: int,
    ) -> Program:
        """The program with its compiled graph, and with its fixed tensors filled in."""
        fixed = list(program.closed)
        if self.adam is not None:
            fixed += self.adam.moments(program.moved)

        def arranged(given: Sequence[Tensor], fixed: Sequence[Tensor]) -> Any:
            return run(*given[:num_given], *fixed, *given[num_given:])

        # Without the update in it, a CUDA graph would return gradients that its next replay
        # overwrites.
        if self.adam is not None and self.eager.parameters[0].is_cuda:
            captured = Captured(arranged, fixed, self.log)
            return program._replace(run=run, launch=captured)
        return program._replace(run=run, launch=lambda *given: arranged(given, fixed))

    def _with_update(
        self, graph: Graph, program: Program, given: list[Tensor]
    ) -> tuple[Callable[..., list[Tensor]], list[Tensor]]:
        """Loss, gradients and update as a function of a flat list of tensors, and such a list."""
        place = {id(t): i for i, t in enumerate(graph.closed)}
        if any(id(p) not in place for p in program.moved):
            raise UntraceableError("a parameter that the graph does not read")
        parameters = [place[id(p)] for p in program.moved]
        adam = self.adam
        clip = self.eager.clip
        start = len(given)
        end = start + len(graph.closed)

        def whole(*flat: Tensor) -> list[Tensor]:
            closed = flat[start:end]
            rest = flat[end:]
            old = [(closed[i], closed[i].clone()) for i in program.buffers]
            loss, *grads = graph.module(*flat[:end])
            if adam is None:
                return [loss, *grads]
            *state, numbers, before = rest
            norm = _norm(grads)
            good = loss.isfinite() & norm.isfinite() & (before[2] > 0)
            if clip is not None:
                factor = (clip / (norm + 1e-6)).clamp(max=1.0)
                grads = [g * factor for g in grads]
            own = [closed[i] for i in parameters]
            adam.update(program.moved, own, grads, state, numbers, good=good)
            for buffer, value in old:
                buffer.copy_(torch.where(good, buffer, value))
            return [torch.stack([loss.double(), norm.double(), good.double()])]

        inputs = [*given, *graph.closed]
        if adam is not None:
            inputs += [*adam.blank(program.moved), adam.numbers()[0], self.start]
        return whole, inputs


def numbers_of(objective: Any, device: torch.device) -> list[Tensor]:
    """The numbers that an objective changes from step to step, as tensors."""
    numbers = getattr(objective, "numbers", tuple)
    return [torch.tensor(n, device=device) for n in numbers()]


@contextmanager
def undone(eager: EagerStep) -> Iterator[None]:
    """A context that restores what running the pair changes.

    These are gradients, buffers, generators and the objective's count of steps.
    """
    lvm: Any = eager.lvm
    objective: Any = eager.objective
    device = eager.parameters[0].device
    states = rng_state(device)
    grads = [p.grad for p in eager.parameters]
    buffers = [(b, b.clone()) for b in lvm.buffers()]
    counted = objective.state_dict() if hasattr(objective, "state_dict") else None
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for p, grad in zip(eager.parameters, grads, strict=True):
            p.grad = grad
        if counted is not None:
            objective.load_state_dict(counted)
        set_rng_state(states, device)


def _was_changed(buffer: Tensor, version: int, old: Tensor) -> bool:
    return buffer._version != version or not torch.equal(buffer, old)


def _positions(tensors: Sequence[Tensor], ids: set[int]) -> list[int]:
    """The positions of the tensors with these ids."""
    return [i for i, t in enumerate(tensors) if id(t) in ids]


def _norm(grads: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients.

    It is summed row by row: the compiler makes this a loop that takes less than half the time of
    one sum over all elements.
    """
    squares = [g.float().square() for g in grads]
    sums = [s.sum(-1).sum() if s.dim() else s for s in squares]
    return torch.stack(sums).sum().sqrt()


def _same_graph(program: Program, other: Program) -> bool:
    """Whether two programs have the same graph and the same shapes and positions of tensors."""
    return (
        program.code == other.code
        and shapes(program.closed) == shapes(other.closed)
        and (program.own, program.buffers) == (other.own, other.buffers)
        and _moved_positions(program) == _moved_positions(other)
    )


def _moved_positions(program: Program) -> list[int | None]:
    """The positions in `closed` of the parameters that have a gradient."""
    place = {id(t): i for i, t in enumerate(program.closed)}
    return [place.get(id(p)) for p in program.moved]


def _not_compiled(*_: Any) -> None:
    """Stands for a program until there is one."""


def _with_numbers(objective: Any, numbers: list[Tensor]) -> Any:
    """A context in which the objective takes its numbers from tensors."""
    return objective.given(*numbers) if numbers else nullcontext()
