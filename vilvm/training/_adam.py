"""Adam and AdamW as operations of a graph, on the state that torch's own optimizer keeps.

What changes from step to step, learning rate, bias corrections and all the rest of a parameter
group, is computed by the host in double precision and handed in as a small tensor, so that a
scheduler needs no new graph. A step whose loss or gradient is not finite moves nothing.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vilvm._compile import UntraceableError

__all__ = ["GraphAdam"]

_STILL = (0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0)  # the numbers of a step that moves nothing


class GraphAdam:
    """Adam and AdamW within a graph, on the state of a torch optimizer.

    Reference: Adam: A Method for Stochastic Optimization, Kingma and Ba, 2015; Decoupled Weight
    Decay Regularization, Loshchilov and Hutter, 2019.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]):
        self.optimizer = optimizer
        self.group = {id(p): i for i, g in enumerate(optimizer.param_groups) for p in g["params"]}
        self.device = parameters[0].device
        self.counted = 0  # steps that the optimizer's own state shows
        self.taken = 0  # and those that it does not show yet,
        self.moved: Sequence[Tensor] = ()  # of these parameters
        self._first: Tensor | None = None  # the moment of the first of them, within a program

    @staticmethod
    def serves(optimizer: torch.optim.Optimizer) -> bool:
        """Whether this is the update of `optimizer`."""
        return type(optimizer) in (torch.optim.Adam, torch.optim.AdamW) and not any(
            g["amsgrad"] or g["maximize"] or g.get("differentiable")
            for g in optimizer.param_groups
        )

    def blank(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """First and second moments as before the first step."""
        return [
            torch.zeros_like(p, memory_format=torch.preserve_format)
            for _ in range(2)
            for p in parameters
        ]

    def moments(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """The optimizer's own, in the same order."""
        kept = [self.optimizer.state[p] for p in parameters]
        fresh = self.blank(parameters)
        for i, state in enumerate(kept):
            if not state:
                # As torch makes it, which may go on with it.
                on_device = parameters[i].device.type == "cuda" and any(
                    g["fused"] or g["capturable"] for g in self.optimizer.param_groups
                )
                step = torch.tensor(0.0, device=self.device if on_device else "cpu")
                state.update(step=step, exp_avg=fresh[i], exp_avg_sq=fresh[len(kept) + i])
        self._first = kept[0]["exp_avg"]
        return [s[name] for name in ("exp_avg", "exp_avg_sq") for s in kept]

    @property
    def is_reset(self) -> bool:
        """Whether the user has put other moments into the optimizer than those that programs move."""
        held = [s.get("exp_avg") for s in self.optimizer.state.values()]
        return self._first is not None and not any(m is self._first for m in held)

    @property
    def decays(self) -> tuple[bool, ...]:
        """Of every group, whether its weights decay, which is part of a graph."""
        return tuple(g["weight_decay"] != 0 for g in self.optimizer.param_groups)

    def count(self, parameters: Sequence[Tensor]) -> None:
        """Looks up how many steps the optimizer has counted, for which a GPU has to be waited for.

        Raises:
            UntraceableError: some of these parameters have taken fewer steps than others, so that
                their corrections differ.
        """
        first, same = parameters[:1], [id(p) for p in parameters] == [id(p) for p in self.moved]
        if not same:
            self.settle()
        counts = {
            int(self.optimizer.state[p].get("step", 0)) for p in (first if same else parameters)
        }
        if len(counts) > 1:
            raise UntraceableError(
                "parameters that have taken fewer steps than others, as those that were frozen "
                "for a while"
            )
        self.counted, self.moved = counts.pop(), parameters

    def numbers(self, step: int | None = None) -> Tensor:
        """What changes from step to step, for the next one or another, counted from 1; by group of
        parameters: shape (groups, 8).
        """
        step = self.counted + self.taken + 1 if step is None else step
        rows = []
        for group in self.optimizer.param_groups:
            lr, (b1, b2) = float(group["lr"]), map(float, group["betas"])
            decay = float(group["weight_decay"])
            shrink, penalty = (lr * decay, 0.0) if self._is_decoupled(group) else (0.0, decay)
            rows.append(
                (
                    lr / (1 - b1**step),
                    1 - b1,
                    b2,
                    1 - b2,
                    (1 - b2**step) ** -0.5,
                    float(group["eps"]),
                    shrink,
                    penalty,
                )
            )
        return torch.tensor(rows, device=self.device)

    def settle(self) -> None:
        """Adds the steps taken to those that the optimizer has counted."""
        for state in (self.optimizer.state[p] for p in self.moved):
            if state:  # the user may have cleared it
                state["step"] += self.taken
        self.counted, self.taken = self.counted + self.taken, 0

    def _is_decoupled(self, group: dict[str, Any]) -> bool:
        """Whether weights decay by themselves, and not through the gradient."""
        return bool(group.get("decoupled_weight_decay", type(self.optimizer) is torch.optim.AdamW))

    def update(
        self,
        moved: Sequence[Tensor],
        parameters: Sequence[Tensor],
        grads: Sequence[Tensor],
        moments: Sequence[Tensor],
        numbers: Tensor,
        good: Tensor,
    ) -> None:
        """Moves parameters and moments in place, where all is `good`."""
        count = len(parameters)
        decays = self.decays
        for i, (p, grad) in enumerate(zip(parameters, grads, strict=True)):
            mean, square, group = moments[i], moments[count + i], self.group[id(moved[i])]
            row = numbers[group].to(grad.dtype).unbind()
            # So that one choice an element is enough: of the gradient, for 0 · NaN is NaN.
            step, fresh, b2, fresh2, correction, eps, shrink, penalty = (
                torch.where(good, *n) for n in zip(row, _STILL, strict=True)
            )
            grad = torch.where(good, grad, 0.0)
            if decays[group]:
                grad = grad + penalty * p
            new_mean = mean + fresh * (grad - mean)
            new_square = b2 * square + fresh2 * (grad * grad)
            new = (p - shrink * p if decays[group] else p) - step * new_mean / (
                new_square.sqrt() * correction + eps
            )
            for old, value in ((p, new), (mean, new_mean), (square, new_square)):
                old.copy_(value)

    def gradients(
        self, moved: Sequence[Tensor], moments: Sequence[Tensor], clipped: float
    ) -> dict[int, Tensor]:
        """The gradients of the first step, read off the first moments after it."""
        fresh = [1 - float(g["betas"][0]) for g in self.optimizer.param_groups]
        found = {}
        for i, p in enumerate(moved):
            group = self.optimizer.param_groups[self.group[id(p)]]
            penalty = 0.0 if self._is_decoupled(group) else float(group["weight_decay"])
            found[id(p)] = (moments[i] / fresh[self.group[id(p)]] - penalty * p.detach()) / clipped
        return found
