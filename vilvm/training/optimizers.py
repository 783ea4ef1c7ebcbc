"""The optimizer and the scheduler of a run, from what the user gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro.optim
import torch
from pyro.optim import PyroOptim
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    OneCycleLR,
    SequentialLR,
)

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
    """Adam with learning rate 1e-3, fused if torch can.

    Arguments:
        device: of the parameters.

    Returns:
        A function that makes the optimizer of parameters.

    Examples:
        >>> import torch
        >>> from vilvm.training.optimizers import adam
        >>> adam(torch.device("cpu"))([torch.nn.Parameter(torch.zeros(2))]).defaults["lr"]
        0.001
    """
    return partial(torch.optim.Adam, lr=1e-3, fused=device.type in ("cpu", "cuda"))


def one_cycle(lr: float, steps: int) -> dict[str, Any]:
    """Adam whose learning rate rises over a tenth of the steps and then falls to zero.

    With fewer than 20 steps, it only falls.

    Arguments:
        lr: the largest learning rate.
        steps: of the training.

    Returns:
        The arguments ``optimizer`` and ``scheduler`` of ``fit``.

    Raises:
        ValueError: an argument is out of range.

    Reference: Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates,
    Smith and Topin, 2018.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.training import one_cycle
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(64, 6)
        >>> vilvm.fit(lvm, x, steps=30, batch_size=16, **one_cycle(4e-3, 30)).stopped
        'finished'
    """
    lr = check_positive("one_cycle: lr", lr)
    steps = check_number("one_cycle: steps", steps)
    if steps < 20:
        return {
            "optimizer": partial(_fused_adam, lr=lr),
            "scheduler": partial(_falling, total_steps=steps),
        }
    rising = partial(OneCycleLR, max_lr=lr, total_steps=steps, pct_start=0.1)
    return {"optimizer": partial(_fused_adam, lr=lr), "scheduler": rising}


def _falling(optimizer: torch.optim.Optimizer, total_steps: int) -> CosineAnnealingLR:
    """Half a period of a cosine; after it the rate would rise again.

    ``check_length`` reads its end from `total_steps`.
    """
    scheduler: Any = CosineAnnealingLR(optimizer, T_max=total_steps)
    scheduler.total_steps = total_steps
    return scheduler


def _fused_adam(parameters: Any, lr: float) -> torch.optim.Optimizer:
    given = list(parameters)
    fused = all(p.device.type in ("cpu", "cuda") for p in given)
    return torch.optim.Adam(given, lr=lr, fused=fused)


@dataclass(frozen=True)
class ByName:
    """An optimizer with options by the name of a parameter; see ``by_name``.

    Arguments:
        optimizer: makes a torch optimizer of groups of parameters.
        options: of the name of a parameter, returns its options.

    Examples:
        >>> import torch
        >>> from vilvm.training.optimizers import ByName
        >>> named = {"a": torch.nn.Parameter(torch.zeros(2))}
        >>> ByName(torch.optim.SGD, lambda name: {"lr": 0.1})(named).param_groups[0]["lr"]
        0.1
    """

    optimizer: OptimizerFactory
    options: Callable[[str], Mapping[str, Any]]

    def groups(self, named: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Parameters by their options, as the groups of a torch optimizer.

        Raises:
            ValueError: the options of a parameter are not a dict.
        """
        groups: dict[str, dict[str, Any]] = {}
        for name, parameter in named.items():
            options = self.options(_plain_name(name))
            if not isinstance(options, Mapping):
                raise ValueError(
                    f"by_name: the options of {_plain_name(name)!r} are {options!r}; return a "
                    "dict, such as {'lr': 1e-3}."
                )
            key = repr(sorted(options.items()))
            group = groups.setdefault(key, {"params": [], **options})
            group["params"].append(parameter)
        return list(groups.values())

    def __call__(self, named: Mapping[str, Any]) -> torch.optim.Optimizer:
        """The optimizer of these parameters.

        Raises:
            ValueError: the optimizer does not have an option, which torch would accept silently.
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


def by_name(
    optimizer: OptimizerFactory, options: Callable[[str], Mapping[str, Any]]
) -> ByName:
    """An optimizer whose options, such as learning rates, depend on the name of the parameter.

    In Pyro this is ``pyro.optim.Adam(lambda name: {...})``.

    Arguments:
        optimizer: makes a torch optimizer of groups of parameters, such as ``torch.optim.Adam``.
        options: of the name of a parameter, returns its options. The name is that of its
            ``pyro.param`` or, in a module, that of ``named_parameters()``. Options that it leaves
            out are the optimizer's defaults.

    Returns:
        What to pass as ``fit(optimizer=...)``.

    Raises:
        ValueError: an argument is not a function; or, later in ``fit``, the options are not a dict
            or are unknown to the optimizer.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.training import by_name
        >>> def options(name):
        ...     return {"lr": 1e-4} if name.startswith("decoder") else {"lr": 1e-3}
        >>> slow_decoder = by_name(torch.optim.Adam, options)
        >>> lvm, x = VAE(data_dim=6, latent_dim=2), torch.zeros(64, 6)
        >>> vilvm.fit(lvm, x, steps=5, optimizer=slow_decoder).stopped
        'finished'
    """
    for name, function in (("optimizer", optimizer), ("options", options)):
        if not callable(function):
            raise ValueError(
                f"by_name: {name} must be a function; got a {type(function).__name__}."
            )
    return ByName(optimizer, options)


def _plain_name(name: str) -> str:
    """The name of a parameter in its ``pyro.param`` or ``pyro.module`` statement, if any."""
    return name.rpartition("pyro_params.")[2].replace("/", ".").replace("$$$", ".")


def make_optimizer(factory: Any, named: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The torch optimizer of some parameters.

    Arguments:
        factory: makes the optimizer from the parameters, or is the optimizer.
        named: the parameters by name.

    Raises:
        ValueError: it is not a torch optimizer of exactly these parameters, or needs a closure.

    Examples:
        >>> import torch
        >>> from vilvm.training.optimizers import make_optimizer
        >>> named = {"a": torch.nn.Parameter(torch.zeros(2))}
        >>> type(make_optimizer(torch.optim.Adam, named)).__name__
        'Adam'
    """
    if _of_pyro(factory):
        raise ValueError(_advice_for_pyro(factory))
    optimizer = _made_optimizer(factory, named)
    if isinstance(optimizer, PyroOptim):
        raise ValueError(_advice_for_pyro(optimizer))
    needs_closure = isinstance(optimizer, torch.optim.LBFGS)
    if needs_closure or not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(
            "fit: optimizer must make a torch optimizer of parameters that needs no closure, such "
            "as functools.partial(torch.optim.Adam, lr=1e-3); this one made a "
            f"{type(optimizer).__name__}."
        )
    given = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if given != set(map(id, named.values())):
        raise ValueError(
            "fit: the optimizer must hold all trainable parameters of the model and no "
            "others; pass a function that makes it, such as functools.partial(torch.optim.Adam, "
            "lr=1e-3)."
        )
    return optimizer


def _made_optimizer(factory: Any, named: Mapping[str, Any]) -> Any:
    """The optimizer that a factory makes from the parameters; anything else unchanged."""
    if isinstance(factory, ByName):
        return _called("optimizer", factory, named)
    if callable(factory) and not isinstance(factory, torch.optim.Optimizer):
        return _called("optimizer", factory, list(named.values()))
    return factory


def _called(what: str, factory: Any, given: Any) -> Any:
    """The result of a user's factory; raises ValueError with its message if it fails."""
    try:
        return factory(given)
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, ValueError) and str(error).startswith("by_name"):
            raise
        text = " ".join(str(error).split())[:200]
        raise ValueError(
            f"fit: the {what} could not be made: {type(error).__name__}: {text}"
        ) from None


def _of_pyro(given: Any) -> bool:
    """Whether something is, or makes, an optimizer or scheduler of Pyro."""
    root = getattr(given, "func", given)  # of a functools.partial
    return isinstance(root, PyroOptim) or any(
        f is root for n, f in vars(pyro.optim).items() if n[0].isupper()
    )


def _advice_for_pyro(given: Any) -> str:
    """What to write in place of an optimizer of Pyro."""
    root = getattr(given, "func", given)
    kind = _torch_name(root)
    args = getattr(root, "pt_optim_args", None)
    if callable(args):
        return (
            f"fit: optimizer is one of pyro.optim; give vilvm.training.by_name({kind}, lambda "
            "name: {'lr': ...})."
        )
    lr = args.get("lr", "...") if isinstance(args, dict) else "..."
    also = ""
    schedule = getattr(
        getattr(root, "pt_scheduler_constructor", None), "__name__", None
    )
    if schedule:
        also = f", and scheduler=functools.partial(torch.optim.lr_scheduler.{schedule}, ...)"
    return (
        f"fit: optimizer is one of pyro.optim; give torch's, optimizer=functools.partial({kind}, "
        f"lr={lr}){also}."
    )


def _torch_name(root: Any) -> str:
    """The path of the torch optimizer behind one of Pyro."""
    made = getattr(root, "pt_optim_constructor", None)
    if not made:
        known = vars(pyro.optim).items()
        made = next(n for n, f in known if f is root or f is type(root))
    name = getattr(made, "__name__", made)
    home = getattr(made, "__module__", "")
    # Pyro's own optimizers are torch optimizers in a module of pyro.optim.
    if isinstance(made, type) and home.startswith("pyro.optim."):
        return f"{home}.{name}"
    if hasattr(torch.optim, name):
        return f"torch.optim.{name}"
    return "torch.optim.Adam"


def check_length(scheduler: Any, steps: int, unit: str = "steps") -> None:
    """Raises ValueError if a scheduler, or one inside it, ends before the run.

    torch reports this only when it happens.

    Arguments:
        scheduler: a torch learning-rate scheduler.
        steps: how many steps it will take.
        unit: of these steps, for the error.

    Examples:
        >>> import torch
        >>> from vilvm.training.optimizers import check_length
        >>> sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
        >>> check_length(torch.optim.lr_scheduler.StepLR(sgd, step_size=10), steps=100)
    """
    for part, taken in _parts(scheduler, steps):
        check_length(part, taken, unit)
    total = getattr(scheduler, "total_steps", None)
    if isinstance(total, int) and steps > total and not _has_parts(scheduler):
        raise ValueError(
            f"fit: {type(scheduler).__name__} is made for {total} {unit} and would take {steps} "
            f"here; give it total_steps={steps}."
        )


def _has_parts(scheduler: Any) -> bool:
    return isinstance(scheduler, SequentialLR | ChainedScheduler)


def _parts(scheduler: Any, steps: int) -> list[tuple[Any, int]]:
    """The schedulers inside one, with the steps that each takes."""
    if isinstance(scheduler, ChainedScheduler):
        return [(s, steps) for s in scheduler._schedulers]
    if not isinstance(scheduler, SequentialLR):
        return []
    starts = [0, *scheduler._milestones]
    ends = [*scheduler._milestones, steps]
    parts = zip(scheduler._schedulers, starts, ends, strict=True)
    return [(part, min(end, steps) - start) for part, start, end in parts]


def make_scheduler(factory: Any, optimizer: torch.optim.Optimizer) -> Any:
    """The scheduler of an optimizer.

    Arguments:
        factory: makes the scheduler from the optimizer, or is the scheduler.
        optimizer: of the run.

    Raises:
        ValueError: it is not a scheduler of this optimizer.

    Examples:
        >>> import torch
        >>> from vilvm.training.optimizers import make_scheduler
        >>> sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
        >>> halving = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 10, gamma=0.5)
        >>> make_scheduler(halving, sgd).get_last_lr()
        [0.1]
    """
    if _of_pyro(factory):
        raise ValueError(
            "fit: scheduler is one of pyro.optim; give torch's, such as "
            "functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.99)."
        )
    scheduler = (
        _called("scheduler", factory, optimizer) if callable(factory) else factory
    )
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
