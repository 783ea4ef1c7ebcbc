"""Hamiltonian Monte Carlo with many chains at once, in coordinates of an approximation.

The chains move in the ε of a map u(ε), in which the posterior is nearly standard normal, so that
one step size serves all dimensions ("neural transport"). All chains of a transition take the same
number of leapfrog steps. Step size and trajectory length are adapted across chains: the step size
to the mean acceptance probability, the length h by ascent of the ChEES criterion

    E[ (|ε' − m|² − |ε − m|²)² ] / 4,

the change of the squared distance from the mean, whose gradient is estimated by the end points.

References: An Adaptive-MCMC Scheme for Setting Trajectory Lengths in Hamiltonian Monte Carlo,
Hoffman, Radul and Sountsov, 2021; NeuTra-lizing Bad Geometry in Hamiltonian Monte Carlo Using
Neural Transport, Hoffman et al., 2019.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vilvm.inference._approximations import Approximation, Gaussian, composed
from vilvm.inference._target import Target

__all__ = ["Sampler"]

_ACCEPTANCE = 0.8
_MOST_STEPS = 60  # leapfrog steps of a transition
_RATE = 0.05  # of the ascent of the log length
_PENALTY = 30.0  # of the share of divergent chains, in acceptance probability
_DIVERGED = 1000.0  # error of the energy, in nats


class _State(NamedTuple):
    """Positions with their log-densities in ε and gradients; shapes (C, D), (C,), (C, D)."""

    eps: Tensor
    value: Tensor
    gradient: Tensor


class Sampler:
    """Chains of HMC and what they have adapted.

    Arguments:
        target: the log-density.
        map_: u(ε).
        u: positions of the C chains, shape (C, D).
    """

    def __init__(self, target: Target, map_: Approximation, u: Tensor):
        self.target, self.map_ = target, map_
        with torch.no_grad():
            self.state = self._at(map_.inverse(u))
        dim = u.shape[1]
        self.log_step = math.log(0.8 * dim**-0.25)
        self.log_length = math.log(1.0)
        self._mean_log_step = self.log_step
        self._moments = [0.0, 0.0]  # of Adam, of the gradient of the log length
        self._count = 0
        self.divergences = 0

    def _at(self, eps: Tensor) -> _State:
        return _State(eps.detach(), *self.target.pulled_back(self.map_, eps))

    @property
    def u(self) -> Tensor:
        """The positions, shape (C, D)."""
        with torch.no_grad():
            return self.map_(self.state.eps)[0]

    @property
    def leapfrogs(self) -> float:
        """Leapfrog steps of a mean transition."""
        return math.exp(self.log_length - self._mean_log_step)

    def transition(self, adapt: bool) -> float:
        """Moves every chain once, and returns the mean acceptance probability.

        Arguments:
            adapt: whether to adapt step size and length.
        """
        self._count += 1
        before = self.state
        share = 2 * _halton(self._count)  # of the length, 1 on average
        step = math.exp(self.log_step if adapt else self._mean_log_step)
        length = math.exp(self.log_length)
        num = min(_MOST_STEPS, max(1, math.ceil(share * length / step)))
        momentum = torch.randn_like(before.eps)
        energy = before.value - momentum.square().sum(1) / 2
        at = before
        momentum = momentum + step / 2 * at.gradient
        for fraction in [1.0] * (num - 1) + [0.5]:
            at = self._at(at.eps + step * momentum)
            momentum = momentum + fraction * step * at.gradient
        change = at.value - momentum.square().sum(1) / 2 - energy
        diverged = int((~(change > -_DIVERGED)).sum())
        self.divergences += diverged
        accepted = change.clamp(max=0).exp().nan_to_num(0.0, 0.0, 0.0)
        if adapt:
            self._adapt_length(before.eps, at.eps, momentum, accepted, share)
            self._adapt_step(accepted.mean().item(), diverged / len(accepted))
        moved = torch.rand_like(accepted) < accepted
        self.state = _State(
            *(
                torch.where(moved.reshape(-1, *[1] * (new.dim() - 1)), new, old)
                for new, old in zip(at, before, strict=True)
            )
        )
        return accepted.mean().item()

    def _adapt_step(self, accepted: float, diverged: float) -> None:
        # divergent transitions count more, since they show where the step is too long
        rate = 2.0 / math.sqrt(self._count + 10)
        gap = accepted - _PENALTY * diverged - _ACCEPTANCE
        self.log_step += rate * max(gap, -0.5)
        weight = max(0.1, 1 / (self._count + 1))
        self._mean_log_step += weight * (self.log_step - self._mean_log_step)

    def _adapt_length(
        self, eps: Tensor, end: Tensor, momentum: Tensor, accepted: Tensor, share: float
    ) -> None:
        total = accepted.sum()
        if not total > 0:
            return
        mean = (accepted[:, None] * end).sum(0) / total
        from_mean, end_from_mean = eps - eps.mean(0), end - mean
        change = end_from_mean.square().sum(1) - from_mean.square().sum(1)
        per_chain = share * change * (end_from_mean * momentum).sum(1)
        slope = (accepted * per_chain).nan_to_num(0.0, 0.0, 0.0).sum() / total
        slope = slope.item() * math.exp(self.log_length)
        first, second = self._moments
        self._moments = [0.5 * first + 0.5 * slope, 0.95 * second + 0.05 * slope**2]
        count = self._count
        second = self._moments[1] / (1 - 0.95**count)
        self.log_length += _RATE * self._moments[0] / (math.sqrt(second) + 1e-12)
        low, high = self.log_step, self.log_step + math.log(_MOST_STEPS / 2)
        self.log_length = min(max(self.log_length, low), high)

    def run(
        self, num: int, adapt: bool, is_over: Callable[[], bool]
    ) -> tuple[Tensor, float]:
        """The positions u after each of `num` transitions, (T, C, D), and the mean acceptance."""
        kept, rates = [], []
        for _ in range(num):
            rates.append(self.transition(adapt))
            kept.append(self.u)
            if is_over():
                break
        return torch.stack(kept), sum(rates) / len(rates)

    def rewhiten(self, u: Tensor) -> None:
        """Moves in coordinates in which draws u, shape (S, D), have covariance I."""
        with torch.no_grad():
            eps = self.map_.inverse(u)
            sd = eps.std(0)
            if not bool((sd > 0).all()):
                return  # all chains started at one draw and have not moved
            correlation = (eps / sd).T.cov().reshape(len(sd), len(sd))
            # shrunk, since successive draws of a chain are alike
            share = len(u) / (len(u) + 5 * u.shape[1])
            correlation *= share
            correlation.diagonal().fill_(1.0)
            scale = sd[:, None] * torch.linalg.cholesky(correlation)
            loc = eps.mean(0)
            position = self.u
            self.map_ = composed(Gaussian(loc, scale), self.map_)
            self.state = self._at(self.map_.inverse(position))


def _halton(index: int) -> float:
    """The van der Corput sequence in base 2, uniform on (0, 1)."""
    result, part = 0.0, 0.5
    while index:
        result += part * (index & 1)
        index, part = index >> 1, part / 2
    return result
