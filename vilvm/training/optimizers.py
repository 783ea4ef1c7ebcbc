"""The optimizer and the scheduler of a run, made of what the user gives."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

__all__ = ["OptimizerFactory", "SchedulerFactory", "adam", "make_optimizer", "make_scheduler", "one_cycle"]

OptimizerFactory = Callable[[Any], torch.optim.Optimizer]
SchedulerFactory = Callable[[torch.optim.Optimizer], Any]


def adam(device: torch.device) -> OptimizerFactory:
    """Adam at 1e-3, fused where torch can."""
    return partial(torch.optim.Adam, lr=1e-3, fused=device.type in ("cpu", "cuda"))


def one_cycle(lr: float, steps: int) -> dict[str, Any]:
    """Adam whose learning rate rises to `lr` over a tenth of the steps and falls to nothing over the rest, as arguments of ``fit``.

    Of fewer than 20 steps, which have no tenth to rise over, it only falls.

    Reference: Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates, Smith and Topin, 2018.

    Example:
        >>> import torch, vilvm
        >>> from models.vae import VAE
        >>> from vilvm.training import one_cycle
        >>> vilvm.fit(VAE(data_dim=6, latent_dim=2), torch.zeros(64, 6), steps=30, batch_size=16, **one_cycle(4e-3, 30)).stopped
        'finished'
    """
    if steps < 20:
        return {"optimizer": partial(_fused_adam, lr=lr), "scheduler": partial(CosineAnnealingLR, T_max=steps)}
    rising = partial(OneCycleLR, max_lr=lr, total_steps=steps, pct_start=0.1)
    return {"optimizer": partial(_fused_adam, lr=lr), "scheduler": rising}


def _fused_adam(parameters: Any, lr: float) -> torch.optim.Optimizer:
    given = list(parameters)
    return torch.optim.Adam(given, lr=lr, fused=all(p.device.type in ("cpu", "cuda") for p in given))


def make_optimizer(factory: Any, parameters: list[Any]) -> torch.optim.Optimizer:
    """The optimizer that `factory` makes of `parameters`, or is; raises ValueError if it is of others, or needs a closure."""
    optimizer = factory if isinstance(factory, torch.optim.Optimizer) or not callable(factory) else factory(parameters)
    if not isinstance(optimizer, torch.optim.Optimizer) or isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            f"fit: optimizer must make a torch optimizer of parameters that needs no closure, such as "
            f"functools.partial(torch.optim.Adam, lr=1e-3); this one made a {type(optimizer).__name__}."
        )
    given = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if given != {id(p) for p in parameters}:
        raise ValueError(
            "fit: the optimizer is not of all trainable parameters of the model, and of no others; pass a function that makes it, such "
            "as functools.partial(torch.optim.Adam, lr=1e-3)."
        )
    return optimizer


def make_scheduler(factory: Any, optimizer: torch.optim.Optimizer) -> Any:
    """The scheduler that `factory` makes of `optimizer`, or is; raises ValueError if it is none, or another's."""
    scheduler = factory(optimizer) if callable(factory) else factory
    if not callable(getattr(scheduler, "step", None)) or getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise ValueError(
            "fit: scheduler must make a torch learning-rate scheduler of the optimizer, such as "
            f"functools.partial(torch.optim.lr_scheduler.StepLR, step_size=100); this one made a {type(scheduler).__name__}."
        )
    return scheduler
