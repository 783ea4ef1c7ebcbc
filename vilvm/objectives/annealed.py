"""KL warm-up: the rate is weighted by β, which rises from near zero to one.

    loss(step) = distortion + β(step) · rate,
    β(step) = min(1, start + (1 − start) · step / warmup)

so that the decoder learns to use z before the prior attracts q(z | x). At β = 1 the loss is that
of the inner objective; only then is minus the loss its bound.

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

    Every call of ``differentiable_loss`` or ``loss_and_grads`` counts one step.

    Arguments:
        objective: the ELBO to anneal.
        warmup: steps until β = 1; ``fit`` warns if training is shorter.
        start: β at the first step.

    Raises:
        ValueError: `warmup` is below 1, `start` is outside [0, 1], or the objective is not a sum
            of rate and distortion.

    Reference: Generating Sentences from a Continuous Space, Bowman et al., 2016.

    Examples:
        >>> from pyro.infer import Trace_ELBO
        >>> from vilvm.objectives import Annealed
        >>> Annealed(Trace_ELBO(), warmup=1000).weight
        1e-06
    """

    def __init__(self, objective: Any, warmup: int, start: float = 0.0):
        super().__init__()
        warmup = check_number("Annealed: warmup", warmup)
        start = check_positive("Annealed: start", start, zero=True)
        if start > 1:
            raise ValueError(f"Annealed: start must be at most 1; got {start}.")
        _check_inner(objective)
        self.objective = objective
        self.warmup = warmup
        self.start = start
        self.step = 0
        self._given: Tensor | None = None

    @property
    def weight(self) -> float:
        """β at the present step."""
        return max(
            _SMALLEST, min(1.0, self.start + (1 - self.start) * self.step / self.warmup)
        )

    def numbers(self) -> tuple[float, ...]:
        """The numbers that change from step to step, which are inputs of a compiled step."""
        return (self.weight,)

    @contextmanager
    def given(self, weight: Tensor) -> Iterator[None]:
        """A context in which β is `weight` and no step is counted."""
        self._given = weight
        try:
            yield
        finally:
            self._given = None

    def advance(self) -> None:
        """Counts a step."""
        self.step += 1

    def differentiable_loss(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """The annealed loss, in nats; counts a step.

        Arguments:
            model, guide: callables, as of ``pyro.infer.SVI``.
            args, kwargs: of both.
        """
        return self._annealed("differentiable_loss", model, guide, args, kwargs)

    def loss_and_grads(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """The annealed loss, in nats; adds its gradients to the parameters and counts a step.

        Arguments:
            model, guide: callables, as of ``pyro.infer.SVI``.
            args, kwargs: of both.
        """
        return self._annealed("loss_and_grads", model, guide, args, kwargs)

    def loss(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """The loss without annealing, in nats, for reporting a bound.

        Arguments:
            model, guide: callables, as of ``pyro.infer.SVI``.
            args, kwargs: of both.
        """
        return self.objective.loss(model, guide, *args, **kwargs)

    def _get_trace(
        self,
        model: Any,
        guide: Any,
        args: Any,
        kwargs: Any,
    ) -> Any:
        return self.objective._get_trace(model, guide, args, kwargs)

    def _annealed(
        self,
        method: str,
        model: Any,
        guide: Any,
        args: Any,
        kwargs: Any,
    ) -> Any:
        loss = getattr(self.objective, method)
        if self._given is not None:
            with _ScaleLatents(self._given):
                return loss(model, guide, *args, **kwargs)
        with _ScaleLatents(self.weight):
            value = loss(model, guide, *args, **kwargs)
        self.advance()
        return value

    def state_dict(self) -> dict[str, int]:
        """The state for a checkpoint."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues from the state of a checkpoint."""
        self.step = state["step"]


def _check_inner(objective: Any) -> None:
    """Raises ValueError unless an objective is a sum of rate and distortion."""
    name = f"a {type(objective).__name__}"
    is_class = isinstance(objective, type)
    if is_class:
        name = objective.__name__
    differentiable = hasattr(objective, "differentiable_loss")
    if is_class or not (differentiable or hasattr(objective, "loss_and_grads")):
        raise ValueError(
            "Annealed: objective must be an instance of a Pyro ELBO, such as Trace_ELBO(); got "
            f"{name}."
        )
    if isinstance(objective, TraceEnum_ELBO) or not differentiable:
        raise ValueError(
            f"Annealed: {type(objective).__name__} weighs its samples or sums over latents, so "
            "its rate has no factor of its own; anneal Trace_ELBO() or TraceMeanField_ELBO()."
        )
