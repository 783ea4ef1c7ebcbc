"""The correction of the guide's means and standard deviations by importance weights.

With draws z₁ … z_S of the guide and their Pareto-smoothed weights w₁ … w_S, which sum to one, the
estimates for every component of a latent

    mean:  m̂ = Σ wₛ zₛ,    sd:  ŝ² = Σ wₛ (zₛ − m̂)²

estimate those of the posterior, to the extent that weights can correct. The guide is off by

    shift = (m̂ − mean z) / ŝ,    ratio = sd z / ŝ,

(for a label, whose values have probabilities, by m̂ − mean z alone), in units of the posterior,
which matter to a reader of a table of results. A guide can have a small k̂ and be off, because its
own draws are not weighted. If the data share latents, the weight and these numbers are joint; if
all latents belong to single data, each datum has its own.

To what extent they can depends on the component: wₛ (zₛ − m̂)² has a heavier tail than wₛ,
and if its k̂ is too large, ŝ is too small, however small its standard error. Each component is
therefore judged by the larger k̂ of w and w (z − m̂)². If (z − m̂)² has such a tail without the
weights (a component without a variance), only that of w counts. For a component and a tolerance τ
the verdict is

    uneven     k̂ is above ½ by more than its noise, and above 1 − 1/log₁₀ S, for which S draws are
               too few; or above 0.7, where the smoothed tail is biased, and |x| + 2 se > τ/2: half
               of the tolerance is left for what such a tail hides;
    off        |x| − c · se > τ: beyond the tolerance by more than the noise;
    fine       |x| + 2 se ≤ τ, and k̂ is not above min(1 − 1/log₁₀ S, 0.7);
    undecided  otherwise: more draws are needed.

c is the normal quantile at the false-alarm rate, divided by all 2 K numbers of all data
(Bonferroni) and by two estimates; the noise of k̂ uses it too. Ratios are compared in logarithms.
Components whose test is inconclusive are re-estimated on more and fresh draws, and judged by these
alone, so that the choice of the worst data does not bias them.

References: Yes, but Did It Work?: Evaluating Variational Inference, Yao, Vehtari, Simpson and
Gelman, 2018; Validated Variational Inference via Practical Posterior Error Bounds, Huggins,
Kasprzak, Campbell and Broderick, 2020 (errors of means and standard deviations as what matters);
Pareto Smoothed Importance Sampling, Vehtari, Simpson, Gelman, Yao and Gabry, 2024 (k̂ of an
expectation).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, NamedTuple

import torch
from scipy.special import ndtri
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_probability, optional
from vilvm._runtime.results import Result, frame_of
from vilvm.diagnostics._moments import KEPT, DrawnMoments, Moments
from vilvm.diagnostics._reexamination import FreshDraws, reexamine
from vilvm.diagnostics._tail import good_k, tail_error
from vilvm.diagnostics._time_budget import TimeBudget, affordable_draws
from vilvm.diagnostics._verdicts.correction import correction_finding
from vilvm.diagnostics.finding import Finding
from vilvm.lvm import LatentVariableModel
from vilvm.weights import find_layout
from vilvm.weights.prepared import Part, Prepared, prepared_of

__all__ = ["Correction", "correction"]

_ESTIMATES = 2  # each may raise a false alarm: the first, and the one on fresh draws
_AGAIN = 25  # most data to re-examine, if they can run without the others
_FEWEST, _PILOT = 200, 50  # first draws if time is short, and draws of a timed run
_MORE, _MORE_JOINT = 20, 10  # factors on the number of draws in the re-examination


@dataclass(frozen=True, repr=False)
class Correction(Result):
    """The guide's means and standard deviations beside the corrected ones.

    R is the number of data if every latent belongs to one; it is 1, for all data jointly, if they
    share a latent.

    Arguments:
        names: names of the K components of the latents and of ``pyro.deterministic`` values, such
            as "theta[3]", without constants.
        mean: means of the guide's draws, shape (R, K); NaN where some draw is not finite.
        sd: standard deviations of the guide's draws, shape (R, K).
        corrected_mean: means of the weighted draws, shape (R, K).
        corrected_sd: standard deviations of the weighted draws, shape (R, K).
        shift_se: Monte Carlo standard errors of ``shift``, shape (R, K).
        ratio_se: Monte Carlo standard errors of ``ratio``, shape (R, K).
        k: the larger Pareto k̂ of the weights w and of w (z − m̂)², shape (R, K).
        num_samples: number of draws, shape (R,).
        index: index of each row's datum in the full data set, shape (R,).
        joint: whether the weight is that of all data jointly.
        probabilities: which components are the probability of a label's value, shape (K,).
        false_alarm: probability of a warning for a guide within the tolerances and with no k above
            ½.
        largest_shift: tolerance of the shift, in posterior standard deviations.
        largest_ratio: tolerance of the ratio, as a share.
        largest_change: tolerance of a probability.
        cut: what is missing for lack of time.
        given: whether the draws were given, so that none can be made afresh.
        data_names: name of each datum in the full data set; empty for numbers.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics.correction import correction
        >>> from vilvm.models.ppca import PPCA
        >>> x = torch.randn(9, 4)
        >>> correction(PPCA(4, 1).maximise(x), x).shift.shape
        torch.Size([9, 1])
    """

    names: tuple[str, ...]
    mean: Tensor
    sd: Tensor
    corrected_mean: Tensor
    corrected_sd: Tensor
    shift_se: Tensor
    ratio_se: Tensor
    k: Tensor
    num_samples: Tensor
    index: Tensor
    joint: bool
    probabilities: Tensor
    false_alarm: float = 0.01
    largest_shift: float = 0.1
    largest_ratio: float = 0.1
    largest_change: float = 0.05
    cut: str = ""
    given: bool = False
    data_names: tuple[str, ...] = ()

    @property
    def shift(self) -> Tensor:
        """(m̂ − mean) / ŝ, shape (R, K): the correction of the mean, in posterior standard
        deviations; m̂ − mean for a probability.
        """
        unit = torch.where(self.probabilities, 1.0, self.corrected_sd)
        shift = (self.corrected_mean - self.mean) / unit
        return torch.where(self.corrected_mean == self.mean, 0.0, shift)

    @property
    def ratio(self) -> Tensor:
        """The guide's standard deviation over the corrected one, (R, K); 1 for a probability."""
        is_one = (self.corrected_sd == self.sd) | self.probabilities
        return torch.where(is_one, 1.0, self.sd / self.corrected_sd)

    @property
    def undefined(self) -> Tensor:
        """Which components have draws that are not finite, shape (R, K)."""
        return self.mean.isnan()

    @property
    def uneven(self) -> Tensor:
        """Which components have too heavy a tail to be corrected, shape (R, K)."""
        z = self._quantile()
        noise = self._by_draws(lambda samples: 0.5 + z * tail_error(samples))
        few = self._by_draws(lambda samples: 1 - 1 / math.log10(samples))
        biased = self._by_draws(good_k)
        is_hidden = (self.k > biased) & (self.excess(2.0) > 0.5)
        return (self.k > noise) & ((self.k > few) | is_hidden)

    @property
    def off(self) -> Tensor:
        """Which components are beyond a tolerance by more than the noise, shape (R, K)."""
        return (self.excess(-self._quantile()) > 1) & ~self.uneven

    @property
    def fine(self) -> Tensor:
        """Which components are within the tolerances by two standard errors, shape (R, K)."""
        return (self.excess(2.0) <= 1) & (self.k <= self._by_draws(good_k))

    @property
    def undecided(self) -> Tensor:
        """Which components are neither undefined, uneven, off nor fine, shape (R, K)."""
        return ~(self.undefined | self.uneven | self.off | self.fine)

    @property
    def share(self) -> float:
        """The share of rows with an estimate beyond its tolerance, noise included."""
        return (self.excess() > 1).any(1).double().mean().item()

    def worst(self, which: Tensor, count: int = 3) -> list[tuple[int, int]]:
        """The worst entries of a mask, worst first; one per row unless the weights are joint.

        Arguments:
            which: mask of entries, shape (R, K).
            count: the largest number of entries.

        Returns:
            Entries as (row, component).
        """
        badness = torch.where(
            which, self.excess().nan_to_num(posinf=1e300).clamp(max=1e300), -1.0
        )
        if not self.joint:
            is_worst_of_row = badness == badness.amax(1, keepdim=True)
            badness = torch.where(is_worst_of_row, badness, -1.0)
        order = badness.flatten().argsort(descending=True)[:count].tolist()
        return [divmod(i, len(self.names)) for i in order if badness.flatten()[i] >= 0]

    @property
    def finding(self) -> Finding:
        """WARNING if a component is off, not finite, or cannot be corrected.

        NOTE if more draws are needed to decide.
        """
        return correction_finding(self)

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row a datum and component, or one a component jointly.

        Columns: datum (index in the full data set), name; mean, sd, corrected_mean and
        corrected_sd in the units of the component; shift in posterior standard deviations, ratio,
        and their Monte Carlo errors; k (Pareto k̂).
        """
        rows, names = len(self.index), len(self.names)
        columns: dict[str, Any] = {
            "datum": self.index.repeat_interleave(names),
            "name": list(self.names) * rows,
        }
        for name in (
            *("mean", "sd", "corrected_mean", "corrected_sd"),
            *("shift", "shift_se", "ratio", "ratio_se", "k"),
        ):
            columns[name] = getattr(self, name).flatten()
        return frame_of(columns)

    def excess(self, errors: float = 0.0) -> Tensor:
        """The larger deviation of mean and standard deviation, in units of its tolerance.

        Arguments:
            errors: how many standard errors are added to each deviation.

        Returns:
            Deviations, shape (R, K); 1 is at the tolerance.
        """
        tolerance = torch.where(
            self.probabilities, self.largest_change, self.largest_shift
        )
        shift = (self.shift.abs() + errors * self.shift_se) / tolerance
        logs, error = self.ratio.log(), errors * self.ratio_se / self.ratio
        above = (logs + error) / torch.tensor(1 + self.largest_ratio).log()
        below = (logs - error) / torch.tensor(1 - self.largest_ratio).log()
        return torch.maximum(shift, torch.maximum(above, below))

    def _quantile(self) -> float:
        """The two-sided normal quantile at the false-alarm rate of a single number."""
        numbers = 2 * max(self.mean.numel(), 1)
        return float(-ndtri(self.false_alarm / (2 * _ESTIMATES * numbers)))

    def _by_draws(self, limit: Callable[[int], float]) -> Tensor:
        """A limit on k̂ that depends on the number of draws, shape (R, 1)."""
        return torch.tensor([limit(s) for s in self.num_samples.tolist()])[:, None]


@torch.no_grad()
def correction(
    lvm: LatentVariableModel | Prepared,
    data: Any = None,
    *,
    num_samples: int | None = None,
    batch_size: int | None = None,
    false_alarm: float = 0.01,
    budget: float | None = None,
    seed: int = 0,
) -> Correction:
    """Means and standard deviations of the guide, and their correction by importance weights.

    The weights are joint if the data share a latent; otherwise each datum has its own.

    Arguments:
        lvm: the model and guide; or a ``Prepared``, which holds the data too.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum per row.
        num_samples: draws of the first estimate, at least 1000; by default 50,000 for all data
            jointly, or 1000 per datum. Undecided components are re-examined on 10 (jointly) or 20
            times as many draws if memory allows; with weights per datum, only the worst 25 data.
        batch_size: data per pass, 50 by default, if each has its own latents.
        false_alarm: probability of a warning for a guide within the tolerances and with no k above
            ½.
        budget: seconds; if short, fewer draws are made, see `cut`.
        seed: seed of the draws and of the data's transform.

    Returns:
        Correction, of every component of every latent and deterministic value.

    Raises:
        ValueError: num_samples is below 1000, or false_alarm is not between 0 and 1.
        ContractError: the guide is degenerate, a prior is flat, or the pair breaks the contract.

    Reference: Validated Variational Inference via Practical Posterior Error Bounds, Huggins,
    Kasprzak, Campbell and Broderick, 2020.

    Examples:
        >>> from vilvm.models.eight_schools import EightSchools, eight_schools
        >>> from vilvm.diagnostics import correction
        >>> guide = EightSchools(guide="mean_field")
        >>> correction(guide, eight_schools(), num_samples=1000).names[:2]
        ('mu', 'tau')
    """
    false_alarm = check_probability("correction: false_alarm", false_alarm)
    num_samples = optional(check_number, "correction: num_samples", num_samples, 1000)
    time, cuts = TimeBudget(budget), []
    prepared = prepared_of("correction", lvm, data, batch_size=batch_size, seed=seed)
    prepared.require_weights("correction")
    with prepared.running():
        samples = wanted = num_samples or (1000 if prepared.local else 50_000)
        # Preparing a part and drawing from it use the same generator, so the order matters.
        drawn = [DrawnMoments(prepared.part(i)) for i in range(len(prepared.batches))]
        if time.is_limited:
            samples = _affordable(drawn, wanted, time)
        if samples < wanted:
            cuts.append(f"{samples} of {wanted} draws")
        began = time.left
        found = _estimate(drawn, samples, false_alarm)
        pace = time.pace(began, samples * len(drawn))
        found, is_cut = _reexamined(
            found, _Reestimation(prepared, drawn, time.affords(pace, 0.8))
        )
    if is_cut:
        cuts.append("the re-examination")
    return _without_constants(replace(found, cut=", ".join(cuts)))


def _affordable(drawn: Sequence[DrawnMoments], wanted: int, time: TimeBudget) -> int:
    """Draws that take half of the time, by timed runs of the first batch."""
    seconds = time.left / 2 / len(drawn)
    return max(
        _FEWEST,
        affordable_draws(
            lambda count: drawn[0](max(count, _PILOT)), _PILOT, wanted, seconds
        ),
    )


def _estimate(
    drawn: Sequence[DrawnMoments], samples: int, false_alarm: float
) -> Correction:
    """The correction from `samples` draws per datum."""
    each = [of_part(samples) for of_part in drawn]
    moments = Moments(*(torch.cat(column) for column in zip(*each, strict=True)))
    index = torch.arange(len(moments.k))
    if drawn[0].indices is not None:
        index = torch.cat([of_part.part.index for of_part in drawn])
    return Correction(
        names=drawn[0].names,
        **moments._asdict(),
        num_samples=torch.full((len(moments.k),), samples),
        index=index,
        joint=not drawn[0].layout.local,
        probabilities=drawn[0].probabilities,
        false_alarm=false_alarm,
    )


class _Reestimation(NamedTuple):
    """Estimates some of the rows again.

    Arguments:
        prepared: the pair and its data.
        drawn: the moments of each batch.
        affordable: draws for which there is time.
    """

    prepared: Prepared
    drawn: Sequence[DrawnMoments]
    affordable: float

    @property
    def in_one_batch(self) -> bool:
        """Whether one batch holds all data, so that any rows can be estimated again."""
        return len(self.drawn) == 1

    @property
    def is_possible(self) -> bool:
        """Whether a subset can run; not with both several batches and a subsampled plate."""
        return self.in_one_batch or not self.prepared.layout.subsample

    def moments(self, draws: int, rows: Tensor) -> Moments:
        """The moments of some rows on fresh draws."""
        if self.in_one_batch:
            return self.drawn[0](draws, rows)
        lvm, batch = self.prepared.lvm, self.prepared.data.subset(rows).x
        layout = find_layout(lvm, batch, plate=self.prepared.layout.data_plate)
        return DrawnMoments(Part(lvm, batch, layout))(draws)


def _reexamined(found: Correction, again: _Reestimation) -> tuple[Correction, bool]:
    """The correction with undecided rows re-estimated, and whether time cut the draws."""
    is_decided = found.joint and bool(found.off.any())
    if not found.names or is_decided or not again.is_possible:
        return found, False
    # Above k̂ = ½ a standard error has no meaning.
    unclear = found.undecided | found.uneven | (found.k > 0.5)
    deviation = torch.maximum(found.excess().nan_to_num(posinf=1e300), found.k)
    badness = torch.where(unclear, deviation, -1.0).amax(1)
    samples = int(found.num_samples[0])
    factor = _MORE_JOINT if found.joint else _MORE

    def fresh(rows: Tensor) -> FreshDraws[Moments]:
        held, run = len(rows), _AGAIN  # rows kept, and data run, for each draw
        if again.in_one_batch:
            held, run = len(badness), again.prepared.layout.num_data
        return FreshDraws(
            lambda draws: again.moments(draws, rows),
            wanted=min(samples * factor, KEPT // max(held * len(found.names), run)),
            affordable=again.affordable,
            least=2 * samples,
        )

    most = None if again.in_one_batch else _AGAIN
    new = reexamine(unclear.any(1), badness, most, fresh)
    if new.estimate is None:
        return found, new.is_cut
    moments = {
        name: getattr(found, name).index_copy(0, new.rows, value)
        for name, value in new.estimate._asdict().items()
    }
    num_samples = found.num_samples.index_fill(0, new.rows, new.draws)
    return replace(found, **moments, num_samples=num_samples), new.is_cut


def _without_constants(found: Correction) -> Correction:
    """Leaves out constant components, such as constant deterministic values."""
    varies = ~(found.sd == 0).all(0)
    moments = {name: getattr(found, name)[:, varies] for name in Moments._fields}
    names = tuple(compress(found.names, varies.tolist()))
    return replace(
        found, names=names, probabilities=found.probabilities[varies], **moments
    )
