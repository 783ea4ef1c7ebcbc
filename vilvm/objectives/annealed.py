"""KL warm-up: the rate is weighted by β, which rises from near zero to one.

    loss(step) = distortion + β(step) · rate,
    β(step) = min(1, start + (1 − start) · step / warmup)

so that the decoder learns to use z before the prior attracts q(z | x). At β = 1 the loss is that
of the inner objective; only then is minus the loss its bound. In a model of several latents, the
rate is a sum over them, and β may weight the terms of some: the upper layers of a hierarchy are
those that collapse.

Reference: Generating Sentences from a Continuous Space, Bowman et al., 2016.
"""

from collections.abc import Callable, Sequence
from typing import Any

from vilvm._runtime.argument_checks import check_number, check_positive
from vilvm.objectives._weighted_rate import RateWeight, WeightedRate

__all__ = ["Annealed"]

_SMALLEST = 1e-6  # Pyro's scales must be positive


class Annealed(WeightedRate):
    """A Pyro ELBO of the form rate + distortion under KL warm-up.

    Every call of ``differentiable_loss`` or ``loss_and_grads`` counts one step.

    Arguments:
        objective: the ELBO to anneal.
        warmup: steps until β = 1; ``fit`` warns if training is shorter.
        start: β at the first step.
        sites: the latents that are warmed up; all by default.

    Raises:
        ValueError: `warmup` is below 1, `start` is outside [0, 1], the objective is not a sum of
            rate and distortion, or, in use, a name in `sites` is not that of a latent.

    Reference: Generating Sentences from a Continuous Space, Bowman et al., 2016.

    Examples:
        >>> from pyro.infer import Trace_ELBO
        >>> from vilvm.objectives import Annealed
        >>> Annealed(Trace_ELBO(), warmup=1000).weight
        1e-06
    """

    def __init__(
        self,
        objective: Any,
        warmup: int,
        start: float = 0.0,
        sites: Sequence[str] | None = None,
    ):
        super().__init__(objective, sites)
        self.warmup = check_number("Annealed: warmup", warmup)
        self.start = check_positive("Annealed: start", start, zero=True)
        if self.start > 1:
            raise ValueError(f"Annealed: start must be at most 1; got {self.start}.")

    @property
    def weight(self) -> float:
        """β at the present step."""
        risen = self.start + (1 - self.start) * self.step / self.warmup
        return max(_SMALLEST, min(1.0, risen))

    def numbers(self) -> tuple[float, ...]:
        """β, which changes from step to step and is an input of a compiled step."""
        return (self.weight,)

    def _weighted(
        self, run: Callable[[RateWeight], Any], numbers: Sequence[Any]
    ) -> Any:
        return run(RateWeight(numbers[0], self.sites))
