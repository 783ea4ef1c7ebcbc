"""Log-densities of a Markov chain and their gradients, compiled when it saves time.

A chain evaluates the densities thousands of times at positions of one shape, and Pyro's handlers
do the same work each time. So they are traced once. For each batch, the compiled values at the
first positions must equal the eager ones. If they differ, or tracing fails, all later evaluations
are eager, and one line reports why.
"""

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor

from vilvm._compile import (
    Compiler,
    UntraceableError,
    assert_matches,
    machine_code,
    program,
    shapes,
)
from vilvm._runtime.random import preserved_rng
from vilvm.data.tensors import map_tensors, tensors_of
from vilvm.evaluation.hmc import State, start
from vilvm.weights.log_joint import LogJoint

__all__ = ["DensityGradients"]


class DensityGradients:
    """Computes the states of chains, for the batches of one model.

    Arguments:
        compile: whether to compile.
        log: receives the line that reports why compilation failed.
        compiler: makes a program of a function of tensors; Inductor by default.

    Examples:
        >>> import torch
        >>> from vilvm.evaluation.density_gradients import DensityGradients
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.weights.log_joint import LogJoint
        >>> joint = LogJoint(PPCA(data_dim=3, latent_dim=2), torch.zeros(5, 3), "prior")
        >>> DensityGradients(compile=False)(joint, joint.draw(4)).target.shape
        torch.Size([4, 5])
    """

    def __init__(
        self,
        compile: bool,
        log: Callable[[str], None] = print,
        compiler: Compiler | None = None,
    ):
        self.compiles, self.log = compile, log
        self.compiler = compiler or machine_code
        self._programs: dict[Any, Callable[..., list[Tensor]]] = {}
        self._joint: LogJoint | None = None  # of the current batch
        # keys of the programs that equal the eager values on the current batch
        self._checked: set[Any] = set()
        self._is_first = True

    def __call__(self, joint: LogJoint, u: Tensor) -> State:
        """The state at u, of shape (num_samples, num_data, D)."""
        if not self.compiles:
            return start(joint, u)
        if joint is not self._joint:
            self._is_first = self._joint is None
            self._joint, self._checked = joint, set()
        given = [u.detach().contiguous(), *tensors_of(joint.batch)]
        key = joint.base, shapes(given)
        if key in self._checked:
            return State(given[0], *self._programs[key](*given))
        if key not in self._programs and not self._is_first:
            return start(joint, u)  # a smaller last batch is not worth a program
        eager = start(joint, u)
        try:
            self._check(key, joint, given, eager)
        except UntraceableError as error:
            self.compiles = False
            self.log(
                f"The densities of {type(joint.lvm).__name__} are not compiled, and its chains "
                f"move eagerly: {error}."
            )
        return eager

    def _check(
        self, key: Any, joint: LogJoint, given: list[Tensor], eager: State
    ) -> None:
        """Makes the program if it does not exist, and compares it with the eager values.

        Raises:
            UntraceableError: no graph can be made, or its values differ.
        """
        if key not in self._programs:
            self._programs[key] = self._program(joint, given)
        names = [name.replace("_", " ") for name in State._fields[1:]]
        expected = dict(zip(names, eager[1:], strict=True))
        assert_matches(expected, lambda: self._programs[key](*given))
        self._checked.add(key)

    def _program(
        self, joint: LogJoint, given: list[Tensor]
    ) -> Callable[..., list[Tensor]]:
        """``start`` as a program."""

        def function(u: Tensor, *inputs: Tensor) -> list[Tensor]:
            rest, inner = iter(inputs), copy.copy(joint)
            inner.batch = map_tensors(lambda _: next(rest), joint.batch)
            inner.traced = True
            return list(start(inner, u)[1:])

        parts = [joint.lvm, joint.lvm.model, joint.lvm.guide]
        with preserved_rng(given[0].device):
            return program(function, given, self.compiler, parts)
