"""``fit``: checks its arguments, prepares a run, and trains."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from pyro.infer import Trace_ELBO
from torch.nn.modules.batchnorm import _BatchNorm

import vilvm.training.checkpoint as checkpoint
from vilvm._compile import Compile, check_compile
from vilvm._runtime.argument_checks import (
    check_number,
    check_path,
    check_positive,
    check_seed,
    optional,
)
from vilvm._runtime.distributed import process_group
from vilvm._runtime.files import locked
from vilvm._runtime.memory import trim_heap
from vilvm._runtime.precision import Precision, check_precision, networks_in
from vilvm._runtime.random import seeded, set_seed
from vilvm.data._column_names import (
    check_columns,
    column_names,
    set_columns,
    training_columns,
)
from vilvm.data._torch_loaders import loader_settings
from vilvm.data.data import Data
from vilvm.data.interleaved import Interleaved
from vilvm.lvm import (
    ContractError,
    LatentVariableModel,
    check_contract,
    data_beside,
    device_of,
    module_parameters,
)
from vilvm.trackers.tracker import Tracker
from vilvm.training._batches import batches_of
from vilvm.training._loop import Loop
from vilvm.training._model_arguments import Arguments
from vilvm.training._preparation import prepare
from vilvm.training._run import RunSpec
from vilvm.training._state import Checkpoints
from vilvm.training.history import record_steps
from vilvm.training.optimizers import OptimizerFactory, SchedulerFactory, adam
from vilvm.training.result import Event, Fit
from vilvm.training.step import Objective

__all__ = ["fit"]


def fit(
    lvm: LatentVariableModel,
    data: Any,
    *,
    objective: Objective | None = None,
    optimizer: OptimizerFactory | None = None,
    scheduler: SchedulerFactory | None = None,
    scheduler_interval: Literal["step", "epoch"] = "step",
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    shuffle: bool | None = None,
    validation: Any = None,
    validate_every: float | None = None,
    patience: int | None = None,
    clip: float | None = None,
    nonfinite: Literal["stop", "skip"] = "stop",
    compile: Compile = "auto",
    precision: Precision = "float32",
    device: torch.device | str | None = None,
    seed: int = 0,
    run_dir: Path | str | None = None,
    resume: bool = False,
    checkpoint_seconds: float = 10.0,
    callbacks: Sequence[Callable[[Event], bool | None]] = (),
    arguments: Arguments | None = None,
    after_step: Callable[[Any, int], Any] | None = None,
    tracker: Tracker | None = None,
    progress: bool = True,
) -> Fit:
    """Trains a latent variable model by stochastic variational inference.

    Each step takes a batch, the gradient of the objective per datum, and one step of one torch
    optimizer over all trainable parameters of `lvm`, which are changed in place. So `clip`, and an
    optimizer's own ``clip_norm``, ``weight_decay`` and ``eps``, apply to gradients per datum:
    those of Pyro's SVI divided by N = layout.num_data × layout.scale (the batch's length, or the
    full size of a plate that subsamples; 1 if data share a latent). Divide SVI's values by N. The
    data are copied to the device once. All random numbers of torch follow from `seed`; torch's
    generators are restored afterwards.

    Within ``vilvm.distributed()``, under torchrun, every rank takes its share of each batch of
    `batch_size`, gradients are averaged, and parameters stay the same on all ranks, which start
    from rank 0's. The order of the data does not depend on the number of ranks; the noise does.
    Batch statistics are those of each rank's share, and rank 0's are kept. Rank 0 writes and
    prints.

    Arguments:
        lvm: a ``torch.nn.Module`` with ``model(batch)`` and ``guide(batch)``, or a ``Pair``.
        data: the training data: ``Data``, a tensor, an array, a frame, or a tuple or dict of them
            with one datum a row (see ``vilvm.data.as_data``); ``datasets.on_disk(...)`` if they
            are larger than memory; ``Interleaved(labelled, unlabelled)`` for batches of several
            kinds in turn. Of a torch DataLoader, its dataset is taken, its batch size and its
            shuffling unless they are given here, and no other setting.
        objective: any Pyro ELBO (without ``Jit``) or objective of ``vilvm.objectives``;
            ``Trace_ELBO()`` by default.
        optimizer: makes a torch optimizer of parameters, ``partial(torch.optim.Adam, lr=1e-3,
            fused=True)`` by default; or an optimizer of all trainable parameters.
            ``training.by_name`` gives options by the name of a parameter.
        scheduler: makes a torch learning-rate scheduler of the optimizer.
        scheduler_interval: whether it steps every step or every epoch (``ReduceLROnPlateau``:
            every record, on the validation ELBO, or its negative if its mode is "min").
        epochs: how long to train, in epochs; give this or `steps`.
        steps: how long to train, in steps; give this or `epochs`.
        batch_size: data a step, drawn without replacement in an order that is new every epoch. By
            default all data, in order. Batches are cut along the first axis, which must be that of
            the plate over the data. If the model has batch normalisation, a last batch of one
            datum is left out.
        shuffle: False to take the batches of every epoch in the order of the data.
        validation: data for early stopping and for keeping the best parameters; their transform is
            drawn once.
        validate_every: epochs, or a fraction of one, between two records of the history, each with
            a validation; by default one epoch, or as many as make 50 steps if epochs are shorter.
        patience: stop this many epochs after the best validation ELBO, with a record there. An
            epoch is one step without `batch_size`.
        clip: largest norm of the gradient of the loss per datum.
        nonfinite: what to do when loss or gradient is NaN or infinite: "stop" with
            NonFiniteLossError, or "skip" the step.
        compile: whether to compile the step (``vilvm.training.compiled_step``), which takes some
            ten seconds; "auto" does so for runs of 5000 steps or more. The first epoch is eager in
            any case, with Pyro's checks. A pair that cannot be compiled is trained eagerly, and
            one line says why.
        precision: "float32", or "bf16" for linear and convolutional layers in bfloat16
            (``vilvm._runtime.precision``), for GPUs; densities, sums and parameters are float32
            in any case.
        device: where to train; by default where the parameters are.
        seed: of the order of the data, the latents drawn and the transforms; it seeds torch's
            generators, not numpy's.
        run_dir: folder for ``checkpoint/`` and ``history.csv``; nothing is written without one.
        resume: continue from the checkpoint in `run_dir`, bit for bit as if there had been no
            interruption; start if there is none.
        checkpoint_seconds: least time between two checkpoints; one is always written at the end.
        callbacks: called with an ``Event`` at every record; training stops when one returns True.
            Their draws from torch's generators do not affect the run.
        arguments: a function of the number of steps taken, which returns numbers and tensors by
            name. The step passes them as tensors to model and guide, ``model(batch, beta=...)``.
            Both must have defaults for them, which records, ``evaluate`` and all else use.
        after_step: called with `lvm` and the number of steps taken after each step that moved the
            parameters, without gradients; it may change them in place, for example clip them; its
            draws are part of the run. It must do the same on every rank.
        tracker: receives the settings and every record, for example
            ``vilvm.trackers.TensorBoard``.
        progress: whether to show the progress: a bar in a terminal or a notebook; elsewhere, as in
            a log, a line every ten seconds.

    Returns:
        Fit. With validation data, the model has the parameters of the best record, else of the
        last step. Ctrl-C or SIGTERM finishes the step, saves, and returns with ``stopped ==
        "interrupted"``; so does a ``fit`` in whose callback this one is called. A second Ctrl-C
        raises KeyboardInterrupt at once, a second SIGTERM ends the process; a checkpoint that is
        being written is finished first.

    Raises:
        ContractError: the pair or the batch breaks the contract (see
            ``vilvm.weights.find_layout``), also during validation; or the plate over the data is
            not along the axis that batches are cut along; or the guide has parameters of single
            data by their position in the batch, and data come in batches
            (``vilvm.weights._per_datum``); or the data are changed in place, or torch's generators
            seeded, during the run.
        BusyError: another thread runs a pair (``vilvm._runtime.threads``).
        CheckpointError: the checkpoint is damaged, or of another model, data set or setting.
        NonFiniteLossError: loss or gradient became NaN or infinite; names step, site and last
            checkpoint.
        ValueError: an argument is out of range.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> x = torch.bernoulli(torch.full((64, 6), 0.5))
        >>> fitted = vilvm.fit(VAE(data_dim=6, latent_dim=2), x, epochs=3, batch_size=16)
        >>> fitted.steps, fitted.stopped
        (12, 'finished')
    """
    check_contract(lvm)
    module = _trainable_module(lvm)
    batch_size, in_order = _batching(data, batch_size, shuffle)
    train, held_out = _checked_data(lvm, data, validation)
    _check_choices(nonfinite, scheduler_interval, compile)
    _check_functions(callbacks, arguments, after_step)
    _check_tracker(tracker)
    _check_patience(patience, held_out)
    _check_batches(train, batch_size)
    run_dir = optional(check_path, "fit: run_dir", run_dir)
    _check_folder(run_dir, resume)
    _check_length(epochs, steps)
    epochs = optional(check_number, "fit: epochs", epochs)
    steps = optional(check_number, "fit: steps", steps)
    batch_size = optional(check_number, "fit: batch_size", batch_size)
    patience = optional(check_number, "fit: patience", patience)
    validate_every = optional(
        check_positive, "fit: validate_every", validate_every, "number of epochs"
    )
    seed = check_seed("fit: seed", seed)
    clip = optional(check_positive, "fit: clip", clip)
    checkpoint_seconds = check_positive(
        "fit: checkpoint_seconds", checkpoint_seconds, "number of seconds", zero=True
    )
    check_precision("fit", lvm, precision)
    where = _device(module, device)
    module.to(where)
    ranks = process_group()
    batches = batches_of(
        train.to(where),
        batch_size,
        seed,
        ranks,
        _has_batch_norm(module),
        shuffle=not in_order,
    )
    with (
        torch.enable_grad(),  # also within a no_grad of the caller's
        closing(batches),
        _locked_folder(run_dir if ranks.is_main else None),
        seeded(seed, where, "training"),
        module_parameters(lvm),
        networks_in(precision, lvm),
        ExitStack() as undo,
    ):
        undo.callback(trim_heap)
        spec = RunSpec(
            lvm=lvm,
            objective=Trace_ELBO() if objective is None else objective,
            batches=batches,
            total=_total_steps(epochs, steps, batches.epoch_steps),
            record_steps=record_steps(validate_every, batches.epoch_steps),
            device=where,
            validation=held_out and held_out.to(where).fixed(seed),
            seed=seed,
            patience_steps=patience and patience * batches.epoch_steps,
            clip=clip,
            skip=nonfinite == "skip",
            folder=run_dir and Path(run_dir).absolute(),
            checkpoint_seconds=checkpoint_seconds,
            callbacks=callbacks,
            per_epoch=scheduler_interval == "epoch",
            compile=compile,
            ranks=ranks,
            precision=precision,
            arguments=arguments,
            after_step=after_step,
            tracker=tracker,
        )
        run = prepare(spec, optimizer or adam(where), scheduler, undo)
        set_seed(ranks.seed(seed), where, "training")
        checkpoints = Checkpoints(run)
        if resume:
            checkpoints.restore()
        if isinstance(train, Data):
            # data without names leave those of an earlier training
            set_columns(lvm, column_names(train) or training_columns(lvm))
        Loop(run, checkpoints).train(progress)
        return run.result()


def _trainable_module(lvm: Any) -> torch.nn.Module:
    """`lvm`, if it is a module and gradients can be recorded."""
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "fit: torch.inference_mode keeps no gradients; call fit outside of it."
        )
    if not isinstance(lvm, torch.nn.Module):
        raise ContractError(
            f"fit trains a torch.nn.Module; make {type(lvm).__name__} one, or wrap it as "
            "vilvm.Pair(model, guide)."
        )
    return lvm


@contextmanager
def _locked_folder(run_dir: Path | str | None) -> Iterator[None]:
    """Locks the run folder for this process, if there is one."""
    with ExitStack() as stack:
        if run_dir is not None:
            try:
                stack.enter_context(locked(Path(run_dir)))
            except BlockingIOError:
                raise ValueError(
                    f"fit: another process is training in {run_dir}; wait for it, or choose "
                    "another run_dir."
                ) from None
            except OSError as error:
                raise ValueError(
                    f"fit: run_dir {run_dir} cannot be made or opened ({error.strerror}); choose "
                    "another."
                ) from None
        yield


def _device(lvm: torch.nn.Module, device: torch.device | str | None) -> torch.device:
    """Where to train: `device`, else where the parameters are."""
    if device is None:
        return device_of(lvm)
    try:
        where = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(
            f"fit: unknown device {device!r}; choose 'cpu' or 'cuda'."
        ) from None
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"fit: device {device!r} was asked for, and torch finds no GPU here; choose 'cpu'."
        )
    return where


def _has_batch_norm(lvm: torch.nn.Module) -> bool:
    """Whether a part of the model takes statistics over its batch."""
    return any(isinstance(m, _BatchNorm) and m.training for m in lvm.modules())


def _checked_data(
    lvm: Any, data: Any, validation: Any
) -> tuple[Data | Interleaved, Data | None]:
    """Training and validation data."""
    train = data
    if not isinstance(data, Interleaved):
        train = data_beside(lvm, data, "training data")
    if validation is None:
        return train, None
    held_out = data_beside(lvm, validation, "validation data")
    for seen in train.sources if isinstance(train, Interleaved) else [train]:
        check_columns(held_out, column_names(seen), "validation data")
    return train, held_out


def _batching(data: Any, batch_size: Any, shuffle: Any) -> tuple[Any, bool]:
    """The batch size, and whether batches are in the order of the data."""
    loader = loader_settings(data)
    if batch_size is None:
        batch_size = loader.batch_size
    if shuffle is None:
        return batch_size, loader.shuffle is False
    if not isinstance(shuffle, bool):
        raise ValueError(f"fit: shuffle must be True or False; got {shuffle!r}.")
    return batch_size, not shuffle


def _check_patience(patience: Any, held_out: Data | None) -> None:
    if patience is not None and held_out is None:
        raise ValueError("fit: patience needs validation=... data to be measured on.")


def _check_length(epochs: Any, steps: Any) -> None:
    if (epochs is None) == (steps is None):
        raise ValueError("fit: give epochs=... or steps=..., one of the two.")


def _total_steps(
    epochs: int | None,
    steps: int | None,
    epoch_steps: int,
) -> int:
    """Steps of the whole run, of which one of `epochs` and `steps` is given."""
    if epochs is None:
        return steps or 0
    return epochs * epoch_steps


def _check_choices(
    nonfinite: Any,
    scheduler_interval: Any,
    compile: Any,
) -> None:
    check_compile("fit", compile)
    if nonfinite not in ("stop", "skip"):
        raise ValueError(
            f"fit: unknown nonfinite={nonfinite!r}; choose 'stop' or 'skip'."
        )
    if scheduler_interval not in ("step", "epoch"):
        raise ValueError(
            f"fit: unknown scheduler_interval={scheduler_interval!r}; choose 'step' or 'epoch'."
        )


def _check_functions(
    callbacks: Any,
    arguments: Any,
    after_step: Any,
) -> None:
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        raise ValueError("fit: callbacks must be a list of functions.")
    for name, function in (("arguments", arguments), ("after_step", after_step)):
        if function is not None and not callable(function):
            raise ValueError(f"fit: {name} must be a function; got {function!r}.")


def _check_tracker(tracker: Any) -> None:
    if tracker is not None and not isinstance(tracker, Tracker):
        raise ValueError(
            "fit: tracker must have the methods settings, metrics and figure, as those of "
            f"vilvm.trackers have; got a {type(tracker).__name__}."
        )


def _check_batches(train: Data | Interleaved, batch_size: Any) -> None:
    for data in train.sources if isinstance(train, Interleaved) else [train]:
        if batch_size is not None and not data.divisible:
            raise ValueError(
                "fit: these data cannot be cut into batches, because "
                f"{data.size_mismatch()}; make them equal, or leave batch_size out if they "
                "are one datum together."
            )
        if batch_size is None and data.streamed:
            raise ValueError(
                "fit: these data are read in batches; give batch_size=...."
            )


def _check_folder(run_dir: Path | str | None, resume: Any) -> None:
    if not isinstance(resume, bool):
        raise ValueError(f"fit: resume must be True or False; got {resume!r}.")
    if resume and run_dir is None:
        raise ValueError(
            "fit: resume=True needs run_dir=..., the folder of the run to resume."
        )
    if (
        run_dir is not None
        and not resume
        and checkpoint.latest(Path(run_dir) / "checkpoint")
    ):
        raise ValueError(
            f"fit: {run_dir} holds a run already; pass resume=True to continue it, or choose "
            "another folder."
        )
