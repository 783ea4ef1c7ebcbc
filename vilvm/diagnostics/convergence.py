"""Whether the optimisation itself has converged: by the tail of the ELBO, as a diagnosis, and of
the parameters too, as a stopping rule.

A bound says nothing of the posterior while it is still climbing. Two questions are asked of the
last records of a run.

Does the ELBO drift? Its slope is tested against its own noise (see ``vilvm.diagnostics._trend``),
and weighed: slope × length of the tail is what as many epochs again would bring, were nothing to
flatten.

Do the parameters drift? With a constant learning rate, iterates of stochastic optimisation settle
into a stationary cloud around the optimum. Of a window of n iterates cut in two, with means m₁, m₂
and variances v₁, v₂ of a coordinate,

    R̂² = 1 − 2/n + (m₁ − m₂)² / (v₁ + v₂),

the split R̂ of one chain, which is near one within the cloud and large while the coordinate
travels. The iterates' average is then a better estimate than the last iterate.

References: Robust, Accurate Stochastic Optimization for Variational Inference, Dhaka, Catalina,
Andersen, Magnusson, Huggins and Vehtari, 2020; A Framework for Improving the Reliability of
Black-box Variational Inference, Welandawe, Andersen, Vehtari and Huggins, 2022 (both the rule R̂ <
1.1; that a share of the coordinates is enough is ours, for a network has directions in which it
may drift for ever).
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
)
from vilvm.diagnostics._trend import LEAST, Trend, trend
from vilvm.diagnostics.finding import Finding, Severity
from vilvm.training.history import History, Record
from vilvm.training.result import Event, Fit

__all__ = ["Converged", "Convergence", "convergence", "split_rhat"]

_FALLEN = 0.1  # of the largest learning rate: below it, a curve flattens by itself
_COORDINATES = 1000


@dataclass(frozen=True)
class Convergence:
    """What ``convergence`` found of the tail of a history.

    Arguments:
        trend: of the ELBO, in nats per datum per epoch; None if there are too few records.
        before: likewise of the records before the learning rate fell; None if it did not fall, or
            too few are before.
        epochs: that the tail takes.
        num_records: of the tail.
        column: of the history that was looked at, "validation_elbo" or "elbo".
        fallen: the last learning rate as a share of the largest.
        tolerance: the gain that is worth training on for, in nats per datum.
        false_alarm: with which a level ELBO is said to rise (and as often, to fall).
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
        """What as many epochs again as the tail takes would bring at the present slope, in nats
        per datum; NaN if unknown.
        """
        return float("nan") if self.trend is None else self.trend.slope * self.epochs

    @property
    def improving(self) -> bool:
        """Whether the ELBO rises, beyond noise, by more than the tolerance over the tail."""
        return self._rises(self.trend) and self.gain > self.tolerance

    @property
    def falling(self) -> bool:
        """Whether the ELBO falls, beyond noise, by more than the tolerance over the tail."""
        return (
            self.trend is not None
            and self.trend.falling < self.false_alarm
            and -self.gain > self.tolerance
        )

    def _rises(self, found: Trend | None) -> bool:
        return found is not None and found.rising < self.false_alarm

    @property
    def finding(self) -> Finding:
        """WARNING if the ELBO is still improving, or the training ELBO falls; NOTE if that cannot
        be told; else OK.
        """
        severity, verdict, advice = self._judged()
        return Finding(
            name="Convergence of the optimisation",
            severity=severity,
            verdict=verdict,
            source=f"one-sided trend test with false-alarm rate {self.false_alarm:g}; gain above "
            f"{self.tolerance:g} nats per datum, ours",
            advice=advice,
        )

    def _judged(self) -> tuple[Severity, str, str]:
        if self.trend is None:
            return (
                Severity.NOTE,
                f"{self.num_records} records are too few to tell (at least {LEAST} are needed).",
                "Train longer.",
            )
        of = "validation ELBO" if self.column == "validation_elbo" else "ELBO"
        last = f"over the last {self.epochs:.3g} epochs ({self.num_records} records)"
        if self.improving:
            verdict = (
                f"The {of} is still improving by about {self.trend.slope:.2g} nats per datum per "
                f"epoch {last}; as many again might bring "
                f"about {self.gain:.2g} nats."
            )
            return Severity.WARNING, verdict, "Train longer, or with a larger learning rate."
        if self.falling:
            verdict = (
                f"The {of} falls by about {-self.trend.slope:.2g} nats per datum per epoch {last}."
            )
            if self.column == "validation_elbo":
                return (
                    Severity.NOTE,
                    verdict,
                    "The model overfits; fit keeps the parameters of the best record "
                    "(patience=... stops there).",
                )
            return (
                Severity.WARNING,
                verdict,
                "Lower the learning rate; or, if this is a KL warm-up, let records count after "
                "its end (start=...).",
            )
        hidden = max(self.trend.upper * self.epochs, 0.0)
        if hidden > 20 * self.tolerance:
            verdict = (
                f"The {of} shows no trend beyond its noise {last}, in which a gain of up to "
                f"{hidden:.2g} nats per datum over as many again would not show."
            )
            return (
                Severity.NOTE,
                verdict,
                "Train longer, or with larger batches or a lower learning rate at the end, and "
                "look again.",
            )
        verdict = (
            f"The {of} has levelled off {last}; as many again would bring no more than "
            f"{hidden:.2g} nats per datum."
        )
        if self.fallen < _FALLEN and (self.before is None or self._rises(self.before)):
            verdict += (
                f" But the learning rate had fallen to {self.fallen:.2g} of its largest, which "
                "levels off any curve"
                + (
                    "."
                    if self.before is None
                    else f"; before, it was gaining {self.before.slope:.2g} nats per datum per "
                    "epoch."
                )
            )
            return (
                Severity.NOTE,
                verdict,
                "See whether a schedule of twice the length ends higher.",
            )
        return Severity.OK, verdict, ""


def _false_alarm(who: str, value: Any) -> float:
    number = check_probability(f"{who}: false_alarm", value)
    if number >= 0.5:
        raise ValueError(f"{who}: false_alarm must be below 0.5; got {value!r}.")
    return number


def convergence(
    history: History | Fit,
    *,
    start: int | None = None,
    tolerance: float = 0.05,
    false_alarm: float = 0.01,
) -> Convergence:
    """Whether the ELBO had levelled off when a run ended, by the last half of its records.

    The validation ELBO is looked at where there is one. Where the learning rate has fallen below a
    tenth of its largest, the tail is what came after, for a falling learning rate lifts the ELBO
    by itself.

    Arguments:
        history: of a run, or what ``fit`` returned.
        start: first step of which records count; by default the end of the KL warm-up that a
            ``Fit`` tells of, else 0.
        tolerance: gain over as many epochs again as the tail takes that is worth training on for,
            in nats per datum.
        false_alarm: rate at which a level ELBO is said to rise, and to fall.

    Returns:
        Convergence.

    Raises:
        ValueError: tolerance not positive, or false_alarm outside (0, 0.5).

    Example:
        >>> import torch, vilvm
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.diagnostics.convergence import convergence
        >>> fitted = vilvm.fit(PPCA(data_dim=4, latent_dim=1), 9 * torch.randn(50, 4), steps=800)
        >>> convergence(fitted).finding.severity.name
        'WARNING'
    """
    tolerance, false_alarm = (
        check_positive("convergence: tolerance", tolerance),
        _false_alarm("convergence", false_alarm),
    )
    if not isinstance(history, Fit | History):
        raise ValueError(
            f"convergence: history must be a Fit or a History; got a {type(history).__name__}."
        )
    start = _warmup(history) if start is None else check_number("convergence: start", start, 0)
    log = history.history if isinstance(history, Fit) else history
    records = [r for r in log if r.step > start]
    column = "validation_elbo" if any(np.isfinite(r.validation_elbo) for r in records) else "elbo"
    records = [r for r in records if np.isfinite(getattr(r, column))]
    peak = max((r.learning_rate for r in records), default=0.0) or 1.0
    low = [r for r in records if r.learning_rate < _FALLEN * peak]
    fallen = records[-1].learning_rate / peak if records else 1.0
    tail = records[-max(LEAST, len(records) // 2) :]
    if fallen < _FALLEN and len(low) >= LEAST:
        tail = [r for r in low if r.step >= tail[0].step]
    high = [r for r in records if r.learning_rate >= 0.5 * peak]
    found = _trend(tail, column, false_alarm)
    return Convergence(
        trend=found,
        before=_trend(high[-max(LEAST, len(high) // 2) :], column, false_alarm)
        if fallen < _FALLEN
        else None,
        epochs=float(np.ptp(_epochs(tail))) if tail else 0.0,
        num_records=len(tail),
        column=column,
        fallen=fallen,
        tolerance=tolerance,
        false_alarm=false_alarm,
    )


def _warmup(history: History | Fit) -> int:
    told = (
        re.search(r"\bwarmup=(\d+)", history.settings.get("objective", ""))
        if isinstance(history, Fit)
        else None
    )
    return int(told.group(1)) if told else 0


def _epochs(records: Sequence[Record]) -> np.ndarray:
    """When each record was made, in epochs and parts of one."""
    steps = next((r.step / r.epoch for r in records if r.epoch), 1.0)
    return np.array([r.step / steps for r in records])


def _trend(records: Sequence[Record], column: str, false_alarm: float) -> Trend | None:
    if len(records) < LEAST:
        return None
    return trend(_epochs(records), np.array([getattr(r, column) for r in records]), false_alarm)


def split_rhat(iterates: Tensor) -> Tensor:
    """R̂ of the two halves of a window of iterates, for every coordinate; 1 for one that does not
    move.

    Arguments:
        iterates: shape (n, dim); of an odd number, the first is left out.

    Returns:
        Shape (dim,), float64.
    """
    n = len(iterates) // 2
    first, second = iterates[-2 * n : -n].double(), iterates[-n:].double()
    within = first.var(0) + second.var(0)
    between = (first.mean(0) - second.mean(0)).square()
    rhat = (1 - 1 / n + between / within).sqrt()
    return torch.where(within + between == 0, torch.ones_like(rhat), rhat)


class Converged:
    """A callback of ``fit`` that stops training once parameters and ELBO have settled, for a
    constant learning rate.

    It looks at the last `window` records, and answers yes if R̂ < `rhat` for at least `share` of
    the coordinates, and the ELBO neither rises beyond its noise nor by more than `tolerance` over
    the window. Of more than a thousand parameters a random thousand is watched. What it saw last
    is in ``rhat_share``, ``gain`` and ``rising``.

    Arguments:
        window: records looked at, at least 16.
        rhat: below which a coordinate has settled.
        share: of the coordinates that must have.
        tolerance: in nats per datum.
        false_alarm: of the test for a rise.
        start: first step of which records count, such as the length of a KL warm-up.
        averaged: whether the parameters become the average of their iterates in the window when
            training stops, which needs memory for `window` copies of them; not with validation
            data, for ``fit`` then puts back those of the best record.
        seed: of the coordinates watched.

    Raises:
        ValueError: an option out of range; or, when called, `averaged` with validation data.

    Example:
        >>> import torch, vilvm
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.diagnostics.convergence import Converged
        >>> rule = Converged()
        >>> fitted = vilvm.fit(PPCA(data_dim=4, latent_dim=1), torch.randn(50, 4), steps=100, callbacks=[rule])
        >>> fitted.stopped
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
        window = check_number("Converged: window", window, 2 * LEAST)
        rhat, share = (
            check_positive("Converged: rhat", rhat),
            check_positive("Converged: share", share),
        )
        if not rhat > 1 or not share <= 1:
            raise ValueError(
                f"Converged: rhat must exceed 1, and share be at most 1; got rhat={rhat} and "
                f"share={share}."
            )
        tolerance, false_alarm = (
            check_positive("Converged: tolerance", tolerance),
            _false_alarm("Converged", false_alarm),
        )
        start, seed = (
            check_number("Converged: start", start, 0),
            check_seed("Converged: seed", seed),
        )
        self.window, self.rhat, self.share, self.tolerance = window, rhat, share, tolerance
        self.false_alarm, self.start, self.averaged, self.seed = false_alarm, start, averaged, seed
        self.rhat_share = self.gain = self.rising = float("nan")
        self._iterates: deque[Tensor] = deque(maxlen=window)
        self._watched: Tensor | None = None

    @torch.no_grad()
    def __call__(self, event: Event) -> bool:
        """Takes in the newest record; True if all has settled."""
        records = [r for r in event.history if r.step > self.start][-self.window :]
        if not records:
            return False
        parameters = self._parameters(event.lvm, records[-1])
        vector = parameters_to_vector(parameters)
        self._iterates.append(
            vector.clone() if self.averaged else vector[self._coordinates(vector)]
        )
        if len(self._iterates) < self.window or not self._has_settled(records):
            return False
        if self.averaged:
            vector_to_parameters(torch.stack(list(self._iterates)).mean(0), parameters)
        return True

    def _parameters(self, lvm: Any, newest: Record) -> list[Tensor]:
        if self.averaged and np.isfinite(newest.validation_elbo):
            raise ValueError(
                "Converged: averaged=True is of no use with validation data, for fit puts back "
                "the best parameters."
            )
        return [p for p in lvm.parameters() if p.requires_grad]

    def _coordinates(self, vector: Tensor) -> Tensor:
        if self._watched is None:
            generator = torch.Generator().manual_seed(self.seed)
            self._watched = torch.randperm(len(vector), generator=generator)[:_COORDINATES].to(
                vector.device
            )
        return self._watched

    def _has_settled(self, records: Sequence[Record]) -> bool:
        column = "validation_elbo" if np.isfinite(records[-1].validation_elbo) else "elbo"
        if not all(np.isfinite(getattr(r, column)) for r in records):
            return False
        found = _trend(records, column, self.false_alarm)
        assert found is not None
        iterates = torch.stack(list(self._iterates))
        self.rhat_share = float(
            (
                split_rhat(
                    iterates[:, self._coordinates(iterates[0])] if self.averaged else iterates
                )
                < self.rhat
            )
            .double()
            .mean()
        )
        self.gain, self.rising = found.slope * float(np.ptp(_epochs(records))), found.rising
        return (
            self.rhat_share >= self.share
            and self.rising > self.false_alarm
            and self.gain < self.tolerance
        )
