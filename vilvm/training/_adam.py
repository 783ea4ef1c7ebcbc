"""Adam and AdamW as operations of a graph, on the state that torch's own optimizer keeps.

The numbers that change from step to step (learning rate, bias corrections, options of a parameter
group) are computed on the host in double precision and passed in as a small tensor, so that a
scheduler needs no new graph. A step whose loss or gradient is not finite changes nothing.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vilvm._compile import UntraceableError

__all__ = ["GraphAdam"]

# The numbers of a step that changes nothing, in the order of ``GraphAdam.numbers``.
_STILL = (0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0)


class GraphAdam:
    """Adam and AdamW within a graph, on the state of a torch optimizer.

    Arguments:
        optimizer: Adam or AdamW, with options that ``serves`` accepts.
        parameters: those that the optimizer updates.

    Reference: Adam: A Method for Stochastic Optimization, Kingma and Ba, 2015; Decoupled Weight
    Decay Regularization, Loshchilov and Hutter, 2019.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]):
        self.optimizer = optimizer
        self.group = {
            id(p): i for i, g in enumerate(optimizer.param_groups) for p in g["params"]
        }
        self.device = parameters[0].device
        self.counted = 0  # steps in the optimizer's own state
        self.taken = 0  # further steps, which its state does not count yet
        self.moved: Sequence[Tensor] = ()  # the parameters that these steps moved
        self._first: Tensor | None = None  # the first moment of the first parameter

    @staticmethod
    def serves(optimizer: torch.optim.Optimizer) -> bool:
        """Whether the graph can do the update of `optimizer`."""
        if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
            return False
        variants = ("amsgrad", "maximize", "differentiable")
        return not any(g.get(name) for g in optimizer.param_groups for name in variants)

    def blank(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """The moments before the first step, all zero: first moments, then second moments."""
        return [
            torch.zeros_like(p, memory_format=torch.preserve_format)
            for _ in range(2)
            for p in parameters
        ]

    def moments(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """The optimizer's own moments, in the order of ``blank``; created if there are none."""
        kept = [self.optimizer.state[p] for p in parameters]
        fresh = self.blank(parameters)
        for i, state in enumerate(kept):
            if not state:
                step = torch.tensor(0.0, device=self._step_device(parameters[i]))
                state.update(
                    step=step, exp_avg=fresh[i], exp_avg_sq=fresh[len(kept) + i]
                )
        self._first = kept[0]["exp_avg"]
        return [s[name] for name in ("exp_avg", "exp_avg_sq") for s in kept]

    @property
    def is_reset(self) -> bool:
        """Whether the user has replaced the moments that programs change."""
        held = [s.get("exp_avg") for s in self.optimizer.state.values()]
        return self._first is not None and not any(m is self._first for m in held)

    def _step_device(self, parameter: Tensor) -> torch.device | str:
        """The device on which torch keeps the step count of a parameter."""
        groups = self.optimizer.param_groups
        if parameter.device.type == "cuda" and any(
            g["fused"] or g["capturable"] for g in groups
        ):
            return self.device
        return "cpu"

    @property
    def decays(self) -> tuple[bool, ...]:
        """Whether weights decay, by parameter group; a graph depends on it."""
        return tuple(g["weight_decay"] != 0 for g in self.optimizer.param_groups)

    def count(self, parameters: Sequence[Tensor]) -> None:
        """Reads how many steps the optimizer has counted; waits for a GPU.

        Raises:
            UntraceableError: some of these parameters have taken fewer steps than others, so that
                their bias corrections differ.
        """
        read = parameters[:1]
        if [id(p) for p in parameters] != [id(p) for p in self.moved]:
            self.settle()
            read = parameters
        counts = {int(self.optimizer.state[p].get("step", 0)) for p in read}
        if len(counts) > 1:
            raise UntraceableError(
                "parameters that have taken fewer steps than others, as those that were frozen "
                "for a while"
            )
        self.counted = counts.pop()
        self.moved = parameters

    def numbers(self, count: int = 1, first: int | None = None) -> Tensor:
        """The numbers of some steps with the present options.

        Arguments:
            count: of steps.
            first: the first of them, counted from 1; the next one by default.

        Returns:
            By step and parameter group, shape (count, groups, 8).
        """
        first = self.counted + self.taken + 1 if first is None else first
        groups = [
            self._numbers(group, range(first, first + count))
            for group in self.optimizer.param_groups
        ]
        return torch.stack(groups, 1).to(self.device)

    def _numbers(self, group: dict[str, Any], steps: range) -> Tensor:
        """The numbers of a parameter group at `steps`, counted from 1, shape (steps, 8)."""
        lr, (b1, b2) = float(group["lr"]), map(float, group["betas"])
        decay = float(group["weight_decay"])
        shrink, penalty = (
            (lr * decay, 0.0) if self._is_decoupled(group) else (0.0, decay)
        )
        rest = 1 - b1, b2, 1 - b2, 0.0, float(group["eps"]), shrink, penalty
        found = torch.tensor((0.0, *rest)).repeat(len(steps), 1)
        found[:, 0] = torch.tensor([lr / (1 - b1**step) for step in steps])
        found[:, 4] = torch.tensor([(1 - b2**step) ** -0.5 for step in steps])
        return found

    def settle(self) -> None:
        """Adds the steps taken to the optimizer's own counts."""
        for state in (self.optimizer.state[p] for p in self.moved):
            if state:  # the user may have cleared it
                state["step"] += self.taken
        self.counted = self.counted + self.taken
        self.taken = 0

    def _is_decoupled(self, group: dict[str, Any]) -> bool:
        """Whether weight decay is applied to the weights, and not added to the gradient."""
        return bool(
            group.get(
                "decoupled_weight_decay", type(self.optimizer) is torch.optim.AdamW
            )
        )

    def update(
        self,
        moved: Sequence[Tensor],
        parameters: Sequence[Tensor],
        grads: Sequence[Tensor],
        moments: Sequence[Tensor],
        numbers: Tensor,
        *,
        good: Tensor,
    ) -> None:
        """Updates parameters and moments in place.

        Arguments:
            moved: the parameters that have a gradient, as the optimizer holds them.
            parameters: the same, as inputs of the graph.
            grads: their gradients.
            moments: their moments, in the order of ``blank``.
            numbers: from ``numbers``.
            good: whether the step is finite, a boolean scalar; otherwise nothing changes.
        """
        count = len(parameters)
        decays = self.decays
        for i, (p, grad) in enumerate(zip(parameters, grads, strict=True)):
            mean = moments[i]
            square = moments[count + i]
            group = self.group[id(moved[i])]
            row = numbers[group].to(grad.dtype).unbind()
            # `good` selects these numbers and the gradient (0 · NaN is NaN), so that each element
            # needs one selection only.
            step, fresh, b2, fresh2, correction, eps, shrink, penalty = (
                torch.where(good, *n) for n in zip(row, _STILL, strict=True)
            )
            grad = torch.where(good, grad, 0.0)
            if decays[group]:
                grad = grad + penalty * p
            new_mean = mean + fresh * (grad - mean)
            new_square = b2 * square + fresh2 * (grad * grad)
            shrunk = p - shrink * p if decays[group] else p
            new = shrunk - step * new_mean / (new_square.sqrt() * correction + eps)
            for old, value in ((p, new), (mean, new_mean), (square, new_square)):
                old.copy_(value)

    def gradients(
        self, moved: Sequence[Tensor], moments: Sequence[Tensor], clipped: float
    ) -> dict[int, Tensor]:
        """The gradients of the first step, computed from the first moments after it.

        Arguments:
            moved: the parameters.
            moments: after the step, in the order of ``blank``.
            clipped: the factor by which the gradients were clipped.

        Returns:
            The gradient before clipping, by the id of the parameter.
        """
        fresh = [1 - float(g["betas"][0]) for g in self.optimizer.param_groups]
        found = {}
        for i, p in enumerate(moved):
            group = self.optimizer.param_groups[self.group[id(p)]]
            penalty = 0.0 if self._is_decoupled(group) else float(group["weight_decay"])
            found[id(p)] = (
                moments[i] / fresh[self.group[id(p)]] - penalty * p.detach()
            ) / clipped
        return found
