"""Hamiltonian Monte Carlo, in parallel over chains and data, on a geometric path from a base
density to a target.

At inverse temperature β the chain leaves

    log f_β(u) = (1 − β) log p₀(u) + β log p(x, u)

invariant. A transition draws a momentum, takes L leapfrog steps, and accepts their end by the
Metropolis rule. Positions are measured in units of the base density's standard deviation, datum by
datum and dimension by dimension, so that one step size serves all of them.

References: MCMC using Hamiltonian dynamics, Radford M. Neal, 2011.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vilvm.weights.log_joint import LogJoint

__all__ = ["State", "start", "transition"]

# of the step size, drawn anew for each chain: a fixed length of path can be a period of the motion
_JITTER = 0.2


class State(NamedTuple):
    """Where chains are: u, the two log-densities there, and their gradients; shapes (S, N, D), (S,
    N) and (S, N, D).
    """

    u: Tensor
    base: Tensor
    target: Tensor
    base_gradient: Tensor
    target_gradient: Tensor

    def log_density(self, beta: float) -> Tensor:
        """log f_β, shape (S, N)."""
        return _between(beta, self.base, self.target)

    def gradient(self, beta: float) -> Tensor:
        """Of log f_β, shape (S, N, D)."""
        return _between(beta, self.base_gradient, self.target_gradient)


def _between(beta: float, base: Tensor, target: Tensor) -> Tensor:
    """(1 − β) base + β target; at an end that end alone, for zero times a density's −∞ is not a
    number.
    """
    return base if beta == 0 else target if beta == 1 else (1 - beta) * base + beta * target


def start(joint: LogJoint, u: Tensor) -> State:
    """The state of chains at u."""
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        base, target = joint(u)
        (base_gradient,) = torch.autograd.grad(base.sum(), u, retain_graph=True)
        (target_gradient,) = torch.autograd.grad(target.sum(), u)
    return State(u.detach(), base.detach(), target.detach(), base_gradient, target_gradient)


def transition(
    at: Callable[[Tensor], State],
    state: State,
    beta: float,
    step: Tensor,
    scale: Tensor,
    leapfrog: int,
) -> tuple[State, Tensor]:
    """One transition of every chain, which leaves f_β invariant.

    Arguments:
        at: gives the state of chains at u.
        state: of the chains.
        beta: inverse temperature, from 0 (base) to 1 (target).
        step: step size in units of `scale`, shape (num_data,).
        scale: of each dimension of each datum, shape (num_data, D).
        leapfrog: steps of a trajectory.

    Returns:
        The new state, and the probability with which each chain moved, shape (S, N).
    """
    chains = state.base.shape
    size = step * (
        1 + _JITTER * (2 * torch.rand(chains, device=step.device, dtype=step.dtype) - 1)
    )
    size = size.unsqueeze(-1) * scale
    momentum = torch.randn_like(state.u)  # in units of 1 / scale
    before = state.log_density(beta) - _kinetic(momentum)
    proposal = state
    momentum = momentum + 0.5 * size * state.gradient(beta)
    for i in range(leapfrog):
        proposal = at(proposal.u + size * momentum)
        momentum = momentum + (1.0 if i < leapfrog - 1 else 0.5) * size * proposal.gradient(beta)
    log_ratio = proposal.log_density(beta) - _kinetic(momentum) - before
    # a trajectory that diverged is refused
    probability = log_ratio.clamp(max=0).exp().nan_to_num(0.0, 0.0, 0.0)
    moved = torch.rand_like(probability) < probability
    return State(
        *(
            torch.where(moved if a.dim() == 2 else moved.unsqueeze(-1), a, b)
            for a, b in zip(proposal, state, strict=True)
        )
    ), probability


def _kinetic(momentum: Tensor) -> Tensor:
    return 0.5 * momentum.double().square().sum(-1)
