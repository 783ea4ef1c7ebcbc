"""The chains of annealed importance sampling on one batch, in both directions.

The step size of every datum and temperature is found in a pilot run of other chains, so that no
step size depends on the chain that uses it.
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vilvm._compile import Compile, worth_compiling
from vilvm._runtime.progress import ProgressBar
from vilvm.evaluation.density_gradients import DensityGradients
from vilvm.evaluation.estimates import Estimate, log_mean_error
from vilvm.evaluation.hmc import State, transition
from vilvm.evaluation.schedule import Schedule
from vilvm.lvm import ContractError, LatentVariableModel
from vilvm.weights.log_joint import LogJoint

__all__ = [
    "Chains",
    "chains_in_a_pass",
    "density_gradients",
    "effective_chains",
    "log_mean",
]

_CHAINS_CPU, _CHAINS_CUDA = 8_000, 200_000  # chains per pass
_PILOT_START, _PILOT_LEAST = (
    30,
    150,
)  # transitions of the pilot: at β = 0, and at least in all
_PILOT_DRAWS = 64  # draws that give the scale of positions
_GAIN = 0.15  # step of the adaptation of the log step size
_WORTH_COMPILING = 5000  # gradients above which compilation saves time


class Chains:
    """Chains for one batch: the pilot that finds their step sizes, and the two directions.

    Arguments:
        lvm: the model and guide.
        batch: the argument of model and guide.
        schedule: the schedule of the chains.
        bar: progress bar, which advances by one per temperature.
        gradients: computes densities and gradients; eagerly by default.
    """

    def __init__(
        self,
        lvm: LatentVariableModel,
        batch: Any,
        schedule: Schedule,
        bar: ProgressBar,
        gradients: DensityGradients | None = None,
    ):
        self.joint = LogJoint(lvm, batch, schedule.base)
        self.schedule, self.bar = schedule, bar
        self.at = partial(gradients or DensityGradients(compile=False), self.joint)
        self.betas = schedule.betas()
        spread = self.joint.draw(_PILOT_DRAWS).std(0)
        self.scale = torch.where(spread > 0, spread, torch.ones_like(spread))
        self.steps = self._pilot()

    def forward(self) -> tuple[Tensor, Tensor]:
        """Runs chains from the base to the posterior.

        Returns:
            log w of every chain and datum, float64, shape (K, N); and the mean acceptance by
            temperature, shape (T − 1,).
        """
        state = self.at(self.joint.draw(self.schedule.num_chains))
        log_w = torch.zeros_like(state.base)
        accepted = torch.empty(
            len(self.betas) - 2, device=log_w.device, dtype=log_w.dtype
        )
        for t in range(1, len(self.betas)):
            log_w += (self.betas[t] - self.betas[t - 1]) * (state.target - state.base)
            if t < len(self.betas) - 1:
                state, probability = self._move(state, t)
                accepted[t - 1] = probability.mean()
            self.bar.advance()
        self._check(log_w)
        return log_w, accepted

    def backward(self, u: Tensor) -> Tensor:
        """Runs chains from a draw of the posterior to the base.

        Arguments:
            u: an exact posterior draw, shape (1, N, D), where all chains start.

        Returns:
            log w' of every chain and datum, float64, shape (K, N).
        """
        state = self.at(u.expand(self.schedule.num_chains, *u.shape[1:]))
        log_w = torch.zeros_like(state.base)
        for t in range(len(self.betas) - 1, 0, -1):
            log_w += (self.betas[t - 1] - self.betas[t]) * (state.target - state.base)
            if t > 1:
                state, _ = self._move(state, t - 1)
            self.bar.advance()
        self._check(log_w)
        return log_w

    def _move(self, state: State, t: int) -> tuple[State, Tensor]:
        return self._transition(state, self.betas[t], self.steps[t])

    def _transition(
        self, state: State, beta: float, step: Tensor
    ) -> tuple[State, Tensor]:
        return transition(
            self.at,
            state,
            beta,
            step,
            scale=self.scale,
            leapfrog=self.schedule.leapfrog,
        )

    def _pilot(self) -> list[Tensor]:
        """Step sizes by temperature, each of shape (num_data,), from chains used only for this."""
        state = self.at(self.joint.draw(max(4, self.schedule.num_chains // 4)))
        num_data, dimensions = self.scale.shape
        first = math.log(0.5 * dimensions**-0.25)
        log_step = torch.full(
            (num_data,), first, device=state.u.device, dtype=state.u.dtype
        )
        # Fewer temperatures are further apart, so the step size needs more transitions at each.
        repeats = [max(1, _PILOT_LEAST // len(self.betas))] * (len(self.betas) - 1)
        repeats[0] = _PILOT_START
        steps = []
        for beta, count in zip(self.betas[:-1], repeats, strict=True):
            for _ in range(count):
                state, probability = self._transition(state, beta, log_step.exp())
                excess = probability.mean(0) - self.schedule.acceptance
                log_step = log_step + _GAIN * excess.to(log_step)
            steps.append(log_step.exp())
        return steps

    def _check(self, log_w: Tensor) -> None:
        if bool(torch.isnan(log_w).any()):
            where = torch.isnan(log_w).any(0).nonzero()[0].item()
            raise ContractError(
                f"ais: the log-density of {type(self.joint.lvm).__name__} is NaN for datum "
                f"{where} of the batch at a draw from the {self.schedule.base}; look for a scale "
                "that reaches zero, or start from the other base (base=...)."
            )


def density_gradients(
    schedule: Schedule, runs: int, compile: Compile
) -> DensityGradients:
    """Densities and gradients for `runs` runs of chains, compiled if it saves time."""
    # Each run has a pilot of about its own length.
    count = 2 * runs * schedule.num_temperatures * schedule.leapfrog
    return DensityGradients(worth_compiling(compile, count, _WORTH_COMPILING))


def chains_in_a_pass(device: torch.device) -> int:
    """How many chains, over all data together, keep a device busy."""
    return _CHAINS_CUDA if device.type == "cuda" else _CHAINS_CPU


def log_mean(log_w: Tensor) -> Estimate:
    """log (1/K) Σ w of every datum, with the standard error of the delta method."""
    num = len(log_w)
    errors = log_mean_error(effective_chains(log_w), num)
    return Estimate((log_w.logsumexp(0) - math.log(num)).cpu(), errors.cpu())


def effective_chains(log_w: Tensor) -> Tensor:
    """Effective sample size of the weights of every datum, from (K, N) to (N,)."""
    return (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp().nan_to_num(0.0)
