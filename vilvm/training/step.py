"""One training step: loss, gradients, clipping, update.

The loop knows a step as a callable from a batch to a ``StepResult``; the eager one below runs
Pyro's handlers every time.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Real
from typing import Any, NamedTuple, Protocol

import pyro
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO
from torch import Tensor

from vilvm._runtime.distributed import process_group
from vilvm.lvm import ContractError, LatentVariableModel
from vilvm.training.model_arguments import Call
from vilvm.weights._errors import without_shapes
from vilvm.weights._supports import scored_guide

__all__ = [
    "EagerStep",
    "NonFiniteLossError",
    "Objective",
    "Step",
    "StepResult",
    "backward",
    "check_objective",
    "nest",
    "no_gradient",
]


class Objective(Protocol):
    """Pyro's own protocol: any Pyro ELBO, and every objective of ``vilvm.objectives``."""

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any
    ) -> Any: ...

    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any) -> Any: ...


class NonFiniteLossError(FloatingPointError):
    """Training met a loss or a gradient that is NaN or infinite; the parameters are those before
    that step.
    """


class StepResult(NamedTuple):
    """What one step did.

    Arguments:
        loss: the objective's loss per datum.
        gradient_norm: before clipping.
        applied: whether the parameters moved; they do not if loss or gradient is not finite.
    """

    loss: float
    gradient_norm: float
    applied: bool


def check_objective(objective: Any, enumerated: tuple[str, ...] = ()) -> None:
    """Holds an objective to what ``fit`` needs of it.

    Arguments:
        objective: what the loss is.
        enumerated: latents that are absent from the guide because the objective is to sum over
            them.

    Raises:
        ValueError: it has no loss to climb down, or one that cannot be watched.
        ContractError: it does not sum over the enumerated latents.
    """
    name = objective.__name__ if isinstance(objective, type) else type(objective).__name__
    if isinstance(objective, type) or not (
        hasattr(objective, "differentiable_loss") or hasattr(objective, "loss_and_grads")
    ):
        raise ValueError(
            f"fit: objective must be an instance of a Pyro ELBO, such as Trace_ELBO(); got {name}."
        )
    if name.startswith("Jit"):
        raise ValueError(
            f"fit: {name} stands on torch.jit, which is deprecated; use "
            f"{name.removeprefix('Jit')}, the same without it."
        )
    if name == "TraceTailAdaptive_ELBO":
        raise ValueError(
            f"fit: {name} reports an infinite loss by design, so no step of it can be watched; "
            "train it by pyro.infer.SVI."
        )
    if enumerated and isinstance(
        getattr(objective, "objective", objective), (Trace_ELBO, TraceGraph_ELBO, RenyiELBO)
    ):
        raise ContractError(
            f"Latent {enumerated[0]!r} is marked for enumeration and absent from the guide, and "
            f"{name} would draw it from the prior: "
            "pass objective=TraceEnum_ELBO(max_plate_nesting=...), or sample it in the guide."
        )


def nest(
    objective: Any, nesting: int, vectorises: Callable[[], bool]
) -> list[tuple[Any, str, Any]]:
    """Gives an objective, and the one within a wrapper, what they would guess or suppose of a
    pair.

    Pyro guesses how many dimensions the plates take by running the pair behind a block. Particles
    that it vectorises take one more, and are right only for a pair whose densities are the same
    under a plate over samples; for any other they are run one by one.

    Arguments:
        objective: changed in place.
        nesting: dimensions that the plates of the pair take.
        vectorises: whether the pair's densities at several samples are those of single runs.

    Returns:
        What was changed: object, attribute and old value.
    """
    inner = getattr(objective, "objective", None)
    changed = [] if inner is None else nest(inner, nesting, vectorises)
    vectorized = (
        getattr(objective, "vectorize_particles", False)
        and getattr(objective, "num_particles", 1) > 1
    )
    if vectorized and not vectorises():
        changed.append((objective, "vectorize_particles", True))
        objective.vectorize_particles = vectorized = False
    if getattr(objective, "max_plate_nesting", None) == math.inf:
        changed.append((objective, "max_plate_nesting", math.inf))
        objective.max_plate_nesting = nesting + bool(vectorized)
    return changed


class Step(Protocol):
    """A training step: takes a batch, or a ``Call``, and the number by which the loss is divided,
    and moves the parameters.
    """

    def __call__(self, batch: Any, num_data: float) -> StepResult: ...


class EagerStep:
    """The step that runs model, guide and objective as they are written.

    Arguments:
        lvm: the model and guide.
        objective: its ``differentiable_loss`` is climbed down; an objective without one is asked
            for ``loss_and_grads``.
        optimizer: of all trainable parameters.
        clip: largest norm of the gradient of the loss per datum, or None.
    """

    def __init__(
        self,
        lvm: LatentVariableModel,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        clip: float | None = None,
    ):
        self.lvm, self.objective, self.optimizer, self.clip = lvm, objective, optimizer, clip
        self.ranks = process_group()
        # latents that are marginalised where the model masks them
        self.masked: tuple[str, ...] = ()
        # what this rank has to say to the others at the next step, and then: what any of them has
        # said
        self.flags: list[bool] = []
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def __call__(self, batch: Any, num_data: float) -> StepResult:
        """Moves the parameters one step down the loss per datum of `batch`."""
        self.optimizer.zero_grad(set_to_none=True)
        try:
            loss = backward(
                self.lvm, self.objective, batch, self.parameters, num_data, self.masked
            )
        except ValueError:
            # for which the others wait
            self._sum_over_ranks(torch.tensor(math.nan, dtype=torch.float64))
            raise
        return self.update(loss)

    def update(self, loss: Tensor) -> StepResult:
        """Moves the parameters by the gradients they have, summed over ranks, if these and the
        loss are finite.
        """
        loss = self._sum_over_ranks(loss)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if not gradients:
            raise no_gradient(self.lvm, self.objective)
        norm = torch.nn.utils.get_total_norm(gradients)
        # One transfer for both: on a GPU this is where the host waits.
        values = torch.stack([loss.detach().to(norm.device), norm.double()])
        loss_value, norm_value = values.tolist()
        applied = bool(torch.isfinite(values).all())
        if applied:
            if self.clip is not None and norm_value > self.clip:
                torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)
            self.optimizer.step()
        return StepResult(loss_value, norm_value, applied)

    def _sum_over_ranks(self, loss: Tensor) -> Tensor:
        """The loss of all ranks, each of which has divided its own so that the sum is a mean; the
        same is done to the gradients.
        """
        if self.ranks.size == 1:
            return loss
        device = self.parameters[0].device
        has = [p.grad is not None for p in self.parameters]
        told = torch.tensor(
            [*map(float, self.flags), *map(float, has)], dtype=torch.float64, device=device
        )
        loss, *told = self.ranks.sum(torch.cat([loss.detach().to(device).reshape(1), told]))
        told = torch.stack(told).gt(0).tolist()
        self.flags, has = told[: len(self.flags)], told[len(self.flags) :]
        moved = [p for p, any_has in zip(self.parameters, has, strict=True) if any_has]
        for dtype in {p.dtype for p in moved}:
            own = [p for p in moved if p.dtype == dtype]
            flat = self.ranks.sum(
                torch.cat(
                    [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in own]
                )
            )
            for p, grad in zip(own, flat.split([p.numel() for p in own]), strict=True):
                p.grad = grad.view_as(p)
        return loss


def no_gradient(lvm: object, objective: object) -> ContractError:
    """What is said where no parameter has a gradient."""
    return ContractError(
        f"{type(objective).__name__} gave no gradient to any parameter of {type(lvm).__name__}; "
        "let the model or guide use them, and sample latents that are reparameterised."
    )


def backward(
    lvm: Any,
    objective: Any,
    batch: Any,
    parameters: Sequence[Tensor],
    num_data: float = 1.0,
    masked: tuple[str, ...] = (),
) -> Tensor:
    """Adds the gradient of the loss over `num_data` to those of the parameters, and returns that
    loss, float64.

    Of the latents in `masked` the guide's density leaves out what the model masks
    (``vilvm.weights._supports``).
    """
    model, guide = lvm.model, scored_guide(lvm, masked)
    if isinstance(batch, Call):
        model, guide, batch = (
            partial(model, **batch.arguments),
            partial(guide, **batch.arguments),
            batch.batch,
        )
    if hasattr(objective, "differentiable_loss"):
        with without_shapes():
            loss = _one_number(objective, objective.differentiable_loss(model, guide, batch))
        if isinstance(loss, Tensor) and loss.requires_grad:
            (loss / num_data).backward()
        return torch.as_tensor(loss, dtype=torch.float64) / num_data

    def announced(batch: Any) -> Any:
        pyro.module("lvm", lvm)
        return model(batch)

    # RenyiELBO and a few others only offer this, and only if they see parameter statements in the
    # trace.
    with without_shapes():
        loss = objective.loss_and_grads(announced, guide, batch)
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients:
        torch._foreach_div_(gradients, num_data)
    # of wake and sleep, the first is the bound
    loss = _one_number(objective, loss[0] if isinstance(loss, tuple) else loss)
    return torch.as_tensor(loss, dtype=torch.float64) / num_data


def _one_number(objective: object, loss: Any) -> Any:
    """A loss as an objective gave it, a tensor without its dimensions of one; raises ValueError
    unless it is one real number.
    """
    if isinstance(loss, Tensor) and loss.numel() == 1 and not loss.is_complex():
        return loss.reshape(())
    if isinstance(loss, Real):
        return loss
    what = (
        f"a tensor of shape {tuple(loss.shape)}, {loss.dtype}"
        if isinstance(loss, Tensor)
        else f"a {type(loss).__name__}"
    )
    raise ValueError(
        f"fit: the objective {type(objective).__name__} gave {what} for a loss; it must be one "
        "real number."
    )
