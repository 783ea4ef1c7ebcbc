"""The unnormalised posterior of a model, as a function of all its unconstrained latents at once.

Each call takes many points. A call for some hundred points of a small model costs little more than
a call for one, because Pyro's part of the cost is the same. A shape that is called often is traced
once, and its graph of tensor operations runs in place of Pyro.
"""

import copy
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vilvm._compile import (
    Compiler,
    UntraceableError,
    assert_matches,
    graph,
    machine_code,
    program,
)
from vilvm._runtime.random import preserved_rng
from vilvm.data.tensors import map_tensors, tensors_of
from vilvm.inference._factorisation import NaNFactors
from vilvm.weights.log_joint import LogJoint

__all__ = ["Target"]

_NUMBERS = 4_000_000  # data times points of a call: what fits the memory
_OFTEN = 30  # calls at one shape after which its gradient is traced


class Target:
    """log p(x, z(u)) + log |∂z/∂u| in nats, with its derivatives; D is the dimension of u.

    Points where the model has no density, or fails to factorise a matrix, have value −∞ and zero
    derivatives.

    Arguments:
        lvm: a pair in float64 whose guide draws one vector u, such as an AutoDiagonalNormal.
        batch: the data.
    """

    def __init__(self, lvm: Any, batch: Any):
        self.joint = LogJoint(lvm, batch, improper=True)
        self.dim = self.joint.draw(1).shape[-1]
        self.gradients = 0  # points at which a gradient was computed
        self.densities = 0  # points at which the density alone was computed
        self.most = max(1, _NUMBERS // max(1, self.joint.layout.num_data))
        self._calls: Counter[int] = Counter()
        self._programs: dict[int, Callable[..., list[Tensor]] | None] = {}

    def __call__(self, u: Tensor) -> Tensor:
        """The log-density of points of shape (S, D); shape (S,)."""
        self.densities += len(u)
        with torch.no_grad():
            (value,) = self._in_parts(u, lambda part: (self._value(part),))
        return value

    def gradient(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The log-density (S,) and its gradient (S, D)."""
        self.gradients += len(u)
        value, gradient = self._in_parts(u, self._traced_gradient)
        return value, gradient

    def pulled_back(
        self, map_: Callable[[Tensor], tuple[Tensor, Tensor]], eps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The log-density of ε, log p(x, u(ε)) + log |∂u/∂ε|, (S,), and its gradient (S, D).

        Arguments:
            map_: u and log |∂u/∂ε| at ε.
            eps: points, shape (S, D).
        """
        with torch.enable_grad():
            eps = eps.detach().requires_grad_()
            u, log_det = map_(eps)
            value, slope = self.gradient(u.detach())
            surrogate = (u * slope).sum() + log_det.expand(len(u)).sum()
            (gradient,) = torch.autograd.grad(surrogate, eps)
        return value + log_det.detach(), gradient.nan_to_num(0.0, 0.0, 0.0)

    def hessian(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The log-density (S,), its gradient (S, D) and its Hessian (S, D, D)."""
        self.gradients += len(u) * (self.dim + 1)
        value, gradient, hessian = self._in_parts(u, self._hessian, self.dim)
        return value, gradient, hessian

    def see(self, batch: Any, factor: float) -> None:
        """Takes another batch, of the same shapes, whose log-likelihood counts `factor` times."""
        if factor != self.joint.likelihood_factor:
            self._calls.clear()
            self._programs.clear()
        self.joint.batch, self.joint.likelihood_factor = batch, factor

    def _value(self, u: Tensor) -> Tensor:
        with NaNFactors():
            value = self.joint(u[:, None]).target[:, 0]
        return torch.where(value.isfinite(), value, -math.inf)

    def _gradient(self, u: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            value = self._value(u)
            (gradient,) = torch.autograd.grad(value.sum(), u)
        return value.detach(), gradient.nan_to_num(0.0, 0.0, 0.0)

    def _traced_gradient(self, u: Tensor) -> Sequence[Tensor]:
        size = len(u)
        self._calls[size] += 1
        if self._calls[size] == _OFTEN and size not in self._programs:
            self._trace(u, _lean)
        run = self._programs.get(size)
        if run is None:
            return self._gradient(u)
        return run(u.contiguous(), *tensors_of(self.joint.batch))

    def compile(self, u: Tensor) -> None:
        """Compiles the gradient at as many points as these, which takes a second or some ten."""
        u = u[: self.most]
        self._trace(u, machine_code)
        if self._programs[len(u)] is None:
            self._trace(u, _lean)

    def _trace(self, u: Tensor, compiler: Compiler) -> None:
        """Makes a program of the gradient at points of this shape, unless its values differ."""
        given = [u.contiguous(), *tensors_of(self.joint.batch)]
        value, gradient = self._gradient(u)

        def function(u: Tensor, *inputs: Tensor) -> list[Tensor]:
            rest, inner = iter(inputs), copy.copy(self)
            inner.joint = copy.copy(self.joint)
            inner.joint.batch = map_tensors(lambda _: next(rest), self.joint.batch)
            inner.joint.traced = True
            return list(inner._gradient(u))

        lvm = self.joint.lvm
        parts = [lvm, lvm.model, lvm.guide]
        try:
            with preserved_rng(u.device):
                run = program(function, given, compiler, parts)
            expected = {"density": value.nan_to_num(), "gradient": gradient}
            assert_matches(expected, lambda: [x.nan_to_num() for x in run(*given)])
            self._programs[len(u)] = run
        except UntraceableError:
            self._programs[len(u)] = None

    def _hessian(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One row of the Hessian for each copy of a point, from one second backward pass."""
        num, dim = u.shape
        with torch.enable_grad():
            copies = u.detach().repeat_interleave(dim, 0).requires_grad_()
            value = self._value(copies)
            (gradient,) = torch.autograd.grad(value.sum(), copies, create_graph=True)
            rows = gradient.reshape(num, dim, dim).diagonal(dim1=1, dim2=2).sum()
            (hessian,) = torch.autograd.grad(rows, copies)
        hessian = hessian.reshape(num, dim, dim).nan_to_num(0.0, 0.0, 0.0)
        gradient = gradient.detach()[::dim].nan_to_num(0.0, 0.0, 0.0)
        return value.detach()[::dim], gradient, (hessian + hessian.mT) / 2

    def _in_parts(
        self,
        u: Tensor,
        run: Callable[[Tensor], Sequence[Tensor]],
        copies: int = 1,
    ) -> list[Tensor]:
        size = max(1, self.most // copies)
        found = [self._try(part, run) for part in u.split(size)]
        return [torch.cat(column) for column in zip(*found, strict=True)]

    def _try(
        self, u: Tensor, run: Callable[[Tensor], Sequence[Tensor]]
    ) -> Sequence[Tensor]:
        """Runs half of the points at a time if a matrix of some point cannot be factorised."""
        try:
            return run(u)
        except torch.linalg.LinAlgError:
            if len(u) > 1:
                halves = [self._try(half, run) for half in u.chunk(2)]
                return [torch.cat(column) for column in zip(*halves, strict=True)]
        nothing = run(torch.zeros_like(u))
        return [
            torch.full_like(nothing[0], -math.inf),
            *map(torch.zeros_like, nothing[1:]),
        ]


def _lean(function: Callable[..., list[Tensor]], inputs: Sequence[Tensor]) -> Any:
    """``graph`` without the operations whose results are not used, such as the guide's density."""
    made = graph(function, inputs)
    made.graph.eliminate_dead_code()
    made.recompile()
    return made
