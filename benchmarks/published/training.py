"""Trains a row: its schedule, or a share of it, from the last checkpoint, for a limited time."""

import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import vilvm
from benchmarks.published.rows import Row
from vilvm.data import Data
from vilvm.data.datasets import Dataset
from vilvm.objectives import Annealed
from vilvm.training import Event

__all__ = ["Deadline", "train", "training_data"]


class Deadline:
    """A callback that interrupts training after some hours, as Ctrl-C does.

    Training can then be continued; a callback that returns True would end it for good.

    Arguments:
        hours: from now on.
    """

    def __init__(self, hours: float):
        self._end = time.monotonic() + 3600 * hours

    @property
    def passed(self) -> bool:
        """Whether the hours have passed."""
        return time.monotonic() > self._end

    def __call__(self, event: Event) -> None:
        if self.passed:
            signal.raise_signal(signal.SIGTERM)


def train(
    row: Row,
    lvm: vilvm.LatentVariableModel,
    data: Dataset,
    folder: Path,
    *,
    deadline: Deadline,
    share: float = 1.0,
    device: str = "cpu",
    seed: int = 0,
) -> vilvm.Fit:
    """Trains the model of a row in its folder.

    Arguments:
        row: the row.
        lvm: its model, at its start.
        data: its data.
        folder: of the checkpoints.
        deadline: training stops at the end of an epoch after it, and can be continued.
        share: of the schedule: all its lengths are multiplied by this.
        device: "cpu" or "cuda".
        seed: of the training.

    Returns:
        The result; `stopped` is "interrupted" if the schedule is not complete.
    """
    train_data = training_data(row, data)
    scaled = partial(_scaled, share * -(-len(train_data) // row.schedule.batch))
    return vilvm.fit(
        lvm,
        train_data,
        objective=_objective(row, scaled),
        optimizer=partial(torch.optim.Adam, lr=row.schedule.rate, eps=row.schedule.eps),
        scheduler=_scheduler(row, scaled),
        steps=scaled(row.schedule.epochs),
        batch_size=row.schedule.batch,
        validation=data.validation if row.held_out else None,
        patience=row.schedule.patience and _scaled(share, row.schedule.patience),
        device=device,
        seed=seed,
        run_dir=folder,
        resume=True,
        checkpoint_seconds=60.0,
        callbacks=[deadline],
    )


def training_data(row: Row, data: Dataset) -> Data:
    """The training data of a row, with the validation data unless these are held out.

    Arguments:
        row: the row.
        data: its data.
    """
    if row.held_out:
        return data.train
    both = torch.cat([data.train.x, data.validation.x])
    return replace(data.train, x=both, labels=None)


def _scaled(factor: float, epochs: int) -> int:
    """Epochs of the full schedule as steps, or as epochs of a share of it; at least one."""
    return max(1, round(factor * epochs))


def _objective(row: Row, scaled: Callable[[int], int]) -> Any:
    objective = row.objective()
    if not row.schedule.warmup:
        return objective
    return Annealed(objective, scaled(row.schedule.warmup))


def _scheduler(row: Row, scaled: Callable[[int], int]) -> Any:
    if not row.schedule.milestones:
        return None
    return partial(
        torch.optim.lr_scheduler.MultiStepLR,
        milestones=[scaled(epoch) for epoch in row.schedule.milestones],
        gamma=row.schedule.factor,
    )
