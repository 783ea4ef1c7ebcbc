"""The history of a training run: a record of numbers at a steady interval."""

import csv
import io
import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, SupportsIndex, overload

import numpy as np

from vilvm._runtime.results import Result, Table, frame_of, table_of

__all__ = ["History", "Record", "next_record", "record_steps"]

# between two records by default, so that they cost little beside the steps
_LEAST_STEPS = 50
_NEVER = 1e18  # steps
_SHOWN = 10  # records that a history prints


@dataclass(frozen=True)
class Record:
    """One row of a history. Bounds are in nats per datum, or of all data together if they share a
    latent.

    Arguments:
        epoch: epochs completed.
        step: steps completed.
        elbo: minus the mean loss of the objective over the steps since the row before (annealed,
            if the objective is).
        validation_elbo: ELBO on the validation data, one sample a datum, with the same noise at
            every row; NaN without validation data.
        validation_se: its standard error over the data.
        rate: KL(q(z | x) ‖ p(z)), on the validation data if there are any, else on the last batch
            with new noise at every row.
        distortion: −E_q log p(x | z), on the same data.
        learning_rate: of the first parameter group, at the last step; NaN if the optimizer has
            none.
        gradient_norm: mean since the row before, before clipping.
        skipped: steps since the row before whose loss or gradient was not finite.
        seconds: of training so far, with validation.
        data_per_second: throughput since the row before, without validation.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> record = vilvm.fit(VAE(6, 2), torch.zeros(64, 6), steps=50).history[-1]
        >>> record.step, record.skipped
        (50, 0)
    """

    epoch: int
    step: int
    elbo: float
    validation_elbo: float
    validation_se: float
    rate: float
    distortion: float
    learning_rate: float
    gradient_norm: float
    skipped: int
    seconds: float
    data_per_second: float


@dataclass(repr=False)
class History(Result):
    """The records of a run: ``history["elbo"]`` is a column, ``history[-1]`` the last record.

    Arguments:
        records: in the order of their steps.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> history = vilvm.fit(VAE(6, 2), torch.zeros(64, 6), steps=150).history
        >>> history["step"].tolist(), history[-1].step, len(history[:2])
        ([50, 100, 150], 150, 2)
    """

    records: list[Record] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    @overload
    def __getitem__(self, column: str) -> np.ndarray: ...

    @overload
    def __getitem__(self, column: SupportsIndex) -> Record: ...

    @overload
    def __getitem__(self, column: slice) -> "History": ...

    def __getitem__(
        self, column: str | SupportsIndex | slice
    ) -> "np.ndarray | Record | History":
        """A column by name, a record by number, or the history of a slice of the records.

        Arguments:
            column: a name, a number or a slice.

        Returns:
            An array of shape (len(history),), a ``Record`` or a ``History``.

        Raises:
            KeyError: there is no such column; the message lists the columns.
            IndexError: there is no such record.
        """
        if isinstance(column, slice):
            return History(self.records[column])
        if not isinstance(column, str):
            return self._record(operator.index(column))
        names = [f.name for f in fields(Record)]
        if column not in names:
            raise KeyError(
                f"History has no column {column!r}; it has {', '.join(names)}."
            )
        return np.array([getattr(record, column) for record in self.records])

    def _record(self, number: int) -> Record:
        if not -len(self) <= number < len(self):
            raise IndexError(f"History has no record {number}; it has {len(self)}.")
        return self.records[number]

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row a record, and the columns of ``Record`` in its units."""
        return frame_of({f.name: self[f.name] for f in fields(Record)})

    def _headline(self) -> Mapping[str, Any]:
        last = self[-1] if len(self) else None
        return {
            "records": len(self),
            "step": getattr(last, "step", 0),
            "elbo": getattr(last, "elbo", math.nan),
        }

    def _contents(self) -> Iterator[str | Table]:
        if len(self) > _SHOWN:
            yield f"The last {_SHOWN} of {len(self):,} records; to_frame() has all."
        yield from table_of(self[-_SHOWN:].to_frame())

    def to_csv(self) -> str:
        """The history as comma-separated values with a header."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([f.name for f in fields(Record)])
        writer.writerows([vars(record).values() for record in self.records])
        return out.getvalue()

    def to_rows(self) -> list[dict[str, Any]]:
        """The records as dicts."""
        return [dict(vars(record)) for record in self.records]

    @classmethod
    def from_rows(cls, rows: list[dict[str, Any]]) -> "History":
        """The history from the output of ``to_rows``."""
        return cls([Record(**row) for row in rows])


def record_steps(validate_every: float | None, epoch_steps: int) -> int:
    """The number of steps between two records.

    Arguments:
        validate_every: the interval in epochs; None for the fewest epochs of at least 50 steps.
        epoch_steps: steps of an epoch.

    Returns:
        At least 1.

    Examples:
        >>> from vilvm.training.history import record_steps
        >>> record_steps(0.5, epoch_steps=400), record_steps(None, epoch_steps=15)
        (200, 60)
    """
    if validate_every is None:
        return epoch_steps * math.ceil(_LEAST_STEPS / epoch_steps)
    return max(1, round(min(validate_every * epoch_steps, _NEVER)))


def next_record(last: int, interval: int) -> int:
    """The step of the record that follows one at step `last`, if patience ends at none before.

    Arguments:
        last: the step of the record before, or 0.
        interval: steps between two records.

    Returns:
        The next multiple of the interval.

    Examples:
        >>> from vilvm.training.history import next_record
        >>> next_record(0, interval=60), next_record(75, interval=60)
        (60, 120)
    """
    return (last // interval + 1) * interval
