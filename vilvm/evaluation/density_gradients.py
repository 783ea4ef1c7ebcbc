"""The densities that a Markov chain moves over, and their gradients: compiled where that pays.

A chain asks for them thousands of times, at positions of one shape, and Pyro's handlers do the
same each time. So they are traced once, and held against the eager ones at the first positions of
every batch; where they differ, or no graph can be made, all are eager from there on, and one line
says so.
"""

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor

from vilvm._compile import Compiler, UntraceableError, assert_matches, inductor, program, shapes
from vilvm._runtime.random import preserved_rng
from vilvm.data.tensors import map_tensors, tensors_of
from vilvm.evaluation.hmc import State, start
from vilvm.weights.log_joint import LogJoint

__all__ = ["DensityGradients"]


class DensityGradients:
    """The state of chains at u, for the batches of one model.

    Arguments:
        compile: whether they are compiled.
        log: is given the one line that says why they are not.
        compiler: makes a program of a function of tensors.
    """

    def __init__(
        self, compile: bool, log: Callable[[str], None] = print, compiler: Compiler | None = None
    ):
        self.compiles, self.log, self.compiler = (
            compile,
            log,
            inductor if compiler is None else compiler,
        )
        self._programs: dict[Any, Callable[..., list[Tensor]]] = {}
        self._joint: LogJoint | None = (
            # the last one, for which some of the programs have been held against the eager
            # densities
            None
        )
        self._held: set[Any] = set()
        self._is_first = True

    def __call__(self, joint: LogJoint, u: Tensor) -> State:
        """The state at u, of shape (num_samples, num_data, D)."""
        if not self.compiles:
            return start(joint, u)
        if joint is not self._joint:
            self._is_first, self._joint, self._held = self._joint is None, joint, set()
        given = [u.detach().contiguous(), *tensors_of(joint.batch)]
        key = joint.base, shapes(given)
        if key in self._held:
            return State(given[0], *self._programs[key](*given))
        if key not in self._programs and not self._is_first:
            return start(joint, u)  # a smaller last batch is not worth a program
        eager = start(joint, u)
        try:
            if key not in self._programs:
                self._programs[key] = self._made(joint, given)
            named = {
                name.replace("_", " "): t
                for name, t in zip(State._fields[1:], eager[1:], strict=True)
            }
            assert_matches(named, lambda: self._programs[key](*given))
            self._held.add(key)
        except UntraceableError as error:
            self.compiles = False
            self.log(
                f"The densities of {type(joint.lvm).__name__} are not compiled, and its chains "
                f"move eagerly: {error}."
            )
        return eager

    def _made(self, joint: LogJoint, given: list[Tensor]) -> Callable[..., list[Tensor]]:
        """What ``start`` finds, as a program."""

        def function(u: Tensor, *inputs: Tensor) -> list[Tensor]:
            rest, inner = iter(inputs), copy.copy(joint)
            inner.batch, inner.traced = map_tensors(lambda _: next(rest), joint.batch), True
            return list(start(inner, u)[1:])

        with preserved_rng(given[0].device):
            return program(
                function, given, self.compiler, [joint.lvm, joint.lvm.model, joint.lvm.guide]
            )
