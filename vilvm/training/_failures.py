"""The error for a step that failed: the reason, the site and what to do."""

import math

import torch

import vilvm.training.checkpoint as checkpoint
from vilvm._runtime.random import set_rng_state
from vilvm.lvm import ContractError, NonFiniteError
from vilvm.training._layouts import explain_small_batch
from vilvm.training._model_arguments import Call, Called
from vilvm.training._run import Run, RunSpec
from vilvm.training.step import NonFiniteLossError, StepResult
from vilvm.weights import weight_chunks

__all__ = ["is_nonfinite", "last_checkpoint", "nonfinite_step", "refused_step"]

_NO_SITE = (
    "No log-density is NaN, so look for one that is −inf (data that are impossible under the "
    "model), at the gradient, or at the objective."
)
_ONE_DATUM = (
    " The batch holds one datum: if the pair takes statistics over its batch, choose a "
    "batch_size that leaves no single datum over."
)


def is_nonfinite(lvm: torch.nn.Module, error: ContractError | None) -> bool:
    """Whether an error reports, or follows from, numbers that are NaN or infinite."""
    if error is None:
        return False
    if isinstance(error, NonFiniteError):
        return True
    floats = [p for p in lvm.parameters() if p.is_floating_point()]
    return not all(bool(p.isfinite().all()) for p in floats)


def refused_step(
    run: Run,
    error: ValueError,
    noise: list[torch.Tensor],
) -> StepResult:
    """The result of a step that Pyro's checks refused because it is not finite.

    Arguments:
        run: at the step that failed.
        error: of Pyro's checks.
        noise: the states of the generators before the step.

    Raises:
        ContractError: the pair or the data break the contract.
        ValueError: `error`, if no reason is found.
    """
    explained = explain_small_batch(error, run.state.step, run.spec.batches)
    if explained is not error:
        raise explained from None
    found = _fault(run, noise, validate=False)
    if is_nonfinite(run.spec.lvm, found):
        return StepResult(math.nan, math.nan, False)
    raise (found or _fault(run, noise, validate=True) or error) from None


def nonfinite_step(
    run: Run,
    loss: float,
    noise: list[torch.Tensor],
) -> NonFiniteLossError:
    """The error for a step whose loss or gradient is not finite; see ``refused_step``."""
    spec = run.spec
    step = run.state.step
    what = f"the loss is {loss}"
    if math.isfinite(loss):
        what = "the loss is finite, but a gradient is NaN or infinite"
    fault = _fault(run, noise, validate=False)
    if fault is not None:
        site = str(fault)
    elif spec.parallel:
        site = "See the messages of the other ranks."
    else:
        site = _NO_SITE
    if spec.batches.count(step) == 1 < len(spec.batches.data):
        site += _ONE_DATUM
    return NonFiniteLossError(
        f"Step {step + 1} (epoch {1 + step // run.epoch_steps}): {what}. {site} The parameters "
        f"are those after step {step}. {last_checkpoint(spec)}"
    )


def last_checkpoint(spec: RunSpec) -> str:
    """The last good state on disk, and the advice for a run that became non-finite."""
    kept = "There is no checkpoint, because no run_dir was given."
    if spec.folder is not None:
        last = checkpoint.latest(spec.folder / "checkpoint")
        kept = "No checkpoint was written yet."
        if last is not None:
            kept = f"The last good state on disk is {last}."
    return f"{kept} Try a smaller learning rate, clip=..., or nonfinite='skip'."


def _fault(
    run: Run,
    noise: list[torch.Tensor],
    validate: bool,
) -> ContractError | None:
    """The error of one log-weight pass over the current batch with the noise of the step."""
    set_rng_state(noise, run.spec.device)
    try:
        lvm = run.spec.lvm
        batch = run.current_inputs()
        if isinstance(batch, Call):
            lvm = Called(lvm, batch.arguments)
            batch = batch.batch
        layout = run.layouts.of(batch)
        with torch.no_grad():
            next(weight_chunks(lvm, batch, 1, 1, validate=validate, layout=layout))
    except ContractError as error:
        return error
    return None
