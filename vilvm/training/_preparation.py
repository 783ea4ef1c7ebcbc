"""Preparation of a run: the pair is run on each source of data, checked, and given an optimizer.

Running the pair once on a batch of each source creates lazy parameters and finds its layout.
"""

import hashlib
from contextlib import ExitStack
from typing import Any

import torch

from vilvm._compile import worth_compiling
from vilvm.data._column_names import column_names
from vilvm.data.data import Data
from vilvm.lvm import ContractError, own_memory
from vilvm.training._data_checks import DataChecks
from vilvm.training._layouts import Layouts
from vilvm.training._model_arguments import check_arguments
from vilvm.training._run import Run, RunSpec, RunState, StepInputs, objective_state
from vilvm.training._settings import (
    describe_objective,
    describe_optimizer,
    describe_scheduler,
    functions_of,
)
from vilvm.training.compiled_step import CompiledStep
from vilvm.training.optimizers import (
    ByName,
    OptimizerFactory,
    SchedulerFactory,
    check_length,
    make_optimizer,
    make_scheduler,
)
from vilvm.weights import Layout
from vilvm.weights._per_datum import forget

__all__ = ["prepare"]

_WORTH_COMPILING = (
    5000  # steps; a longer run saves more than the ten seconds of compilation
)


def prepare(
    spec: RunSpec,
    optimizer: OptimizerFactory,
    scheduler: SchedulerFactory | None,
    undo: ExitStack,
) -> Run:
    """A run that is ready for its first step.

    Arguments:
        spec: the checked arguments of ``fit``.
        optimizer, scheduler: as given to ``fit``.
        undo: receives what restores the objective after the run.

    Raises:
        ContractError: the pair cannot be trained on these data.
        ValueError: the optimizer or the scheduler does not fit the run.
    """
    inputs = StepInputs(spec)
    given = isinstance(optimizer, torch.optim.Optimizer) or hasattr(scheduler, "step")
    hooked = bool(spec.callbacks) or spec.after_step is not None or given
    objective_start = objective_state(spec.objective)
    layouts = Layouts(spec.lvm, spec.seed, spec.device)
    validation_layout = _checked_data(spec, inputs, layouts, undo)
    own_memory(spec.lvm)
    spec.ranks.broadcast([*spec.lvm.parameters(), *spec.lvm.buffers()])
    trainable = _trainable(spec.lvm)
    made = make_optimizer(optimizer, trainable)
    settings = _settings(spec, inputs, layouts)
    settings["optimizer"] = describe_optimizer(
        made, _groups_by_name(optimizer, trainable)
    )
    schedule = _made_scheduler(spec, scheduler, made)
    settings["scheduler"] = describe_scheduler(schedule)
    settings["functions"] = functions_of(schedule, spec.arguments)
    run = Run(
        spec=spec,
        inputs=inputs,
        layouts=layouts,
        validation_layout=validation_layout,
        optimizer=made,
        scheduler=schedule,
        compiled=_step(spec, layouts, made),
        settings=settings,
        objective_start=objective_start,
        # Decided by the length of the run, not by a clock, so that one seed gives one run.
        state=RunState(
            hooked=hooked,
            compiles=worth_compiling(spec.compile, spec.total, _WORTH_COMPILING),
        ),
    )
    _check_ranks(run)
    return run


def _checked_data(
    spec: RunSpec,
    inputs: StepInputs,
    layouts: Layouts,
    undo: ExitStack,
) -> Layout:
    """Checks the pair on all sources and on the validation data; returns the latter's layout."""
    forget(spec.lvm)
    if spec.arguments is not None:
        check_arguments(spec.lvm, inputs.arguments(0))
    checks = DataChecks(spec, layouts)
    for source in spec.batches.sources:
        for change in checks.check_source(source):
            undo.callback(setattr, *change)
    return checks.check_validation()


def _trainable(lvm: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that require gradients; raises ContractError if there are none."""
    found = {n: p for n, p in lvm.named_parameters() if p.requires_grad}
    if not found:
        raise ContractError(
            f"{type(lvm).__name__} has no parameter to train: keep its networks in attributes of "
            "a torch.nn.Module, or declare parameters with pyro.param or pyro.module."
        )
    return found


def _groups_by_name(optimizer: Any, trainable: dict[str, Any]) -> list[dict[str, Any]]:
    """The groups of an optimizer with options by name, else none."""
    return optimizer.groups(trainable) if isinstance(optimizer, ByName) else []


def _made_scheduler(
    spec: RunSpec, scheduler: SchedulerFactory | None, optimizer: torch.optim.Optimizer
) -> Any:
    """The scheduler, which must not end before the run; None without one."""
    if scheduler is None:
        return None
    made = make_scheduler(scheduler, optimizer)
    if spec.per_epoch:
        check_length(made, spec.total // spec.batches.epoch_steps, "epochs")
    else:
        check_length(made, spec.total)
    return made


def _step(
    spec: RunSpec,
    layouts: Layouts,
    optimizer: torch.optim.Optimizer,
) -> CompiledStep:
    """The compiled step, which holds the eager one."""
    step = CompiledStep(
        spec.lvm,
        spec.objective,
        optimizer,
        spec.clip,
        log=spec.log,
        kinds=len(spec.batches.sources),
    )
    step.eager.masked = tuple({n for layout in layouts.known() for n in layout.masked})
    return step


# Settings
# ----------------------------------------------------------------------------------------


def _settings(
    spec: RunSpec,
    inputs: StepInputs,
    layouts: Layouts,
) -> dict[str, Any]:
    """The settings that a checkpoint must share; the optimizer's entries are filled in later."""
    arguments = after_step = None
    if spec.arguments is not None:
        arguments = sorted(inputs.arguments(0))
    if spec.after_step is not None:
        kind = type(spec.after_step).__name__
        after_step = getattr(spec.after_step, "__qualname__", kind)
    return {
        "lvm": type(spec.lvm).__qualname__,
        "parameters": _shapes(spec.lvm),
        "objective": describe_objective(spec.objective),
        "sites": _sites(layouts.known()),
        "optimizer": "",
        "scheduler": "",
        "scheduler_interval": "epoch" if spec.per_epoch else "step",
        "batch_size": spec.batches.size,
        "validate_every": f"{spec.record_steps} steps",
        **({} if spec.batches.shuffle else {"shuffle": False}),
        **_columns(spec.batches.data),
        "clip": spec.clip,
        "arguments": arguments,
        "after_step": after_step,
        "functions": {},
        "precision": spec.precision,
        "seed": spec.seed,
        "data": spec.batches.data.fingerprint(),
        "validation": "none"
        if spec.validation is None
        else spec.validation.fingerprint(),
    }


def _columns(data: Any) -> dict[str, Any]:
    """The names of the training data's columns, if they have some."""
    names = column_names(data) if isinstance(data, Data) else None
    return {"columns": names.to_json()} if names else {}


def _shapes(lvm: torch.nn.Module) -> dict[str, str]:
    """Shape and type of every tensor of the model, by name."""
    tensors = {n: v for n, v in lvm.state_dict().items() if isinstance(v, torch.Tensor)}
    return {n: f"{tuple(v.shape)} {v.dtype}" for n, v in tensors.items()}


def _sites(layouts: list[Layout]) -> dict[str, str]:
    """The sites of model and guide, by name, with their distributions and event shapes."""
    if len(layouts) == 1:
        return dict(layouts[0].sites)
    return {
        f"{name}, source {i}": description
        for i, layout in enumerate(layouts, start=1)
        for name, description in layout.sites.items()
    }


def _check_ranks(run: Run) -> None:
    """Raises ValueError unless all ranks were given the same run."""
    spec = run.spec
    asked = (
        spec.total,
        spec.patience_steps,
        spec.skip,
        spec.folder is not None,
        spec.validation is not None,
        # A function may depend on the rank, for example to print on one rank only.
        sorted(
            (item for item in run.settings.items() if item[0] != "functions"), key=str
        ),
    )
    digest = hashlib.sha256(repr(asked).encode()).digest()
    mine = torch.tensor([list(digest)], device=spec.device)
    if not bool((spec.ranks.gather(mine) == mine).all()):
        raise ValueError(
            f"fit: rank {spec.ranks.rank} of {spec.ranks.size} was given other data, another "
            "model or other settings than another rank; call fit with the same arguments on "
            "every rank, run_dir included, and build them from the same seed."
        )
