"""The densities that a Markov chain moves over, and their gradients: compiled where that pays.

A chain asks for them thousands of times, at positions of one shape, and Pyro's handlers do the same each time. So they are traced once for a batch of
every shape, and held against the eager ones at the positions at hand; where they differ, or no graph can be made, all are eager, and one line says so.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vilvm.compiling import Compiler, UntraceableError, inductor, program, shapes
from vilvm.data import kept_generators, map_tensors, tensors_of
from vilvm.evaluation.hmc import State, start
from vilvm.weights.joint import Joint

__all__ = ["Slopes"]

_TOLERANCE = 1e-4  # relative to the size of what is compared; sums of float32 in another order differ by some 1e-6
_PROGRAMS = 2  # of the pilot's chains and of those that count; those of a smaller last batch are not worth another


class Slopes:
    """The state of chains at u, for the batches of one model.

    Arguments:
        compile: whether they are compiled.
        tell: is given the one line that says why they are not.
        compiler: makes a program of a function of tensors.
    """

    def __init__(self, compile: bool, tell: Callable[[str], None] = print, compiler: Compiler | None = None):
        self.compiles, self.tell, self.compiler = compile, tell, inductor if compiler is None else compiler
        self._programs: dict[Any, Callable[..., list[Tensor]]] = {}

    def __call__(self, joint: Joint, u: Tensor) -> State:
        """The state at u, of shape (num_samples, num_data, D)."""
        if not self.compiles:
            return start(joint, u)
        given = [u.detach().contiguous(), *tensors_of(joint.batch)]
        key = joint.base, shapes(given)
        if key not in self._programs:
            if len(self._programs) == _PROGRAMS:
                return start(joint, u)
            try:
                self._programs[key] = self._made(joint, given)
            except UntraceableError as error:
                self.compiles = False
                self.tell(f"The densities of {type(joint.lvm).__name__} are not compiled, and its chains move eagerly: {error}.")
                return start(joint, u)
        return State(given[0], *self._programs[key](*given))

    def _made(self, joint: Joint, given: list[Tensor]) -> Callable[..., list[Tensor]]:
        """The program, which finds here and now what ``start`` finds."""

        def function(u: Tensor, *inputs: Tensor) -> list[Tensor]:
            rest, inner = iter(inputs), copy.copy(joint)
            inner.batch = map_tensors(lambda _: next(rest), joint.batch)
            return list(start(inner, u)[1:])

        with kept_generators(given[0].device):
            made = program(function, given, self.compiler)
        expected, found = start(joint, given[0]), made(*given)
        for name, mine, other in zip(State._fields[1:], expected[1:], found, strict=True):
            allowed = _TOLERANCE * mine[mine.isfinite()].abs().mean().nan_to_num(0.0).item()
            if not torch.allclose(mine, other, rtol=_TOLERANCE, atol=allowed, equal_nan=True):
                raise UntraceableError(f"their {name.replace('_', ' ')} is not that of the eager densities")
        return made
