"""The β-VAE: a constant weight of the rate, or a target for it.

    loss = distortion + β · rate.

β > 1 asks for a code of fewer nats, whose dimensions tend to align with independent factors of the
data; β < 1 for a better reconstruction. The minimum over all models traces the rate–distortion
curve, whose slope is −β. Only β = 1 gives a bound. With a capacity C the rate has a target,

    loss = distortion + β · |rate − C(step)|,    C(step) = capacity · min(1, step / steps),

rate and C in nats per datum: the code may grow by a few nats at a time, so that each dimension is
learnt after the others are in use. β is then large, such as 1,000 in the paper.

The rate is read off the loss: with a factor w on the log-densities of all latents the loss is
distortion + w · rate, so that the rate is its derivative by w, with gradients of its own.

References: beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework,
Higgins et al., 2017; Understanding Disentangling in β-VAE, Burgess et al., 2018.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.infer import Trace_ELBO

from vilvm._runtime.argument_checks import check_number, check_positive
from vilvm.objectives._weighted_rate import RateWeight, WeightedRate

__all__ = ["BetaELBO"]


class BetaELBO(WeightedRate):
    """A Pyro ELBO whose rate has a constant weight, or a target.

    Arguments:
        beta: the weight of the rate, or of its distance from the target.
        objective: the ELBO; ``Trace_ELBO()`` by default. ``TraceMeanField_ELBO()`` takes the rate
            in closed form where it is known.
        capacity: the final target of the rate, in nats per datum; no target by default.
        capacity_steps: steps in which the target rises from 0 to `capacity`.
        sites: the latents whose rate is weighted; all by default.

    Raises:
        ValueError: a number is out of range, the objective is not a sum of rate and distortion,
            or, in use, a name in `sites` is not that of a latent.

    References: beta-VAE, Higgins et al., 2017; Understanding Disentangling in β-VAE, Burgess et
    al., 2018.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.objectives import BetaELBO
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(20, 6)
        >>> objective = BetaELBO(beta=10.0, capacity=1.0, capacity_steps=10)
        >>> vilvm.fit(lvm, x, steps=20, objective=objective).stopped, objective.target
        ('finished', 1.0)
    """

    def __init__(
        self,
        beta: float,
        objective: Any = None,
        *,
        capacity: float | None = None,
        capacity_steps: int = 1,
        sites: Sequence[str] | None = None,
    ):
        super().__init__(Trace_ELBO() if objective is None else objective, sites)
        self.beta = check_positive("BetaELBO: beta", beta)
        self.capacity = capacity
        if capacity is not None:
            self.capacity = check_positive("BetaELBO: capacity", capacity, zero=True)
        self.capacity_steps = check_number("BetaELBO: capacity_steps", capacity_steps)

    @property
    def target(self) -> float | None:
        """C at the present step, in nats per datum; None without a capacity."""
        if self.capacity is None:
            return None
        return self.capacity * min(1.0, self.step / self.capacity_steps)

    def numbers(self) -> tuple[float, ...]:
        """C, which changes from step to step and is an input of a compiled step."""
        return () if self.target is None else (self.target,)

    def _weighted(
        self, run: Callable[[RateWeight], Any], numbers: Sequence[Any]
    ) -> Any:
        if not numbers:
            return run(RateWeight(self.beta, self.sites))
        factor = torch.ones((), requires_grad=True)
        weight = RateWeight(factor, self.sites)
        loss = run(weight)
        (rate,) = torch.autograd.grad(loss, factor, create_graph=True)
        return loss - rate + self.beta * (rate - weight.num_data * numbers[0]).abs()
