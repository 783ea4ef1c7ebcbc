"""KL warm-up: the rate is weighted by β, which rises from near zero to one.

    loss(step) = distortion + β(step) · rate,    β(step) = min(1, start + (1 − start) · step / warmup)

so that the decoder learns to use z before the prior pulls q(z | x) towards itself. At β = 1 this
is the objective inside, whose bound alone is a bound.

Reference: Generating Sentences from a Continuous Space, Bowman et al., 2016.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyro.infer import ELBO, TraceEnum_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_positive

__all__ = ["Annealed"]

_SMALLEST = 1e-6  # Pyro's scales must be positive


class _ScaleLatents(Messenger):
    """Multiplies the log-densities of all latents, in model and guide, by `weight`."""

    def __init__(self, weight: float | Tensor):
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.weight


class Annealed(ELBO):
    """A Pyro ELBO of the form rate + distortion under KL warm-up.

    The weight moves on at every call of ``differentiable_loss`` or ``loss_and_grads``.

    Arguments:
        objective: the ELBO to anneal.
        warmup: steps until β = 1; ``fit`` warns if training is shorter.
        start: β at the first step.

    Raises:
        ValueError: warmup below 1, start outside [0, 1], or an objective that is no sum of rate
            and distortion.

    Example:
        >>> from pyro.infer import Trace_ELBO
        >>> from vilvm.objectives import Annealed
        >>> Annealed(Trace_ELBO(), warmup=1000).weight
        1e-06
    """

    def __init__(self, objective: Any, warmup: int, start: float = 0.0):
        super().__init__()
        warmup, start = (
            check_number("Annealed: warmup", warmup),
            check_positive("Annealed: start", start, zero=True),
        )
        if start > 1:
            raise ValueError(f"Annealed: start must be at most 1; got {start}.")
        if isinstance(objective, type) or not (
            hasattr(objective, "differentiable_loss") or hasattr(objective, "loss_and_grads")
        ):
            name = (
                objective.__name__
                if isinstance(objective, type)
                else f"a {type(objective).__name__}"
            )
            raise ValueError(
                "Annealed: objective must be an instance of a Pyro ELBO, such as Trace_ELBO(); "
                f"got {name}."
            )
        if isinstance(objective, TraceEnum_ELBO) or not hasattr(objective, "differentiable_loss"):
            raise ValueError(
                f"Annealed: {type(objective).__name__} weighs its samples or sums over latents, "
                "so its rate has no factor of its own; anneal "
                "Trace_ELBO() or TraceMeanField_ELBO()."
            )
        self.objective, self.warmup, self.start, self.step = objective, warmup, start, 0
        self._given: Tensor | None = None

    @property
    def weight(self) -> float:
        """β at the present step."""
        return max(_SMALLEST, min(1.0, self.start + (1 - self.start) * self.step / self.warmup))

    def numbers(self) -> tuple[float, ...]:
        """What changes from step to step, which a compiled step takes as input."""
        return (self.weight,)

    @contextmanager
    def given(self, weight: Tensor) -> Iterator[None]:
        """A context in which β is `weight`, and no step is counted."""
        self._given = weight
        try:
            yield
        finally:
            self._given = None

    def advance(self) -> None:
        """Counts a step."""
        self.step += 1

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """The annealed loss; counts a step."""
        return self._annealed("differentiable_loss", model, guide, args, kwargs)

    def loss_and_grads(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """The annealed loss, its gradients accumulated in the parameters; counts a step."""
        return self._annealed("loss_and_grads", model, guide, args, kwargs)

    def loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """The loss without annealing, which is what a bound is reported by."""
        return self.objective.loss(model, guide, *args, **kwargs)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return self.objective._get_trace(model, guide, args, kwargs)

    def _annealed(self, method: str, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        with _ScaleLatents(self.weight if self._given is None else self._given):
            value = getattr(self.objective, method)(model, guide, *args, **kwargs)
        if self._given is None:
            self.advance()
        return value

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Takes up where a checkpoint was."""
        self.step = state["step"]
