"""The optimizer and the scheduler of a run, made of what the user gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro.optim
import torch
from pyro.optim import PyroOptim
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, OneCycleLR, SequentialLR

from vilvm._runtime.argument_checks import check_number, check_positive

__all__ = [
    "ByName",
    "OptimizerFactory",
    "SchedulerFactory",
    "adam",
    "by_name",
    "check_length",
    "make_optimizer",
    "make_scheduler",
    "one_cycle",
]

OptimizerFactory = Callable[[Any], torch.optim.Optimizer]
SchedulerFactory = Callable[[torch.optim.Optimizer], Any]


def adam(device: torch.device) -> OptimizerFactory:
    """Adam at 1e-3, fused where torch can."""
    return partial(torch.optim.Adam, lr=1e-3, fused=device.type in ("cpu", "cuda"))


def one_cycle(lr: float, steps: int) -> dict[str, Any]:
    """Adam whose learning rate rises to `lr` over a tenth of the steps and falls to nothing over
    the rest, as arguments of ``fit``.

    Of fewer than 20 steps, which have no tenth to rise over, it only falls.

    Reference: Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates,
    Smith and Topin, 2018.

    Example:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.training import one_cycle
        >>> vilvm.fit(VAE(data_dim=6, latent_dim=2), torch.zeros(64, 6), steps=30, batch_size=16, **one_cycle(4e-3, 30)).stopped
        'finished'
    """
    lr, steps = check_positive("one_cycle: lr", lr), check_number("one_cycle: steps", steps)
    if steps < 20:
        return {
            "optimizer": partial(_fused_adam, lr=lr),
            "scheduler": partial(_falling, total_steps=steps),
        }
    rising = partial(OneCycleLR, max_lr=lr, total_steps=steps, pct_start=0.1)
    return {"optimizer": partial(_fused_adam, lr=lr), "scheduler": rising}


def _falling(optimizer: torch.optim.Optimizer, total_steps: int) -> CosineAnnealingLR:
    """Half a period of a cosine.

    Beyond it the rate would rise again; `total_steps` is where ``check_length`` finds its end.
    """
    scheduler: Any = CosineAnnealingLR(optimizer, T_max=total_steps)
    scheduler.total_steps = total_steps
    return scheduler


def _fused_adam(parameters: Any, lr: float) -> torch.optim.Optimizer:
    given = list(parameters)
    return torch.optim.Adam(
        given, lr=lr, fused=all(p.device.type in ("cpu", "cuda") for p in given)
    )


@dataclass(frozen=True)
class ByName:
    """An optimizer with options by the name of a parameter; see ``by_name``."""

    optimizer: OptimizerFactory
    options: Callable[[str], Mapping[str, Any]]

    def groups(self, named: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The groups of parameters that have the same options, for a torch optimizer.

        Raises:
            ValueError: the options of a parameter are no dict.
        """
        groups: dict[str, dict[str, Any]] = {}
        for name, parameter in named.items():
            options = self.options(_plain_name(name))
            if not isinstance(options, Mapping):
                raise ValueError(
                    f"by_name: the options of {_plain_name(name)!r} are {options!r}; return a "
                    "dict, such as {'lr': 1e-3}."
                )
            groups.setdefault(repr(sorted(options.items())), {"params": [], **options})[
                "params"
            ].append(parameter)
        return list(groups.values())

    def __call__(self, named: Mapping[str, Any]) -> torch.optim.Optimizer:
        """The optimizer of these parameters.

        Raises:
            ValueError: an option is none of the optimizer's, which torch would take without a
                word.
        """
        groups = self.groups(named)
        optimizer = self.optimizer(groups)
        unknown = sorted(
            {key for group in groups for key in group}
            - {"params", *getattr(optimizer, "defaults", {})}
        )
        if unknown and isinstance(optimizer, torch.optim.Optimizer):
            raise ValueError(
                f"by_name: {type(optimizer).__name__} has no option {unknown[0]!r}; it has "
                f"{', '.join(optimizer.defaults)}."
            )
        return optimizer


def by_name(optimizer: OptimizerFactory, options: Callable[[str], Mapping[str, Any]]) -> ByName:
    """An optimizer whose options, learning rates say, depend on the name of the parameter, for
    ``fit(optimizer=...)``.

    What Pyro writes as ``pyro.optim.Adam(lambda name: {...})``.

    Arguments:
        optimizer: makes a torch optimizer of groups of parameters, such as ``torch.optim.Adam``.
        options: of a parameter, by its name: that of its ``pyro.param``, or, in a module, of
            ``named_parameters()``. What it leaves out is as `optimizer` has it.

    Raises:
        ValueError: in ``fit``: options that are no dict, or that the optimizer does not have.

    Example:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.training import by_name
        >>> slower = by_name(torch.optim.Adam, lambda name: {"lr": 1e-4 if name.startswith("decoder") else 1e-3})
        >>> vilvm.fit(VAE(data_dim=6, latent_dim=2), torch.zeros(64, 6), steps=5, optimizer=slower).stopped
        'finished'
    """
    for name, function in (("optimizer", optimizer), ("options", options)):
        if not callable(function):
            raise ValueError(
                f"by_name: {name} must be a function; got a {type(function).__name__}."
            )
    return ByName(optimizer, options)


def _plain_name(name: str) -> str:
    """The name of a parameter as its ``pyro.param`` or ``pyro.module`` statement gave it; that of
    a module's own is left as it is.
    """
    return name.rpartition("pyro_params.")[2].replace("/", ".").replace("$$$", ".")


def make_optimizer(factory: Any, named: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimizer that `factory` makes of these parameters, or is; raises ValueError if it is of
    others, or needs a closure.
    """
    parameters = list(named.values())
    if _of_pyro(factory):
        raise ValueError(_torch_in_place_of(factory))
    optimizer = factory
    if isinstance(factory, ByName):
        optimizer = _called("optimizer", factory, named)
    elif callable(factory) and not isinstance(factory, torch.optim.Optimizer):
        optimizer = _called("optimizer", factory, parameters)
    if isinstance(optimizer, PyroOptim):
        raise ValueError(_torch_in_place_of(optimizer))
    if not isinstance(optimizer, torch.optim.Optimizer) or isinstance(
        optimizer, torch.optim.LBFGS
    ):
        raise ValueError(
            "fit: optimizer must make a torch optimizer of parameters that needs no closure, "
            "such as "
            "functools.partial(torch.optim.Adam, lr=1e-3); this one made a "
            f"{type(optimizer).__name__}."
        )
    given = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if given != {id(p) for p in parameters}:
        raise ValueError(
            "fit: the optimizer is not of all trainable parameters of the model, and of no "
            "others; pass a function that makes it, such "
            "as functools.partial(torch.optim.Adam, lr=1e-3)."
        )
    return optimizer


def _called(what: str, factory: Any, given: Any) -> Any:
    """What a factory of the user makes; raises ValueError, with its words, if it fails."""
    try:
        return factory(given)
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, ValueError) and str(error).startswith("by_name"):
            raise
        words = " ".join(str(error).split())[:200]
        raise ValueError(
            f"fit: {what} could not be made of the parameters, as torch would make it: "
            f"{type(error).__name__}: {words}"
        ) from None


def _of_pyro(given: Any) -> bool:
    """Whether something is an optimizer or a scheduler of Pyro's, or a function of ``pyro.optim``
    that makes one.
    """
    root = getattr(given, "func", given)  # of a functools.partial
    return isinstance(root, PyroOptim) or any(
        f is root for n, f in vars(pyro.optim).items() if n[0].isupper()
    )


def _torch_in_place_of(given: Any) -> str:
    """What to write in place of an optimizer of Pyro's."""
    root = getattr(given, "func", given)
    made = getattr(root, "pt_optim_constructor", None) or next(
        n for n, f in vars(pyro.optim).items() if f is root or f is type(root)
    )
    name = getattr(made, "__name__", made)
    home = getattr(made, "__module__", "")  # Pyro's own optimizers are torch optimizers there
    own = home.startswith("pyro.optim.") and isinstance(made, type)
    made = (
        f"{home}.{name}"
        if own
        else f"torch.optim.{name}"
        if hasattr(torch.optim, name)
        else "torch.optim.Adam"
    )
    args = getattr(root, "pt_optim_args", None)
    if callable(args):
        return (
            f"fit: optimizer is one of pyro.optim; give vilvm.training.by_name({made}, lambda "
            "name: {'lr': ...})."
        )
    lr = args.get("lr", "...") if isinstance(args, dict) else "..."
    schedule = getattr(getattr(root, "pt_scheduler_constructor", None), "__name__", None)
    also = (
        f", and scheduler=functools.partial(torch.optim.lr_scheduler.{schedule}, ...)"
        if schedule
        else ""
    )
    return (
        f"fit: optimizer is one of pyro.optim; give torch's, optimizer=functools.partial({made}, "
        f"lr={lr}){also}."
    )


def check_length(scheduler: Any, steps: int, unit: str = "steps") -> None:
    """Raises ValueError if a scheduler, or one within it, ends before `steps` of its own, which it
    would say only then.
    """
    parts = [(scheduler, steps)]
    if isinstance(scheduler, SequentialLR):
        starts = [0, *scheduler._milestones]
        parts = [
            (s, min(end, steps) - at)
            for s, at, end in zip(scheduler._schedulers, starts, [*starts[1:], steps], strict=True)
        ]
    elif isinstance(scheduler, ChainedScheduler):
        parts = [(s, steps) for s in scheduler._schedulers]
    for part, taken in parts:
        if part is not scheduler:
            check_length(part, taken, unit)
            continue
        total = getattr(part, "total_steps", None)
        if isinstance(total, int) and taken > total:
            raise ValueError(
                f"fit: {type(part).__name__} is made for {total} {unit} and would take {taken} "
                f"here; give it total_steps={taken}."
            )


def make_scheduler(factory: Any, optimizer: torch.optim.Optimizer) -> Any:
    """The scheduler that `factory` makes of `optimizer`, or is; raises ValueError if it is none,
    or another's.
    """
    if _of_pyro(factory):
        raise ValueError(
            "fit: scheduler is one of pyro.optim; give torch's, such as "
            "functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.99)."
        )
    scheduler = _called("scheduler", factory, optimizer) if callable(factory) else factory
    if (
        not callable(getattr(scheduler, "step", None))
        or getattr(scheduler, "optimizer", optimizer) is not optimizer
    ):
        raise ValueError(
            "fit: scheduler must make a torch learning-rate scheduler of the optimizer, such as "
            "functools.partial(torch.optim.lr_scheduler.StepLR, step_size=100); this one made a "
            f"{type(scheduler).__name__}."
        )
    return scheduler
