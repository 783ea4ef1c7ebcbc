"""The comparison of a compiled step with the eager one, on the same batch and noise.

Loss, gradients and buffers must agree up to rounding. The rounding of a gradient is estimated by
a second eager step on parameters and data that are changed by a relative 1e-6, in either
direction: an activation such as ReLU may have its kink within rounding on one side.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor

from vilvm._compile import reason_of, state_change_reason
from vilvm._runtime.random import rng_state, set_rng_state
from vilvm.data.tensors import map_tensors, tensors_of
from vilvm.training._adam import GraphAdam
from vilvm.training._traced_step import Program, StepTracer, undone
from vilvm.training.step import EagerStep, backward

__all__ = ["TOLERANCE", "Comparison"]

# Relative, of loss and gradients; sums in another order differ by some 1e-6.
TOLERANCE = 1e-4
_ROUNDING = 1e-5  # of the sum of the absolute terms of the loss
# Relative, of parameters and data, to estimate the rounding of a gradient.
_PERTURBATIONS = (1e-6, -1e-6, 3e-6, -3e-6)
_MARGIN = 10.0  # times the effect of the perturbation
_ABSOLUTE = 1e-8  # of an entry of a buffer
# The gradient of a parameter is rounding below this share of the norm of all gradients.
_NEGLIGIBLE = 1e-6


class _EagerResult(NamedTuple):
    """Loss, gradients by parameter, and every buffer with its value after the step."""

    loss: float
    gradients: list[Tensor | None]
    buffers: list[tuple[Tensor, Tensor]]


class _ProgramResult(NamedTuple):
    """Loss, gradients by the id of a parameter, and the closed tensors after the step, by id."""

    loss: float
    gradients: dict[int, Tensor]
    closed: dict[int, Tensor]


class Comparison:
    """Compares programs with the eager step; changes nothing.

    Arguments:
        eager: the eager step.
        adam: the optimizer within the programs, or None.
        tracer: made the programs.
    """

    def __init__(
        self,
        eager: EagerStep,
        adam: GraphAdam | None,
        tracer: StepTracer,
    ):
        self.eager = eager
        self.adam = adam
        self.tracer = tracer
        self.lvm: Any = eager.lvm
        self.device = eager.parameters[0].device

    def difference(
        self,
        program: Program,
        batch: Any,
        num_data: float,
        tolerance: float = TOLERANCE,
    ) -> str | None:
        """How a step of a program differs from the eager one; None if it does not.

        Arguments:
            program: the compiled step.
            batch, num_data: as for a step.
            tolerance: relative, of the loss and of the gradient of every parameter.
        """
        with undone(self.eager):
            expected = self._eager(batch, num_data)
            changed = program.moved_state.changed()
        if changed is not None:
            return state_change_reason(changed.name)
        with undone(self.eager), torch.no_grad():
            try:
                found = self.run_on_copies(program, batch)
            except Exception as error:
                return reason_of(error)
        if not (math.isfinite(expected.loss) and math.isfinite(found.loss)):
            return _nonfinite_difference(expected.loss, found.loss)
        apart = abs(found.loss - expected.loss)
        too_far = apart > tolerance * abs(expected.loss)
        if too_far and apart > _ROUNDING * self._size_of_terms(batch, num_data):
            return (
                f"its loss {found.loss:.8g} is not that of the eager step, {expected.loss:.8g}, "
                "on the same noise"
            )
        return self._difference_of_tensors(
            expected, found, (batch, num_data), tolerance
        )

    def _difference_of_tensors(
        self,
        expected: _EagerResult,
        found: _ProgramResult,
        step: tuple[Any, float],
        tolerance: float,
    ) -> str | None:
        """How gradients or buffers differ, by more than rounding; None if they do not."""
        reason = self._tensor_reason(expected, found, tolerance)
        for size in _PERTURBATIONS:
            if reason is None:
                return None
            # Terms may cancel; their rounding is then not relative to their sum.
            near = self._perturbed(*step, size)
            reason = self._tensor_reason(expected, found, tolerance, near)
        return reason

    def _tensor_reason(
        self,
        expected: _EagerResult,
        found: _ProgramResult,
        tolerance: float,
        near: _EagerResult | None = None,
    ) -> str | None:
        """How gradients or buffers differ; None if they do not.

        Arguments:
            expected, found: results of the eager step and of the program.
            tolerance: relative, of the gradient of every parameter.
            near: the eager result after a perturbation.
        """
        name = self._differing_gradient(expected, found, tolerance, near)
        if name is not None:
            return f"its gradient of {name!r} is not that of the eager step on the same noise"
        if _buffers_differ(expected, found, near):
            return "a buffer, such as batch statistics, is not that of the eager step"
        return None

    # The two steps
    # ------------------------------------------------------------------------------------

    def _eager(self, batch: Any, num_data: float) -> _EagerResult:
        """The result of the eager step, which moves no parameter."""
        for p in self.eager.parameters:
            p.grad = None
        with _silent_pyro():
            loss = backward(
                self.lvm,
                self.eager.objective,
                batch,
                self.eager.parameters,
                num_data,
                masked=self.eager.masked,
            )
        gradients = [p.grad for p in self.eager.parameters]
        return _EagerResult(
            loss.item(), gradients, [(b, b.clone()) for b in self.lvm.buffers()]
        )

    def _perturbed(self, batch: Any, num_data: float, size: float) -> _EagerResult:
        """The eager result after a relative change of parameters and data by at most `size`.

        Its direction is random, but the same for every size.
        """
        parameters = self.eager.parameters
        with undone(self.eager):
            noise = rng_state(self.device)
            batch = _perturbed_batch(batch, size)
            kept = [p.detach().clone() for p in parameters]
            try:
                for p in parameters:
                    p.data.mul_(1 + size * (2 * torch.rand_like(p) - 1))
                set_rng_state(noise, self.device)
                return self._eager(batch, num_data)
            finally:
                for p, value in zip(parameters, kept, strict=True):
                    p.data.copy_(value)

    def run_on_copies(self, program: Program, batch: Any) -> _ProgramResult:
        """The result of a program, run on copies of all that it changes."""
        closed = list(program.closed)
        for i in program.own:
            closed[i] = closed[i].detach().clone()
        by_id = dict(zip(map(id, program.closed), closed, strict=True))
        given = [*tensors_of(batch), *self.tracer.numbers()]
        if self.adam is None:
            loss, *grads = program.run(*given, *closed)
            gradients = dict(zip(map(id, program.moved), grads, strict=True))
            return _ProgramResult(loss.item(), gradients, by_id)
        state = self.adam.blank(program.moved)
        (numbers,) = self.adam.numbers(first=1)
        (result,) = program.run(*given, *closed, *state, numbers, self.tracer.start)
        loss, norm, _ = result.tolist()
        factor = 1.0
        if self.eager.clip is not None:
            factor = min(1.0, self.eager.clip / (norm + 1e-6))
        return _ProgramResult(
            loss, self.adam.gradients(program.moved, state, factor), by_id
        )

    # Differences
    # ------------------------------------------------------------------------------------

    def _differing_gradient(
        self,
        expected: _EagerResult,
        found: _ProgramResult,
        tolerance: float,
        near: _EagerResult | None = None,
    ) -> str | None:
        """The name of a parameter whose gradient is not the expected one, or None.

        Arguments:
            expected, found: results of the eager step and of the program.
            tolerance: relative, of the gradient of every parameter.
            near: the eager result after a small perturbation.
        """
        known = [g for g in expected.gradients if g is not None]
        total = math.sqrt(sum(float(g.double().square().sum()) for g in known))
        for i, p in enumerate(self.eager.parameters):
            grad = _zero_if_none(expected.gradients[i], p)
            other = _zero_if_none(found.gradients.get(id(p)), p)
            error = _distance(grad, other)
            size = float(grad.double().norm())
            allowed = tolerance * size + _NEGLIGIBLE * total
            close = near and near.gradients[i]
            if close is not None:
                allowed += _MARGIN * _distance(grad, close)
            if not (error <= allowed and math.isfinite(total)):
                return self._name(p)
        return None

    def _name(self, parameter: Tensor) -> str:
        names = {id(p): n for n, p in self.lvm.named_parameters()}
        return names.get(id(parameter), "a parameter")

    def _size_of_terms(self, batch: Any, num_data: float) -> float:
        """The sum of the absolute terms of the loss, over `num_data`: the scale of rounding."""
        with undone(self.eager), torch.no_grad(), _silent_pyro(), _Sizes() as sizes:
            self.eager.objective.loss(self.lvm.model, self.lvm.guide, batch)
        return sizes.total / num_data


def _buffers_differ(
    expected: _EagerResult, found: _ProgramResult, near: _EagerResult | None = None
) -> bool:
    """Whether a buffer after the program is not that after the eager step.

    Arguments:
        expected, found: results of the eager step and of the program.
        near: the eager result after a perturbation.
    """
    for i, (buffer, value) in enumerate(expected.buffers):
        if id(buffer) not in found.closed or not value.numel():
            continue
        mine = found.closed[id(buffer)].double()
        value = value.double()
        allowed = TOLERANCE * value.abs() + _ABSOLUTE
        # The largest entry, because a single one may be small by chance.
        if near is not None:
            _, other = near.buffers[i]
            rounding = (other.double() - value).abs().max()
            allowed = allowed + _MARGIN * rounding
        same = (mine - value).abs() <= allowed
        same |= mine == value
        if not bool(same.all()):
            return True
    return False


def _nonfinite_difference(expected: float, found: float) -> str | None:
    """The difference of two losses that are not both finite; None if neither is."""
    if math.isfinite(expected) == math.isfinite(found):
        return None
    return f"its loss is {found}, and that of the eager step {expected}"


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).double().norm())


def _zero_if_none(grad: Tensor | None, parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if grad is None else grad


def _perturbed_batch(batch: Any, size: float) -> Any:
    """A batch with small relative changes of its real numbers; counts and labels are kept."""

    def perturbed(t: Tensor) -> Tensor:
        if not t.is_floating_point() or bool((t == t.round()).all()):
            return t
        return t * (1 + size * (2 * torch.rand_like(t) - 1))

    return map_tensors(perturbed, batch)


class _Sizes(Messenger):
    """Adds up the absolute log-densities of all sites that run within it."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def _pyro_post_sample(self, msg: Any) -> None:
        size = msg["fn"].log_prob(msg["value"], *msg["args"], **msg["kwargs"]).abs()
        scaled = scale_and_mask(size, scale=msg["scale"], mask=msg["mask"])
        self.total += float(scaled.double().nan_to_num().sum())


@contextmanager
def _silent_pyro() -> Iterator[None]:
    """A context without Pyro's checks and warnings; the eager step reports the same faults."""
    with pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
