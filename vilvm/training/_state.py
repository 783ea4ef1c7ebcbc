"""The state of a run as a checkpoint: written, read, and compared with the run."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vilvm.training.checkpoint as checkpoint
from vilvm._runtime.files import NotWritten, read, write_atomic
from vilvm._runtime.random import rng_state, set_rng_state, set_seed
from vilvm.training._checkpoint_checks import check_state
from vilvm.training._optimizer_checks import counts_of
from vilvm.training._run import Run, Tally, objective_state
from vilvm.training._settings_checks import check_settings
from vilvm.training.history import History

__all__ = ["Checkpoints", "state_dict"]


def state_dict(run: Run, generators: list[Tensor]) -> dict[str, Any]:
    """The state of a run, as a checkpoint holds it.

    Arguments:
        run: at any step.
        generators: the states of torch's generators, the CPU's first, each of shape
            (ranks, bytes).
    """
    state = run.state
    optimizer = run.optimizer.state_dict()
    scheduler = None
    if run.scheduler is not None:
        scheduler = run.scheduler.state_dict()
    stopped = "finished"  # so that an interrupted run continues
    if state.stopped in ("early", "callback"):
        stopped = state.stopped
    return {
        "settings": run.settings,
        "step": state.step,
        "epoch": state.step // run.epoch_steps,
        "position": state.step % run.epoch_steps,
        "model": dict(run.spec.lvm.state_dict()),
        "optimizer": optimizer,
        "counts": counts_of(optimizer),
        "scheduler": scheduler,
        "objective": objective_state(run.spec.objective),
        "objective_start": run.objective_start,
        "rng": [list(g) for g in zip(*generators, strict=True)],  # by rank
        "history": state.history.to_rows(),
        "tally": vars(state.tally),
        "seconds": state.seconds,
        "skipped": state.skipped,
        "best": state.best,
        "best_step": state.best_step,
        "best_bound": state.best_bound,
        "compiled": state.compiles,
        "hooked": state.hooked,
        "stopped": stopped,
    }


class Checkpoints:
    """Saves a run in its folder, and restores it from there.

    Arguments:
        run: before its first step.
    """

    def __init__(self, run: Run):
        self.run = run
        self._saved_at = -1
        self._saved_time = time.monotonic()
        self._resumed_at = -1

    @property
    def due(self) -> bool:
        """Whether the time between two checkpoints has passed."""
        waited = time.monotonic() - self._saved_time
        return self.run.spec.ranks.is_main and waited > self.run.spec.checkpoint_seconds

    def save(self) -> None:
        """Writes checkpoint and history, unless there is no folder or this step is saved.

        Raises:
            CheckpointError: they cannot be written.
        """
        run = self.run
        ranks = self.run.spec.ranks
        step = self.run.state.step
        run.compiled.settle()
        self._saved_time = time.monotonic()
        if run.spec.folder is None or self._saved_at == step:
            return
        device = run.spec.device
        generators = [ranks.gather(g.to(device)[None]).cpu() for g in rng_state(device)]
        if not ranks.is_main:
            self._saved_at = step
            return
        with run.signals.writing():
            try:
                checkpoint.save(
                    run.spec.folder / "checkpoint", step, state_dict(run, generators)
                )
            except OSError as error:
                raise _unwritten(run.spec.folder, step, error) from None
            self._saved_at = step
            self._write_history()

    def write_history(self) -> None:
        """Writes history.csv, which a signal does not interrupt."""
        with self.run.signals.writing():
            self._write_history()

    def _write_history(self) -> None:
        folder = self.run.spec.folder
        if folder is None or not self.run.spec.ranks.is_main:
            return
        file = folder / "history.csv"
        text = self.run.state.history.to_csv()
        # A run that takes no step after it was resumed rewrites nothing.
        if self.run.state.step == self._resumed_at and _has_records(file, text):
            return
        try:
            write_atomic(file, text)
        except NotWritten as error:
            raise checkpoint.CheckpointError(
                f"{file} could not be written ({error.strerror}); the run itself is kept, up to "
                f"step {self._saved_at}. {error.remedy.capitalize()}, and resume."
            ) from None

    def restore(self) -> None:
        """Continues from the newest checkpoint of the folder, if there is one.

        Raises:
            CheckpointError: the checkpoint is damaged, or not of this run.
        """
        folder = self.run.spec.folder
        assert folder is not None
        found = checkpoint.latest(folder / "checkpoint")
        if found is None:
            return
        state = checkpoint.load(found)
        if self.run.spec.ranks.is_main:
            checkpoint.sweep(found.parent)
        check_settings(found, self.run.settings, state)
        check_state(found, state, self.run)
        self._saved_at = self._resumed_at = state["step"]
        _restore_parts(self.run, state)
        _restore_state(self.run, state)
        _restore_generators(self.run, state["rng"])


def _restore_parts(run: Run, state: dict[str, Any]) -> None:
    """Loads model, optimizer, scheduler and objective."""
    run.spec.lvm.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    if run.scheduler is not None:
        run.scheduler.load_state_dict(state["scheduler"])
    if state["objective"] is not None:
        run.spec.objective.load_state_dict(state["objective"])  # type: ignore[attr-defined]
    run.objective_start = state["objective_start"]


def _restore_state(run: Run, state: dict[str, Any]) -> None:
    """Loads the counts, the history and the best parameters."""
    now = run.state
    now.step = state["step"]
    now.history = History.from_rows(state["history"])
    now.tally = Tally(**state["tally"])
    now.seconds = state["seconds"]
    now.skipped = state["skipped"]
    now.best_step = state["best_step"]
    now.best_bound = state["best_bound"]
    now.hooked = now.hooked or state["hooked"]
    now.best = state["best"]
    if now.best:
        now.best = {n: _moved(v, run.spec.device) for n, v in now.best.items()}
    now.stopped = state["stopped"]
    if now.stopped == "early" and not now.out_of_patience(run.spec.patience_steps):
        now.stopped = "finished"  # the new call has more patience
    if run.spec.compile == "auto":
        now.compiles = state[
            "compiled"
        ]  # the choice of the first call; the length may have changed


def _restore_generators(run: Run, generators: list[Any]) -> None:
    """Loads torch's generators; another number of ranks draws new, reproducible noise."""
    ranks = run.spec.ranks
    device = run.spec.device
    if len(generators) == ranks.size:
        set_rng_state(generators[ranks.rank], device)
    else:
        set_seed(ranks.seed(run.spec.seed + 1 + run.state.step), device)


def _moved(value: Any, device: torch.device) -> Any:
    """A tensor on `device`; any other value unchanged."""
    return value.to(device) if isinstance(value, Tensor) else value


def _has_records(file: Path, text: str) -> bool:
    """Whether a history on disk has the epochs and steps of `text`; its seconds may differ."""
    with suppress(OSError, UnicodeDecodeError):
        return _epochs_and_steps(read(file).decode()) == _epochs_and_steps(text)
    return False


def _epochs_and_steps(history: str) -> list[list[str]]:
    return [line.split(",")[:2] for line in history.splitlines()]


def _unwritten(
    folder: Path,
    step: int,
    error: OSError,
) -> checkpoint.CheckpointError:
    """The error of a checkpoint that could not be written, with the last good one."""
    try:
        last = checkpoint.latest(folder / "checkpoint")
    except checkpoint.CheckpointError as other:
        return other
    kept = "there is none before it"
    if last is not None:
        kept = f"the last good one is {last}"
    remedy = "check that folder"
    if isinstance(error, NotWritten):
        remedy = error.remedy
    return checkpoint.CheckpointError(
        f"The checkpoint of step {step} could not be written to {folder} ({error.strerror}); "
        f"{kept}. {remedy.capitalize()}, and resume."
    )
