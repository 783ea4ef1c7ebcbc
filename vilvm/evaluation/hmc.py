"""Hamiltonian Monte Carlo along a geometric path of densities, in parallel over chains and data.

At inverse temperature β the chain leaves

    log f_β(u) = (1 − β) log p₀(u) + β log p(x, u)

invariant. A transition draws a momentum, takes L leapfrog steps, and accepts their end by the
Metropolis rule. Positions are in units of the base density's standard deviation in each dimension
of each datum, so that one step size serves all of them.

Reference: MCMC using Hamiltonian dynamics, Radford M. Neal, 2011.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vilvm.weights.log_joint import LogJoint

__all__ = ["State", "start", "transition"]

# Relative range of step sizes, because a fixed path length may be a period of the motion.
_JITTER = 0.2


class State(NamedTuple):
    """Positions of chains, with the two log-densities there and their gradients.

    Arguments:
        u: positions, shape (S, N, D).
        base: log p₀(u), shape (S, N).
        target: log p(x, u), shape (S, N).
        base_gradient: gradient of log p₀, shape (S, N, D).
        target_gradient: gradient of log p(x, ·), shape (S, N, D).

    Examples:
        >>> import torch
        >>> from vilvm.evaluation.hmc import State
        >>> u, zero = torch.zeros(1, 1, 2), torch.zeros(1, 1)
        >>> State(u, zero, zero + 4, u, u + 1).log_density(0.5)
        tensor([[2.]])
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
        """The gradient of log f_β, shape (S, N, D)."""
        return _between(beta, self.base_gradient, self.target_gradient)


def _between(beta: float, base: Tensor, target: Tensor) -> Tensor:
    """(1 − β) base + β target, where 0 · (−∞) is 0."""
    if beta == 0:
        return base
    if beta == 1:
        return target
    return (1 - beta) * base + beta * target


def start(joint: LogJoint, u: Tensor) -> State:
    """The state of chains at given positions.

    Arguments:
        joint: the two densities.
        u: positions, shape (S, N, D).

    Returns:
        State, detached.

    Examples:
        >>> import torch
        >>> from vilvm.evaluation.hmc import start
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.weights.log_joint import LogJoint
        >>> joint = LogJoint(PPCA(data_dim=3, latent_dim=2), torch.zeros(5, 3), "prior")
        >>> start(joint, joint.draw(4)).target_gradient.shape
        torch.Size([4, 5, 2])
    """
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        base, target = joint(u)
        (base_gradient,) = torch.autograd.grad(base.sum(), u, retain_graph=True)
        (target_gradient,) = torch.autograd.grad(target.sum(), u)
    return State(
        u.detach(), base.detach(), target.detach(), base_gradient, target_gradient
    )


def transition(
    at: Callable[[Tensor], State],
    state: State,
    beta: float,
    step: Tensor,
    *,
    scale: Tensor,
    leapfrog: int,
) -> tuple[State, Tensor]:
    """One transition of every chain, which leaves f_β invariant.

    Arguments:
        at: a function from positions u to their state.
        state: the current state.
        beta: inverse temperature, from 0 (base) to 1 (target).
        step: step size in units of `scale`, shape (num_data,).
        scale: unit of each dimension of each datum, shape (num_data, D).
        leapfrog: steps of a trajectory.

    Returns:
        The new state, and the acceptance probability of each chain, shape (S, N).

    Examples:
        >>> from functools import partial
        >>> import torch
        >>> from vilvm.evaluation.hmc import start, transition
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.weights.log_joint import LogJoint
        >>> joint = LogJoint(PPCA(data_dim=3, latent_dim=2), torch.zeros(5, 3), "prior")
        >>> at, step, scale = partial(start, joint), torch.full((5,), 0.1), torch.ones(5, 2)
        >>> state, accepted = transition(at, at(joint.draw(4)), 1.0, step, scale=scale, leapfrog=3)
        >>> state.u.shape, accepted.shape
        (torch.Size([4, 5, 2]), torch.Size([4, 5]))
    """
    uniform = torch.rand(state.base.shape, device=step.device, dtype=step.dtype)
    size = (step * (1 + _JITTER * (2 * uniform - 1))).unsqueeze(-1) * scale
    momentum = torch.randn_like(state.u)  # in units of 1 / scale
    before = state.log_density(beta) - _kinetic(momentum)
    proposal = state
    momentum = momentum + 0.5 * size * state.gradient(beta)
    for fraction in [1.0] * (leapfrog - 1) + [0.5]:
        proposal = at(proposal.u + size * momentum)
        momentum = momentum + fraction * size * proposal.gradient(beta)
    log_ratio = proposal.log_density(beta) - _kinetic(momentum) - before
    # A trajectory that diverges is rejected.
    probability = log_ratio.clamp(max=0).exp().nan_to_num(0.0, 0.0, 0.0)
    moved = torch.rand_like(probability) < probability
    found = [_where(moved, new, old) for new, old in zip(proposal, state, strict=True)]
    return State(*found), probability


def _where(moved: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` for chains that moved, `old` for others; shape (S, N) or (S, N, D)."""
    return torch.where(moved.reshape(*moved.shape, *[1] * (new.dim() - 2)), new, old)


def _kinetic(momentum: Tensor) -> Tensor:
    return 0.5 * momentum.double().square().sum(-1)
