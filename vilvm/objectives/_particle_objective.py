"""An objective that is a function of the log-weights of k particles."""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor

from vilvm._runtime.argument_checks import check_number
from vilvm.weights.particles import Particles, particles

__all__ = ["ParticleObjective"]


class ParticleObjective(ELBO):
    """A loss of the particles of a pair, with the interface of a Pyro ELBO.

    A subclass writes ``_loss``, a function of ``Particles``. Like a Pyro ELBO, an instance guesses
    from the first pair that it meets how many dimensions plates take; ``fit`` sets that number.

    Arguments:
        num_particles: k.
        vectorize_particles: whether all particles run at once under a plate, as in Pyro's ELBOs.
        max_plate_nesting: dimensions that plates take; guessed by default.
    """

    path_only = False  # whether log q(z | x) passes its gradient to the draws alone
    is_sum = False  # whether the loss is distortion + rate, which warm-up may weight

    def __init__(
        self,
        num_particles: int,
        vectorize_particles: bool = True,
        max_plate_nesting: float = math.inf,
    ):
        super().__init__(
            num_particles=check_number(f"{type(self).__name__}: k", num_particles),
            vectorize_particles=vectorize_particles,
            max_plate_nesting=max_plate_nesting,
        )

    @abstractmethod
    def _loss(self, found: Particles) -> Tensor:
        """The loss, in nats, a scalar."""

    def differentiable_loss(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """The loss, in nats.

        Arguments:
            model, guide: callables, as of ``pyro.infer.SVI``.
            args, kwargs: of both.
        """
        path_only = self.path_only and torch.is_grad_enabled()
        return self._loss(self._particles((model, guide), args, kwargs, path_only))

    def loss_and_grads(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """The loss, in nats; adds its gradients to the parameters.

        Arguments:
            model, guide: callables, as of ``pyro.infer.SVI``.
            args, kwargs: of both.
        """
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward(retain_graph=self.retain_graph)
        return loss.item()

    @torch.no_grad()
    def loss(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """The loss as a number, in nats, without gradients.

        Arguments:
            model, guide: callables, as of ``pyro.infer.SVI``.
            args, kwargs: of both.
        """
        return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def _particles(
        self, pair: tuple[Any, Any], args: Any, kwargs: Any, path_only: bool
    ) -> Particles:
        if self.max_plate_nesting == math.inf:
            self._guess_max_plate_nesting(*pair, args, kwargs)
        model, guide = pair
        vectorised = self.vectorize_particles and self.num_particles > 1
        return particles(
            (
                lambda given: model(*given, **kwargs),
                lambda given: guide(*given, **kwargs),
            ),
            args,
            self.num_particles,
            nesting=int(self.max_plate_nesting) - vectorised,
            vectorised=vectorised,
            path_only=path_only,
        )

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError(
            f"{type(self).__name__} has no Pyro trace; it is a function of log-weights."
        )
