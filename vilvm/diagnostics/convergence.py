"""Convergence of the optimisation: a test on the last records, and a rule that stops training.

While a bound still rises, it says nothing about the posterior. Two tests are made on the last
records of a run.

Does the ELBO drift? Its slope is tested against its own noise (see ``vilvm.diagnostics._trend``).
Slope × length of the tail estimates the gain of as many epochs again at the same slope.

Do the parameters drift? With a constant learning rate, iterates of stochastic optimisation settle
into a stationary cloud around the optimum. For a window of n iterates cut in two, with means m₁,
m₂ and variances v₁, v₂ of a coordinate,

    R̂² = 1 − 2/n + (m₁ − m₂)² / (v₁ + v₂),

the split R̂ of one chain, which is near one within the cloud and large while the coordinate
travels. The iterates' average is then a better estimate than the last iterate.

References: Robust, Accurate Stochastic Optimization for Variational Inference, Dhaka, Catalina,
Andersen, Magnusson, Huggins and Vehtari, 2020; A Framework for Improving the Reliability of
Black-box Variational Inference, Welandawe, Andersen, Vehtari and Huggins, 2022 (both the rule R̂ <
1.1; that a share of the coordinates is enough is ours, because a network may drift in some
directions for ever).
"""

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from vilvm._runtime.argument_checks import (
    check_number,
    check_positive,
    check_probability,
    check_seed,
    optional,
)
from vilvm._runtime.results import Result, frame_of
from vilvm.diagnostics._trend import LEAST, Trend, trend
from vilvm.diagnostics._verdicts.convergence import convergence_finding
from vilvm.diagnostics.finding import Finding
from vilvm.training.history import History, Record
from vilvm.training.result import Event, Fit

__all__ = ["Converged", "Convergence", "convergence", "split_rhat"]

_FALLEN = (
    0.1  # share of the largest learning rate; below it, the schedule flattens the curve
)
_COORDINATES = 1000


@dataclass(frozen=True, repr=False)
class Convergence(Result):
    """The trend of the ELBO at the end of a run.

    Arguments:
        trend: trend of the ELBO, in nats per datum per epoch; None if there are too few records.
        before: the trend before the learning rate fell; None if it did not fall, or if too few
            records precede its fall.
        epochs: length of the tail, in epochs.
        num_records: number of records in the tail.
        column: the tested column of the history, "validation_elbo" or "elbo".
        fallen: the last learning rate as a share of the largest.
        tolerance: smallest gain that is worth more training, in nats per datum.
        false_alarm: rate at which a level ELBO is called rising, and likewise falling.

    Examples:
        >>> from vilvm.diagnostics.convergence import convergence
        >>> from vilvm.training.history import History
        >>> convergence(History()).finding.severity.name
        'NOTE'
    """

    trend: Trend | None
    before: Trend | None
    epochs: float
    num_records: int
    column: str
    fallen: float
    tolerance: float
    false_alarm: float

    @property
    def gain(self) -> float:
        """Gain of as many epochs again at the present slope, in nats per datum; NaN if unknown."""
        if self.trend is None:
            return float("nan")
        return self.trend.slope * self.epochs

    @property
    def improving(self) -> bool:
        """Whether the ELBO rises, beyond noise, by more than the tolerance over the tail."""
        return self._rises(self.trend) and self.gain > self.tolerance

    @property
    def falling(self) -> bool:
        """Whether the ELBO falls, beyond noise, by more than the tolerance over the tail."""
        if self.trend is None:
            return False
        return self.trend.falling < self.false_alarm and -self.gain > self.tolerance

    @property
    def flattened_by_schedule(self) -> bool:
        """Whether the curve may be level only because the learning rate has fallen."""
        return self.fallen < _FALLEN and (
            self.before is None or self._rises(self.before)
        )

    def _rises(self, found: Trend | None) -> bool:
        return found is not None and found.rising < self.false_alarm

    @property
    def finding(self) -> Finding:
        """WARNING if the ELBO still rises or the training ELBO falls; NOTE if unclear; else OK."""
        return convergence_finding(self)

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row for the tail, and one before the learning rate fell.

        Columns: part, column (of the history), slope with its confidence limits lower and upper
        (nats per datum per epoch), the p-values rising and falling, and correlation. It has no row
        if there are too few records.
        """
        parts = {"tail": self.trend, "before": self.before}
        found = {part: trend for part, trend in parts.items() if trend is not None}
        columns = {
            name: [getattr(trend, name) for trend in found.values()]
            for name in Trend._fields
        }
        return frame_of(
            {"part": list(found), "column": [self.column] * len(found), **columns}
        )


def convergence(
    history: History | Fit,
    *,
    start: int | None = None,
    tolerance: float = 0.05,
    false_alarm: float = 0.01,
) -> Convergence:
    """Tests whether the ELBO levelled off by the end of a run, on the last half of its records.

    The validation ELBO is tested if there is one. If the learning rate has fallen below a tenth of
    its largest, only later records count, because the fall itself raises the ELBO.

    Arguments:
        history: the history of a run, or the result of ``fit``.
        start: records count after this step; by default the end of the KL warm-up of a ``Fit``,
            else 0.
        tolerance: smallest gain over as many epochs again that is worth more training, in nats per
            datum.
        false_alarm: rate at which a level ELBO is called rising, and likewise falling.

    Returns:
        Convergence, with trends in nats per datum per epoch.

    Raises:
        ValueError: tolerance not positive, or false_alarm outside (0, 0.5).

    Reference: A Framework for Improving the Reliability of Black-box Variational Inference,
    Welandawe, Andersen, Vehtari and Huggins, 2022.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.diagnostics.convergence import convergence
        >>> fitted = vilvm.fit(PPCA(data_dim=4, latent_dim=1), 9 * torch.randn(50, 4), steps=800)
        >>> convergence(fitted).finding.severity.name
        'WARNING'
    """
    tolerance = check_positive("convergence: tolerance", tolerance)
    false_alarm = _check_false_alarm("convergence", false_alarm)
    if not isinstance(history, Fit | History):
        raise ValueError(
            f"convergence: history must be a Fit or a History; got a {type(history).__name__}."
        )
    start = optional(check_number, "convergence: start", start, 0)
    if start is None:
        start = _warmup(history)
    records, column = _records(history, start)
    peak = max((r.learning_rate for r in records), default=0.0) or 1.0
    fallen = 1.0
    if records:
        fallen = records[-1].learning_rate / peak
    tail = _tail(records, peak, fallen)
    epochs = 0.0
    if tail:
        epochs = float(np.ptp(_epochs(tail)))
    before = None
    if fallen < _FALLEN:
        before = _trend(
            _last_half([r for r in records if r.learning_rate >= 0.5 * peak]),
            column,
            false_alarm,
        )
    return Convergence(
        trend=_trend(tail, column, false_alarm),
        before=before,
        epochs=epochs,
        num_records=len(tail),
        column=column,
        fallen=fallen,
        tolerance=tolerance,
        false_alarm=false_alarm,
    )


def _check_false_alarm(caller: str, value: Any) -> float:
    number = check_probability(f"{caller}: false_alarm", value)
    if number >= 0.5:
        raise ValueError(f"{caller}: false_alarm must be below 0.5; got {value!r}.")
    return number


def _warmup(history: History | Fit) -> int:
    """The last step at which the objective of a ``Fit`` changes: of a KL warm-up or a capacity."""
    if not isinstance(history, Fit):
        return 0
    match = re.search(
        r"\b(?:warmup|capacity_steps)=(\d+)", history.settings.get("objective", "")
    )
    if match is None:
        return 0
    return int(match.group(1))


def _records(history: History | Fit, start: int) -> tuple[list[Record], str]:
    """The records after `start` with an ELBO, and which ELBO it is."""
    log = history
    if isinstance(log, Fit):
        log = log.history
    records = [r for r in log if r.step > start]
    column = "elbo"
    if any(np.isfinite(r.validation_elbo) for r in records):
        column = "validation_elbo"
    return [r for r in records if np.isfinite(getattr(r, column))], column


def _tail(records: list[Record], peak: float, fallen: float) -> list[Record]:
    """The last half of the records; only those at a low learning rate if there are enough."""
    tail = _last_half(records)
    low = [r for r in records if r.learning_rate < _FALLEN * peak]
    if fallen < _FALLEN and len(low) >= LEAST:
        return [r for r in low if r.step >= tail[0].step]
    return tail


def _last_half(records: list[Record]) -> list[Record]:
    return records[-max(LEAST, len(records) // 2) :]


def _epochs(records: Sequence[Record]) -> np.ndarray:
    """The times of the records, in epochs and fractions of one."""
    # Exact if a record stands at the end of an epoch.
    steps = min((r.step / r.epoch for r in records if r.epoch), default=1.0)
    return np.array([r.step / steps for r in records])


def _trend(records: Sequence[Record], column: str, false_alarm: float) -> Trend | None:
    if len(records) < LEAST:
        return None
    return trend(
        _epochs(records), np.array([getattr(r, column) for r in records]), false_alarm
    )


def split_rhat(iterates: Tensor) -> Tensor:
    """R̂ of the two halves of a window of iterates, for every coordinate; 1 if it does not move.

    Arguments:
        iterates: shape (n, dim); the first is left out if n is odd.

    Returns:
        R̂, float64, shape (dim,).

    Reference: Robust, Accurate Stochastic Optimization for Variational Inference, Dhaka, Catalina,
    Andersen, Magnusson, Huggins and Vehtari, 2020.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics.convergence import split_rhat
        >>> split_rhat(torch.arange(20.0)[:, None]) > 1.1
        tensor([True])
    """
    n = len(iterates) // 2
    first = iterates[-2 * n : -n].double()
    second = iterates[-n:].double()
    within = first.var(0) + second.var(0)
    between = (first.mean(0) - second.mean(0)).square()
    rhat = (1 - 1 / n + between / within).sqrt()
    return torch.where(within + between == 0, torch.ones_like(rhat), rhat)


class Converged:
    """A callback of ``fit`` that stops training once parameters and ELBO have settled.

    The learning rate must be constant. Over the last `window` records, training stops if R̂ <
    `rhat` for at least `share` of the coordinates, and if the ELBO neither rises beyond its noise
    nor gains `tolerance`. At most 1000 parameters are tested, chosen at random. The attributes
    ``rhat_share``, ``gain`` and ``rising`` hold the latest values.

    Arguments:
        window: number of records, at least 16.
        rhat: a coordinate has settled if its R̂ is below this.
        share: share of the coordinates that must have settled.
        tolerance: largest gain of the ELBO over the window, in nats per datum.
        false_alarm: level of the test for a rise.
        start: records count after this step, such as the length of a KL warm-up.
        averaged: whether the parameters become the average of their iterates in the window when
            training stops, which needs memory for `window` copies of them. It is refused with
            validation data, because ``fit`` then restores the best record.
        seed: seed of the choice of coordinates.

    Raises:
        ValueError: an option out of range; or, when called, `averaged` with validation data.

    Reference: A Framework for Improving the Reliability of Black-box Variational Inference,
    Welandawe, Andersen, Vehtari and Huggins, 2022.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.diagnostics.convergence import Converged
        >>> ppca, x = PPCA(data_dim=4, latent_dim=1), torch.randn(50, 4)
        >>> vilvm.fit(ppca, x, steps=100, callbacks=[Converged()]).stopped
        'finished'
    """

    def __init__(
        self,
        window: int = 20,
        *,
        rhat: float = 1.1,
        share: float = 0.75,
        tolerance: float = 0.05,
        false_alarm: float = 0.01,
        start: int = 0,
        averaged: bool = False,
        seed: int = 0,
    ):
        self.window = check_number("Converged: window", window, 2 * LEAST)
        self.rhat = check_positive("Converged: rhat", rhat)
        self.share = check_positive("Converged: share", share)
        if not self.rhat > 1 or not self.share <= 1:
            raise ValueError(
                f"Converged: rhat must exceed 1, and share be at most 1; got rhat={rhat} and "
                f"share={share}."
            )
        self.tolerance = check_positive("Converged: tolerance", tolerance)
        self.false_alarm = _check_false_alarm("Converged", false_alarm)
        self.start = check_number("Converged: start", start, 0)
        self.seed = check_seed("Converged: seed", seed)
        self.averaged = averaged
        self.rhat_share = self.gain = self.rising = float("nan")
        self._iterates: deque[Tensor] = deque(maxlen=self.window)
        self._watched: Tensor | None = None

    @torch.no_grad()
    def __call__(self, event: Event) -> bool:
        """Adds the newest record; returns True if all has settled."""
        newest = event.history.records[-self.window :]
        records = [r for r in newest if r.step > self.start]
        if not records:
            return False
        parameters = self._parameters(event.lvm, records[-1])
        vector = parameters_to_vector(parameters)
        if self.averaged:
            self._iterates.append(vector.clone())
        else:
            self._iterates.append(vector[self._coordinates(vector)])
        if len(self._iterates) < self.window or not self._has_settled(records):
            return False
        if self.averaged:
            vector_to_parameters(torch.stack(list(self._iterates)).mean(0), parameters)
        return True

    def _parameters(self, lvm: Any, newest: Record) -> list[Tensor]:
        if self.averaged and np.isfinite(newest.validation_elbo):
            raise ValueError(
                "Converged: averaged=True is of no use with validation data, because fit restores "
                "the best parameters; leave it out."
            )
        return [p for p in lvm.parameters() if p.requires_grad]

    def _coordinates(self, vector: Tensor) -> Tensor:
        if self._watched is None:
            generator = torch.Generator().manual_seed(self.seed)
            chosen = torch.randperm(len(vector), generator=generator)[:_COORDINATES]
            self._watched = chosen.to(vector.device)
        return self._watched

    def _has_settled(self, records: Sequence[Record]) -> bool:
        column = "elbo"
        if np.isfinite(records[-1].validation_elbo):
            column = "validation_elbo"
        if not all(np.isfinite(getattr(r, column)) for r in records):
            return False
        found = _trend(records, column, self.false_alarm)
        assert found is not None
        iterates = torch.stack(list(self._iterates))
        if self.averaged:
            iterates = iterates[:, self._coordinates(iterates[0])]
        self.rhat_share = float((split_rhat(iterates) < self.rhat).double().mean())
        self.gain = found.slope * float(np.ptp(_epochs(records)))
        self.rising = found.rising
        has_settled = self.rhat_share >= self.share
        return (
            has_settled
            and self.rising > self.false_alarm
            and self.gain < self.tolerance
        )
