"""The rate, which cannot be negative, and its agreement with the loss of training.

    rate = E_q[log q(z | x) − log p(z)] = KL(q(z | x) ‖ p(z)) ≥ 0

holds whenever q and p are normalised densities of one z. A rate that is negative beyond its Monte
Carlo error shows that they are not: only one of them has a mask, a Jacobian is missing, or a site
is scored twice. No bound computed from such a pair is valid.

After training by an ELBO without annealing, minus the loss and −(rate + distortion) estimate one
number: the first as Pyro computes it from a single run of the pair, the second as vilvm does from
many samples at once. In the last quarter of the records

    dₜ = (ELBO before record t + ELBO after it) / 2 + rateₜ + distortionₜ

has mean zero, because both sides are centred at the time of the record. If its mean differs from
zero beyond its noise (a t-test with doubled variance, because neighbours share a term), and by
more than 0.05 nats and 1 % of the ELBO, the density of the pair in one run differs from that under
many samples.

Reference: Fixing a Broken ELBO, Alemi et al., 2018 (rate and distortion). The two checks are ours.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import ndtri, stdtrit
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_probability
from vilvm._runtime.results import Result, frame_of
from vilvm.diagnostics._time_budget import TimeBudget, affordable_draws
from vilvm.diagnostics._verdicts.rates import rates_finding
from vilvm.diagnostics.finding import Finding
from vilvm.evaluation import Estimate, Evaluation, evaluate
from vilvm.lvm import LatentVariableModel, NotApplicable
from vilvm.training.history import Record
from vilvm.training.result import Fit
from vilvm.weights import log_weights
from vilvm.weights.prepared import Prepared, prepared_of

__all__ = ["Rates", "rates"]

_ROUNDING = 0.01  # nats below zero that rounding may cause
_LEAST, _PART = (
    8,
    4,
)  # fewest records to compare; the last 1 / _PART of all are compared
_NATS, _SHARE = 0.05, 0.01  # tolerances: absolute, and as a share of the ELBO
_PLAIN = ("Trace_ELBO(", "TraceMeanField_ELBO(", "TraceEnum_ELBO(", "TraceGraph_ELBO(")
_MODES = (torch.nn.modules.dropout._DropoutNd, torch.nn.modules.batchnorm._BatchNorm)


@dataclass(frozen=True, repr=False)
class Rates(Result):
    """The rate of every datum, and how far the training loss disagrees with it.

    Arguments:
        rate: in nats per datum, or of all data jointly if they share a latent.
        index: index of each datum in the full data set, shape (num_data,).
        disagreement: mean and standard error of dₜ over the last records, in nats per datum; None
            if the history does not allow the comparison.
        elbo: mean ELBO of these records; NaN without a comparison.
        degrees: degrees of freedom of the t-test.
        false_alarm: probability of a warning for a proper pair.
        cut: what is missing for lack of time.
        data_names: name of each datum in the full data set; empty for numbers.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics.rates import Rates
        >>> from vilvm.evaluation import Estimate
        >>> rate = Estimate(torch.tensor([-1.0, 2.0]), torch.tensor([0.1, 0.1]))
        >>> Rates(rate, torch.arange(2)).negative
        tensor([ True, False])
    """

    rate: Estimate
    index: Tensor
    disagreement: tuple[float, float] | None = None
    elbo: float = math.nan
    degrees: int = 0
    false_alarm: float = 0.01
    cut: str = ""
    data_names: tuple[str, ...] = ()

    @property
    def negative(self) -> Tensor:
        """Whether the rate of a datum is below zero beyond its error, shape (num_data,)."""
        z = float(-ndtri(self.false_alarm / 4 / len(self.rate.values)))
        return self.rate.values + z * self.rate.errors < -_ROUNDING

    @property
    def is_negative(self) -> bool:
        """Whether the mean rate, or that of a datum, is below zero beyond its error."""
        z = float(-ndtri(self.false_alarm / 4))
        return self.rate.mean + z * self.rate.mc_se < -_ROUNDING or bool(
            self.negative.any()
        )

    @property
    def disagrees(self) -> bool:
        """Whether training's ELBO and −(rate + distortion) differ beyond noise and tolerance."""
        if self.disagreement is None:
            return False
        mean, error = self.disagreement
        noise = float(stdtrit(self.degrees, 1 - self.false_alarm / 4)) * error
        return abs(mean) > max(_NATS, _SHARE * abs(self.elbo), noise)

    @property
    def finding(self) -> Finding:
        """CRITICAL if a rate or their mean is negative, or disagrees with training; else OK."""
        return rates_finding(self)

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row a datum, or one for all data jointly.

        Columns: datum (index in the full data set), rate and its Monte Carlo error (nats), and
        negative, whether the rate is below zero beyond its error.
        """
        return frame_of(
            {
                "datum": self.index,
                "rate": self.rate.values,
                "error": self.rate.errors,
                "negative": self.negative,
            }
        )


def rates(
    lvm: LatentVariableModel | Prepared,
    data: Any = None,
    *,
    history: Any = None,
    num_samples: int = 200,
    false_alarm: float = 0.01,
    budget: float | None = None,
    seed: int = 0,
) -> Rates:
    """The rate of every datum, and whether training's own ELBO agrees with it.

    Arguments:
        lvm: the model and guide; or a ``Prepared``, which holds the data too.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum per row.
        history: the ``Fit`` of the training; it is ignored if the objective was annealed, or if
            there were validation data.
        num_samples: draws per datum; ten times as many if the data share a latent.
        false_alarm: probability of a warning for a proper pair.
        budget: seconds; if short, fewer draws are made, see `cut`.
        seed: seed of the draws and of the data's transform.

    Returns:
        Rates, in nats per datum.

    Raises:
        NotApplicable: the guide draws no latent. It is a ContractError.
        ContractError: the guide is degenerate, a prior is flat, or the pair breaks the contract.

    Reference: Fixing a Broken ELBO, Alemi, Poole, Fischer, Dillon, Saurous and Murphy, 2018.

    Examples:
        >>> import torch
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.diagnostics.rates import rates
        >>> x = torch.randn(50, 4)
        >>> rates(PPCA(4, 2).maximise(x), x).finding.severity.name
        'OK'
    """
    false_alarm = check_probability("rates: false_alarm", false_alarm)
    num_samples = check_number("rates: num_samples", num_samples, 2)
    time, cut = TimeBudget(budget), ""
    prepared = prepared_of("rates", lvm, data, seed=seed)
    prepared.require_weights("rates")
    if not prepared.layout.latents:
        raise NotApplicable(
            f"rates: the guide of {type(prepared.lvm).__name__} draws no latent, so there is no "
            "rate."
        )
    if not prepared.local:
        num_samples *= 10
    size = num_samples
    disagreement = _disagreement(history, prepared)

    def run(draws: int) -> Evaluation:
        return evaluate(prepared, bounds=("elbo",), num_samples=draws, progress=False)

    if time.is_limited:
        size = affordable_draws(run, 10, num_samples, time.left / 2)
    if size < num_samples:
        cut = f"{size} of {num_samples} draws"
    rate = run(size).rate
    assert rate is not None
    index = torch.arange(len(rate.values))
    return Rates(rate, index, *disagreement, false_alarm=false_alarm, cut=cut)


class _Disagreement(NamedTuple):
    """Mean and standard error of dₜ, the mean ELBO, and degrees of freedom."""

    mean_and_error: tuple[float, float] | None = None
    elbo: float = math.nan
    degrees: int = 0


def _disagreement(history: Any, prepared: Prepared) -> _Disagreement:
    """dₜ over the last records; empty if training cannot be compared."""
    if (
        not _is_plain(history)
        or _trains_otherwise(prepared.lvm)
        or _is_tempered(prepared)
    ):
        return _Disagreement()
    records = list(history.history)[-max(_LEAST, len(history.history) // _PART) :]
    d, elbo = _differences(records)
    if not len(d) or not np.isfinite(d).all():
        return _Disagreement()
    error = float(d.std(ddof=1)) * math.sqrt(2 / len(d))
    return _Disagreement((float(d.mean()), error), elbo, len(d) - 1)


def _differences(records: list[Record]) -> tuple[np.ndarray, float]:
    """dₜ and the mean ELBO; dₜ is empty for too few records or with validation data."""
    if len(records) < _LEAST or any(math.isfinite(r.validation_elbo) for r in records):
        return np.array([]), math.nan
    elbo = np.array([r.elbo for r in records])
    loss = np.array([r.rate + r.distortion for r in records])
    return (elbo[:-1] + elbo[1:]) / 2 + loss[:-1], float(elbo.mean())


def _is_plain(history: Any) -> bool:
    """Whether the objective of the training is an ELBO of Pyro, without annealing."""
    if not isinstance(history, Fit):
        return False
    return history.settings.get("objective", "").startswith(_PLAIN)


def _trains_otherwise(lvm: Any) -> bool:
    """Whether layers such as dropout behave differently in training."""
    return any(isinstance(m, _MODES) for m in getattr(lvm, "modules", list)())


def _is_tempered(prepared: Prepared) -> bool:
    """Whether sites are scaled differently, so that the loss weighs the rate."""
    with torch.no_grad(), prepared.drawing():
        weights = log_weights(
            prepared.lvm, prepared.batches[0].x, 2, layout=prepared.layout
        )
    scales = [*weights.model_scales.values(), *weights.guide_scales.values()]
    scales = [torch.as_tensor(s).float() for s in scales]
    return any(s.numel() > 1 or s != scales[0] for s in scales)
