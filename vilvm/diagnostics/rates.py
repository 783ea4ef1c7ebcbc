"""Whether model and guide are densities of the same latents: the rate, which cannot be negative,
and the loss that training had.

    rate = E_q[log q(z | x) − log p(z)] = KL(q(z | x) ‖ p(z)) ≥ 0

holds whenever q and p are normalised densities of one z. A rate that is negative beyond its Monte
Carlo error says that they are not: a mask that one of them has and the other has not, a Jacobian
left out, a site scored twice. No bound computed from such a pair is one.

Of a run trained by an ELBO that is not annealed, minus the loss and −(rate + distortion) estimate
one number, the first as Pyro computes it from a single run of the pair, the second as vilvm does
from many samples at once. In the last quarter of the records

    dₜ = (ELBO before record t + ELBO after it) / 2 + rateₜ + distortionₜ

has mean zero, both sides being about the time of the record; where it has not, beyond its noise (a
t-test, the variance doubled, for neighbours share a term), and by more than 0.05 nats and 1 % of
the ELBO, the pair means one thing by itself and another under samples.

Reference: Fixing a Broken ELBO, Alemi et al., 2018 (rate and distortion). The two checks are ours.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri, stdtrit
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_probability, check_seed
from vilvm._runtime.random import seeded
from vilvm.diagnostics._time_budget import TimeBudget, affordable_draws
from vilvm.diagnostics.finding import Finding, Severity
from vilvm.diagnostics.pareto_k import check_weighable
from vilvm.evaluation import Estimate, evaluate
from vilvm.evaluation.evaluate import in_parts
from vilvm.lvm import LatentVariableModel, NotApplicable, fixed_beside
from vilvm.training.result import Fit
from vilvm.weights import Layout, log_weights

__all__ = ["Rates", "rates"]

_ROUNDING = 0.01  # nats by which a rate of zero may come out below it
_LEAST, _PART = 8, 4  # records that are looked at, and the part of them that the last ones are
_NATS, _SHARE = 0.05, 0.01  # by which the two may differ: of the ELBO's size the larger
_PLAIN = ("Trace_ELBO(", "TraceMeanField_ELBO(", "TraceEnum_ELBO(", "TraceGraph_ELBO(")
_MODES = (torch.nn.modules.dropout._DropoutNd, torch.nn.modules.batchnorm._BatchNorm)


@dataclass(frozen=True)
class Rates:
    """The rate of every datum, and what minus the training loss exceeds −(rate + distortion) by.

    Arguments:
        rate: in nats per datum, of all data together if they share a latent.
        index: which data these are, shape (num_data,).
        disagreement: mean and standard error over the last records, in nats per datum; None where
            the history does not log.
        elbo: size of the ELBO in them; NaN likewise.
        degrees: of freedom of its t-test.
        false_alarm: how often a proper pair may be given a warning.
        cut: what was cut short for want of time.
    """

    rate: Estimate
    index: Tensor
    disagreement: tuple[float, float] | None = None
    elbo: float = math.nan
    degrees: int = 0
    false_alarm: float = 0.01
    cut: str = ""

    @property
    def negative(self) -> Tensor:
        """Whether the rate of a datum is below zero beyond its error, shape (num_data,)."""
        z = float(-ndtri(self.false_alarm / 4 / len(self.rate.values)))
        return self.rate.values + z * self.rate.errors < -_ROUNDING

    @property
    def disagrees(self) -> bool:
        """Whether training's ELBO and −(rate + distortion) differ beyond noise and tolerance."""
        if self.disagreement is None:
            return False
        mean, error = self.disagreement
        return abs(mean) > max(
            _NATS,
            _SHARE * abs(self.elbo),
            float(stdtrit(self.degrees, 1 - self.false_alarm / 4)) * error,
        )

    @property
    def finding(self) -> Finding:
        """CRITICAL if a rate, or their mean, is negative, or if training's ELBO was another; else
        OK.
        """
        source = f"KL ≥ 0, by tests of false-alarm rate {self.false_alarm:g}; ours"
        mean, error = self.rate.mean, self.rate.mc_se
        below = mean + float(-ndtri(self.false_alarm / 4)) * error < -_ROUNDING
        if below or bool(self.negative.any()):
            worst = int(self.rate.values.argmin())
            which = (
                f"; {int(self.negative.sum())} of {len(self.index)} data are below zero (least: "
                f"{int(self.index[worst])})"
                if len(self.index) > 1
                else ""
            )
            verdict = (
                f"The rate is {mean:.3g} ± {error:.2g} nats{which}, and no divergence is "
                "negative: guide and model are not densities of the same latents."
            )
            return Finding("Rate", Severity.CRITICAL, verdict, source, _ADVICE)
        if self.disagreement is not None and self.disagrees:
            verdict = (
                f"Training's ELBO exceeds −(rate + distortion) by {self.disagreement[0]:+.3g} ± "
                f"{self.disagreement[1]:.2g} nats per datum in the last records, and "
                "they estimate one number: the pair has another density under many samples than "
                "in one run."
            )
            return Finding("Rate", Severity.CRITICAL, verdict, source, _OTHER)
        return Finding(
            "Rate",
            Severity.OK,
            f"The rate is {mean:.3g} ± {error:.2g} nats, as a divergence may be.",
            source,
        )


_ADVICE = (
    "Look for a mask, a scale or a factor that one of them has and the other has not, or for a "
    "latent that both score otherwise."
)
_OTHER = (
    "Look for dimensions counted from the left or reshaped, which samples move: count from the "
    "right (vilvm.testing.check_lvm names the site)."
)


def rates(
    lvm: LatentVariableModel,
    data: Any,
    *,
    history: Any = None,
    num_samples: int = 200,
    false_alarm: float = 0.01,
    budget: float | None = None,
    seed: int = 0,
) -> Rates:
    """The rate of every datum, which is no divergence if it is negative; and whether training's
    own ELBO agrees with it.

    Arguments:
        lvm: the model and guide.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum a row.
        history: the ``Fit`` of the training; one of an annealed objective, or with validation
            data, tells nothing here.
        num_samples: draws a datum; ten times as many if the data share a latent.
        false_alarm: how often a proper pair may be given a warning.
        budget: seconds after which it makes do with fewer draws.
        seed: of the draws, and of the data's transform.

    Raises:
        NotApplicable: a ContractError: there is no latent that the guide draws.
        ContractError: the guide is degenerate, a prior is flat, or the pair breaks the contract.

    Example:
        >>> import torch
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.diagnostics.rates import rates
        >>> x = torch.randn(50, 4)
        >>> rates(PPCA(4, 2).maximise(x), x).finding.severity.name
        'OK'
    """
    seed = check_seed("rates: seed", seed)
    false_alarm = check_probability("rates: false_alarm", false_alarm)
    num_samples = check_number("rates: num_samples", num_samples, 2)
    clock, fixed, cut = TimeBudget(budget), fixed_beside(lvm, data, seed), ""
    with seeded(seed, fixed.device):
        parts, layout = in_parts(lvm, fixed)
        check_weighable("rates", lvm, layout)
        if not layout.latents:
            raise NotApplicable(
                f"rates: the guide of {type(lvm).__name__} draws no latent, so there is no rate."
            )
        wanted = size = num_samples * (1 if layout.local else 10)
        told = _disagreement(history, lvm, parts[0].x, layout)
    options: dict[str, Any] = {"bounds": ("elbo",), "seed": seed, "progress": False}
    if clock.is_limited:
        size = affordable_draws(
            lambda n: evaluate(lvm, fixed, num_samples=n, **options), 10, wanted, clock.left / 2
        )
        cut = f"{size} of {wanted} draws" if size < wanted else ""
    found = evaluate(lvm, fixed, num_samples=size, **options)
    assert found.rate is not None
    return Rates(
        found.rate, torch.arange(len(found.rate.values)), *told, false_alarm=false_alarm, cut=cut
    )


def _disagreement(
    history: Any, lvm: Any, batch: Any, layout: Layout
) -> tuple[tuple[float, float] | None, float, int]:
    """Mean and standard error of dₜ, the ELBO, and degrees of freedom; None where training had
    another objective, or layers that train otherwise.
    """
    nothing = None, math.nan, 0
    if not isinstance(history, Fit) or not history.settings.get("objective", "").startswith(
        _PLAIN
    ):
        return nothing
    if any(isinstance(m, _MODES) for m in getattr(lvm, "modules", list)()):
        return nothing
    with torch.no_grad():
        weights = log_weights(lvm, batch, 2, layout=layout)
    scales = [
        torch.as_tensor(s).float()
        for s in (*weights.model_scales.values(), *weights.guide_scales.values())
    ]
    # a weight on the rate, so that the loss is another
    if any(s.numel() > 1 or s != scales[0] for s in scales):
        return nothing
    records = list(history.history)[-max(_LEAST, len(history.history) // _PART) :]
    if len(records) < _LEAST or any(math.isfinite(r.validation_elbo) for r in records):
        return nothing
    elbo = np.array([r.elbo for r in records])
    other = np.array([r.rate + r.distortion for r in records])
    d = (elbo[:-1] + elbo[1:]) / 2 + other[:-1]
    if not np.isfinite(d).all():
        return nothing
    error = float(d.std(ddof=1)) * math.sqrt(2 / len(d))
    return (float(d.mean()), error), float(elbo.mean()), len(d) - 1
