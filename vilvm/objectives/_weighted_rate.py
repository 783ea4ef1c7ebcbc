"""An objective in which the rate has a weight: what KL warm-up and the β-VAE share."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pyro.infer import ELBO, TraceEnum_ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from vilvm.weights._sites import UNCONSTRAINED

__all__ = ["RateWeight", "WeightedRate"]

_PARTICLES = ("num_particles_vectorized", "_monte_carlo")  # plates over particles


class RateWeight(Messenger):
    """Multiplies the log-densities of latents, in model and guide, by a weight.

    Arguments:
        weight: a number, or a scalar tensor.
        sites: the latents; all by default.
    """

    def __init__(self, weight: float | Tensor, sites: tuple[str, ...] | None = None):
        super().__init__()
        self.weight = weight
        self.sites = sites
        self.met: set[str] = set()
        self.num_data: Any = (
            None  # of the plates around the first latent, times their factors
        )

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg):
            return
        name = msg["name"].removesuffix(UNCONSTRAINED)
        if self.sites is not None and name not in self.sites:
            return
        self.met.add(name)
        if self.num_data is None:
            self.num_data = _num_data(msg)
        msg["scale"] = msg["scale"] * self.weight


def _num_data(msg: Any) -> Any:
    """The size of the plates around a site, particles left out, times the site's factor."""
    number = msg["scale"]
    for frame in msg["cond_indep_stack"]:
        if frame.vectorized and frame.name not in _PARTICLES:
            number = number * frame.size
    return number


class WeightedRate(ELBO):
    """A Pyro ELBO of the form distortion + rate, whose rate gets a weight.

    A subclass writes ``numbers`` and ``_weighted``. Every call of ``differentiable_loss`` or
    ``loss_and_grads`` counts one step.

    Arguments:
        objective: the ELBO.
        sites: the latents whose rate gets the weight; all by default.
    """

    def __init__(self, objective: Any, sites: Sequence[str] | None = None):
        super().__init__()
        name = type(self).__name__
        _check_inner(name, objective)
        if isinstance(sites, str):
            raise ValueError(f"{name}: sites must be a list of names; got {sites!r}.")
        self.objective = objective
        self.sites = None if sites is None else tuple(sites)
        self.step = 0
        self._given: tuple[Tensor, ...] | None = None

    @abstractmethod
    def numbers(self) -> tuple[float, ...]:
        """The numbers that change from step to step, which are inputs of a compiled step."""

    @abstractmethod
    def _weighted(
        self, run: Callable[[RateWeight], Any], numbers: Sequence[Any]
    ) -> Any:
        """The loss at some numbers; `run` returns the loss of the ELBO under a weight."""

    @contextmanager
    def given(self, *numbers: Tensor) -> Iterator[None]:
        """A context in which ``numbers`` are these tensors and no step is counted."""
        self._given = numbers
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
        """The weighted loss, in nats; counts a step.

        Arguments:
            model, guide: callables, as of ``pyro.infer.SVI``.
            args, kwargs: of both.
        """

        def run(weight: RateWeight) -> Any:
            with weight:
                loss = self.objective.differentiable_loss(model, guide, *args, **kwargs)
            self._check_met(weight.met)
            return loss

        if self._given is not None:
            return self._weighted(run, self._given)
        loss = self._weighted(run, self.numbers())
        self.advance()
        return loss

    def loss_and_grads(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """The weighted loss, in nats; adds its gradients to the parameters and counts a step.

        Arguments:
            model, guide: callables, as of ``pyro.infer.SVI``.
            args, kwargs: of both.
        """
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item()

    def loss(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """The loss without a weight, in nats, for reporting a bound.

        Arguments:
            model, guide: callables, as of ``pyro.infer.SVI``.
            args, kwargs: of both.
        """
        return self.objective.loss(model, guide, *args, **kwargs)

    def state_dict(self) -> dict[str, int]:
        """The state for a checkpoint."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues from the state of a checkpoint."""
        self.step = state["step"]

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return self.objective._get_trace(model, guide, args, kwargs)

    def _check_met(self, met: set[str]) -> None:
        unmet = sorted(set(self.sites or ()) - met)
        if unmet:
            raise ValueError(
                f"{type(self).__name__}: sites names {unmet[0]!r}, and no latent is called so."
            )


def _check_inner(name: str, objective: Any) -> None:
    """Raises ValueError unless an objective is a sum of rate and distortion."""
    kind = objective if isinstance(objective, type) else type(objective)
    differentiable = hasattr(objective, "differentiable_loss")
    if kind is objective or not (
        differentiable or hasattr(objective, "loss_and_grads")
    ):
        what = kind.__name__ if kind is objective else f"a {kind.__name__}"
        raise ValueError(
            f"{name}: objective must be an instance of a Pyro ELBO, such as Trace_ELBO(); got "
            f"{what}."
        )
    is_sum = getattr(objective, "is_sum", True)
    if isinstance(objective, TraceEnum_ELBO) or not (differentiable and is_sum):
        raise ValueError(
            f"{name}: {kind.__name__} weighs its samples or sums over latents, so its rate has no "
            "factor of its own; use Trace_ELBO(), TraceMeanField_ELBO() or STL()."
        )
