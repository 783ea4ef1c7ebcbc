"""Adam and AdamW as operations of a graph, on the state that torch's own optimizer keeps.

What changes from step to step, learning rate, bias corrections and all the rest of a parameter group, is computed by the host in double precision and handed in as a
small tensor, so that a scheduler needs no new graph. A step whose loss or gradient is not finite moves nothing.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["GraphAdam"]


class GraphAdam:
    """Adam and AdamW within a graph, on the state of a torch optimizer.

    Reference: Adam: A Method for Stochastic Optimization, Kingma and Ba, 2015; Decoupled Weight Decay Regularization, Loshchilov and Hutter,
    2019.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]):
        self.optimizer = optimizer
        self.group = {id(p): i for i, g in enumerate(optimizer.param_groups) for p in g["params"]}
        self.taken = 0  # steps that the optimizer's own state does not show yet

    @staticmethod
    def serves(optimizer: torch.optim.Optimizer) -> bool:
        """Whether this is the update of `optimizer`."""
        return type(optimizer) in (torch.optim.Adam, torch.optim.AdamW) and not any(
            g["amsgrad"] or g["maximize"] or g.get("differentiable") for g in optimizer.param_groups
        )

    def blank(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """State as before the first step: first moments, second moments, and the numbers of that step."""
        moments = [torch.zeros_like(p, memory_format=torch.preserve_format) for _ in range(2) for p in parameters]
        return [*moments, self._numbers(1)]

    def state(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """The optimizer's own state, in the same order."""
        kept = [self.optimizer.state[p] for p in parameters]
        for p, state in zip(parameters, kept, strict=True):
            if not state:
                zeros = [torch.zeros_like(p, memory_format=torch.preserve_format) for _ in range(2)]
                state.update(step=torch.tensor(0.0), exp_avg=zeros[0], exp_avg_sq=zeros[1])
        step = int(kept[0]["step"]) + self.taken + 1
        return [*(s["exp_avg"] for s in kept), *(s["exp_avg_sq"] for s in kept), self._numbers(step)]

    def settle(self) -> None:
        """Adds the steps taken to those that the optimizer has counted."""
        for state in self.optimizer.state.values():
            state["step"] += self.taken
        self.taken = 0

    def _is_decoupled(self, group: dict[str, Any]) -> bool:
        """Whether weights decay by themselves, and not through the gradient."""
        return bool(group.get("decoupled_weight_decay", type(self.optimizer) is torch.optim.AdamW))

    def _numbers(self, step: int) -> Tensor:
        """What changes from step to step, by group of parameters: shape (groups, 7)."""
        rows = []
        for group in self.optimizer.param_groups:
            lr, (b1, b2) = float(group["lr"]), map(float, group["betas"])
            decay = float(group["weight_decay"])
            shrink, penalty = (lr * decay, 0.0) if self._is_decoupled(group) else (0.0, decay)
            rows.append((lr / (1 - b1**step), 1 - b1, b2, (1 - b2**step) ** -0.5, float(group["eps"]), shrink, penalty))
        return torch.tensor(rows)

    def update(
        self, moved: Sequence[Tensor], parameters: Sequence[Tensor], grads: Sequence[Tensor], state: Sequence[Tensor], good: Tensor
    ) -> None:
        """Moves parameters and state in place, where all is finite."""
        count = len(parameters)
        decays = [g["weight_decay"] != 0 for g in self.optimizer.param_groups]
        for i, (p, grad) in enumerate(zip(parameters, grads, strict=True)):
            mean, square, group = state[i], state[count + i], self.group[id(moved[i])]
            step, fresh, b2, correction, eps, shrink, penalty = state[-1][group].unbind()
            if decays[group]:
                grad = grad + penalty * p
            new_mean = torch.lerp(mean, grad, fresh.to(grad.dtype))
            new_square = b2 * square + (1 - b2) * grad * grad
            new = (p - shrink * p if decays[group] else p) - step * new_mean / (new_square.sqrt() * correction + eps)
            for old, value in ((p, new), (mean, new_mean), (square, new_square)):
                old.copy_(torch.where(good, value, old))

    def gradients(self, moved: Sequence[Tensor], state: Sequence[Tensor], clipped: float) -> dict[int, Tensor]:
        """The gradients of the first step, read off the first moments after it."""
        fresh = [1 - float(g["betas"][0]) for g in self.optimizer.param_groups]
        found = {}
        for i, p in enumerate(moved):
            group = self.optimizer.param_groups[self.group[id(p)]]
            penalty = 0.0 if self._is_decoupled(group) else float(group["weight_decay"])
            found[id(p)] = (state[i] / fresh[self.group[id(p)]] - penalty * p.detach()) / clipped
        return found
