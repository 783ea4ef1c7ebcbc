"""One training step: loss, gradients, clipping, update.

A step is a callable from a batch to a ``StepResult``; the eager one runs Pyro's handlers.
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
from vilvm.training._model_arguments import Call
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
    """Pyro's own protocol: a Pyro ELBO, or an objective of ``vilvm.objectives``."""

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any
    ) -> Any: ...

    def loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any
    ) -> Any: ...


class NonFiniteLossError(FloatingPointError):
    """Loss or gradient of a step is NaN or infinite; the parameters are those before that step."""


class StepResult(NamedTuple):
    """What one step did.

    Arguments:
        loss: the objective's loss, nats per datum.
        gradient_norm: before clipping.
        applied: whether the parameters moved; they do not if loss or gradient is not finite.
    """

    loss: float
    gradient_norm: float
    applied: bool


def check_objective(objective: Any, enumerated: tuple[str, ...] = ()) -> None:
    """Checks that ``fit`` can train with an objective.

    Arguments:
        objective: a Pyro ELBO, or an object with its interface.
        enumerated: latents that the guide leaves out and the objective must sum over.

    Raises:
        ValueError: it has no loss to minimise, or one whose finiteness cannot be checked.
        ContractError: it does not sum over the enumerated latents.

    Examples:
        >>> from pyro.infer import Trace_ELBO
        >>> from vilvm.training.step import check_objective
        >>> check_objective(Trace_ELBO())
    """
    kind = objective if isinstance(objective, type) else type(objective)
    name = kind.__name__
    methods = ("differentiable_loss", "loss_and_grads")
    if kind is objective or not any(hasattr(objective, m) for m in methods):
        raise ValueError(
            f"fit: objective must be an instance of a Pyro ELBO, such as Trace_ELBO(); got {name}."
        )
    if name.startswith("Jit"):
        raise ValueError(
            f"fit: {name} uses torch.jit, which is deprecated; use "
            f"{name.removeprefix('Jit')}, the same without it."
        )
    if name == "TraceTailAdaptive_ELBO":
        raise ValueError(
            f"fit: {name} reports an infinite loss by design, so its steps cannot be checked; "
            "train it with pyro.infer.SVI."
        )
    inner = getattr(objective, "objective", objective)
    if enumerated and isinstance(inner, (Trace_ELBO, TraceGraph_ELBO, RenyiELBO)):
        raise ContractError(
            f"Latent {enumerated[0]!r} is marked for enumeration and absent from the guide, and "
            f"{name} would draw it from the prior: pass "
            "objective=TraceEnum_ELBO(max_plate_nesting=...), or sample it in the guide."
        )


def nest(
    objective: Any, nesting: int, vectorises: Callable[[], bool]
) -> list[tuple[Any, str, Any]]:
    """Sets what an objective, and the one inside it, would otherwise guess about a pair.

    Pyro guesses how many dimensions the plates take by running the pair once more. Vectorised
    particles take one more dimension, and are correct only for a pair whose densities are the same
    under a plate over samples; for any other, the particles are run one by one.

    Arguments:
        objective: changed in place.
        nesting: number of dimensions that the plates of the pair take.
        vectorises: returns whether densities of several samples at once equal those of single
            runs.

    Returns:
        What was changed: object, attribute and old value.

    Examples:
        >>> from pyro.infer import Trace_ELBO
        >>> from vilvm.training.step import nest
        >>> elbo = Trace_ELBO()
        >>> [name for _, name, _ in nest(elbo, 1, lambda: True)], elbo.max_plate_nesting
        (['max_plate_nesting'], 1)
    """
    inner = getattr(objective, "objective", None)
    changed = [] if inner is None else nest(inner, nesting, vectorises)
    several = getattr(objective, "num_particles", 1) > 1
    vectorized = getattr(objective, "vectorize_particles", False) and several
    if vectorized and not vectorises():
        changed.append((objective, "vectorize_particles", True))
        objective.vectorize_particles = vectorized = False
    if getattr(objective, "max_plate_nesting", None) == math.inf:
        changed.append((objective, "max_plate_nesting", math.inf))
        objective.max_plate_nesting = nesting + bool(vectorized)
    return changed


class Step(Protocol):
    """A training step, which moves the parameters."""

    def __call__(self, batch: Any, num_data: float) -> StepResult:
        """Takes a step on a batch, or a ``Call``, with the loss divided by `num_data`."""
        ...


class EagerStep:
    """The step that runs model, guide and objective as they are written.

    Arguments:
        lvm: the model and guide.
        objective: its ``differentiable_loss`` is minimised; without one, ``loss_and_grads`` gives
            the gradients.
        optimizer: of all trainable parameters.
        clip: largest norm of the gradient of the loss per datum, or None.

    Examples:
        >>> import torch
        >>> from pyro.infer import Trace_ELBO
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.training.step import EagerStep
        >>> lvm = VAE(data_dim=6, latent_dim=2)
        >>> step = EagerStep(lvm, Trace_ELBO(), torch.optim.Adam(lvm.parameters()))
        >>> step(torch.zeros(8, 6), num_data=8.0).applied
        True
    """

    def __init__(
        self,
        lvm: LatentVariableModel,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        clip: float | None = None,
    ):
        self.lvm = lvm
        self.objective = objective
        self.optimizer = optimizer
        self.clip = clip
        self.ranks = process_group()
        # Latents that are marginalised where the model masks them.
        self.masked: tuple[str, ...] = ()
        # Before a step the flags of this rank, after it those that are set on any rank.
        self.flags: list[bool] = []
        self.parameters = [
            p for group in optimizer.param_groups for p in group["params"]
        ]

    def __call__(self, batch: Any, num_data: float) -> StepResult:
        """Moves the parameters by one step on the loss per datum; see ``Step``."""
        self.optimizer.zero_grad(set_to_none=True)
        try:
            loss = backward(
                self.lvm,
                self.objective,
                batch,
                self.parameters,
                num_data,
                masked=self.masked,
            )
        except ValueError:
            # The other ranks wait for the loss of this one.
            self._sum_over_ranks(torch.tensor(math.nan, dtype=torch.float64))
            raise
        return self.update(loss)

    def update(self, loss: Tensor) -> StepResult:
        """Moves the parameters by their gradients, summed over ranks, if all is finite."""
        loss = self._sum_over_ranks(loss)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if not gradients:
            raise no_gradient(self.lvm, self.objective)
        norm = torch.nn.utils.get_total_norm(gradients)
        # One transfer for both values, because the host waits for a GPU here.
        values = torch.stack([loss.detach().to(norm.device), norm.double()])
        loss_value, norm_value = values.tolist()
        applied = bool(torch.isfinite(values).all())
        if applied:
            if self.clip is not None and norm_value > self.clip:
                torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)
            self.optimizer.step()
        return StepResult(loss_value, norm_value, applied)

    def _sum_over_ranks(self, loss: Tensor) -> Tensor:
        """Sums loss and gradients over ranks; each rank has divided its own by its share."""
        if self.ranks.size == 1:
            return loss
        device = self.parameters[0].device
        has = [p.grad is not None for p in self.parameters]
        flags = torch.tensor([*self.flags, *has], dtype=torch.float64, device=device)
        loss = loss.detach().to(device).reshape(1)
        loss, *flags = self.ranks.sum(torch.cat([loss, flags]))
        set_anywhere = torch.stack(flags).gt(0).tolist()
        count = len(self.flags)
        self.flags = set_anywhere[:count]
        has = set_anywhere[count:]
        moved = [p for p, any_has in zip(self.parameters, has, strict=True) if any_has]
        for dtype in {p.dtype for p in moved}:
            self._sum_gradients([p for p in moved if p.dtype == dtype])
        return loss

    def _sum_gradients(self, parameters: list[Tensor]) -> None:
        """Replaces the gradients of parameters of one type by their sums over ranks."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = self.ranks.sum(torch.cat([g.reshape(-1) for g in grads]))
        parts = flat.split([p.numel() for p in parameters])
        for p, grad in zip(parameters, parts, strict=True):
            p.grad = grad.view_as(p)


def no_gradient(lvm: object, objective: object) -> ContractError:
    """The error if no parameter has a gradient.

    Arguments:
        lvm, objective: named in the error.

    Examples:
        >>> from vilvm.training.step import no_gradient
        >>> type(no_gradient(object(), object())).__name__
        'ContractError'
    """
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
    *,
    masked: tuple[str, ...] = (),
) -> Tensor:
    """Adds the gradients of a loss to those of the parameters.

    Arguments:
        lvm: the model and guide.
        objective: see ``Objective``.
        batch: a batch, or a ``Call``.
        parameters: that have gradients.
        num_data: what loss and gradients are divided by.
        masked: latents for which the guide's density leaves out what the model masks
            (``vilvm.weights._supports``).

    Returns:
        The divided loss, nats, float64, a scalar.

    Examples:
        >>> import torch
        >>> from pyro.infer import Trace_ELBO
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.training.step import backward
        >>> lvm = VAE(data_dim=6, latent_dim=2)
        >>> backward(lvm, Trace_ELBO(), torch.zeros(8, 6), list(lvm.parameters()), 8.0).shape
        torch.Size([])
    """
    model = lvm.model
    guide = scored_guide(lvm, masked)
    if isinstance(batch, Call):
        model = partial(model, **batch.arguments)
        guide = partial(guide, **batch.arguments)
        batch = batch.batch
    if hasattr(objective, "differentiable_loss"):
        with without_shapes():
            loss = _one_number(
                objective, objective.differentiable_loss(model, guide, batch)
            )
        if isinstance(loss, Tensor) and loss.requires_grad:
            (loss / num_data).backward()
        return torch.as_tensor(loss, dtype=torch.float64) / num_data
    with without_shapes():
        loss = objective.loss_and_grads(_announced(lvm, model), guide, batch)
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients:
        torch._foreach_div_(gradients, num_data)
    if isinstance(loss, tuple):  # the first of the wake-sleep losses is the bound
        loss = loss[0]
    return torch.as_tensor(_one_number(objective, loss), dtype=torch.float64) / num_data


def _announced(lvm: Any, model: Callable[..., Any]) -> Callable[..., Any]:
    """A model that announces its parameters to Pyro.

    RenyiELBO and a few others only have ``loss_and_grads``, and only find parameters in the trace.
    """

    def announced(batch: Any) -> Any:
        pyro.module("lvm", lvm)
        return model(batch)

    return announced


def _one_number(objective: object, loss: Any) -> Any:
    """The loss of an objective, as a scalar.

    Raises:
        ValueError: it is not one real number.
    """
    is_tensor = isinstance(loss, Tensor)
    if is_tensor and loss.numel() == 1 and not loss.is_complex():
        return loss.reshape(())
    if isinstance(loss, Real):
        return loss
    what = f"a {type(loss).__name__}"
    if is_tensor:
        what = f"a tensor of shape {tuple(loss.shape)}, {loss.dtype}"
    raise ValueError(
        f"fit: the objective {type(objective).__name__} gave {what} for a loss; it must be one "
        "real number."
    )
