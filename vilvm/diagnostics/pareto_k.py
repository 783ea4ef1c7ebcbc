"""Pareto k̂: how heavy the tail of a guide's importance weights is, datum by datum.

For weights w = p(x, z) / q(z | x), z ~ q, moments exist up to order 1/k, where k is the shape of
the generalised Pareto distribution that their largest values follow. It is fitted to the 3√S
largest of S weights, which are then replaced by its quantiles (Pareto-smoothed importance
sampling). With k < ½ weights have a variance; above

    k̂ > min(1 − 1/log₁₀ S, 0.7)

S draws are too few for an estimate to be near its target, and the guide cannot replace the
posterior. A known case: for q = N(m, s²) and p = N(m, σ²) with s < σ, k = 1 − s²/σ²; with s ≥
σ the weights are bounded.

Each datum has its own weight. The joint weight of all data, their product, has a tail that grows
with their number for any guide; it is used only if the data share a latent, where there is no
other.

k̂ is noisy: with M values in the tail its standard error is about (1 + k)/√M · M/(M + 10), 0.14
for k = ½ and S = 1000. Among many data, some are above the threshold by chance. So the hundred
worst with k̂ > ½ are re-examined: they share a million draws (a quarter, for a joint weight), in
repeats of 10,000 (of S, if that is more), and the k̂ of the repeats are averaged. One fit to all
draws would follow the tail further than a sample of S draws reaches. If at most half remain above
½, these are re-examined once more. An alarm is a test on the draws of one re-examination.
Its hypothesis, that none of these data has k > 0.7, is rejected if k̂ is above for more of them
than fair coins would show heads, or for one by more than noise would make the largest of so many.
Each has a quarter of the stated false-alarm rate (of two re-examinations), the second after
Bonferroni over the data. The alarm is critical if a quarter of all data, or the only one, are
above.

References: Pareto Smoothed Importance Sampling, Vehtari, Simpson, Gelman, Yao and Gabry, 2024;
Yes, but Did It Work?: Evaluating Variational Inference, Yao, Vehtari, Simpson and Gelman, 2018.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from scipy.special import bdtrc, ndtri
from torch import Tensor

from vilvm._compile import Compile, check_compile, worth_compiling
from vilvm._runtime.argument_checks import check_number, check_probability
from vilvm._runtime.results import Result, frame_of
from vilvm.diagnostics._reexamination import FreshDraws, reexamine
from vilvm.diagnostics._tail import good_k, tail_error
from vilvm.diagnostics._time_budget import TimeBudget, affordable_draws, seconds_of
from vilvm.diagnostics._verdicts.pareto_k import pareto_k_finding
from vilvm.diagnostics.finding import Finding
from vilvm.diagnostics.psis import psis
from vilvm.evaluation.sample_passes import WORTH_COMPILING, SamplePasses
from vilvm.lvm import LatentVariableModel
from vilvm.weights import log_weights
from vilvm.weights.prepared import Part, Prepared, prepared_of

__all__ = ["ParetoK", "Recheck", "pareto_k"]

_LEAST, _PILOT = 100, 25  # fewest draws for k̂, and draws of a timed run
_HALF = 0.5  # k above which weights have no variance
_DRAWS, REPEAT = 1_000_000, 10_000  # draws of a re-examination, and fewest of a repeat
_JOINT = 4  # cost of a joint draw of all data, relative to a draw of one datum
_RECHECKS = 2  # re-examinations at most
# draws × data per pass for a joint weight, whose model is seldom a network
JOINT_ROWS = 400_000


class Recheck(NamedTuple):
    """Pareto k̂ of some of the data, re-examined on fresh draws.

    Arguments:
        k: k̂ of each, the mean over repeats, float64, shape (M,).
        ess: effective sample size of the smoothed weights of a repeat, the mean, shape (M,).
        place: positions of these data in ``ParetoK.k``, shape (M,).
        num_samples: number of draws of a repeat.
        repeats: number of independent repeats for each datum.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics.pareto_k import Recheck
        >>> k = torch.tensor([0.9, 0.2])
        >>> Recheck(k, k, torch.arange(2), 10_000, 5).above
        tensor([ True, False])
    """

    k: Tensor
    ess: Tensor
    place: Tensor
    num_samples: int
    repeats: int

    @property
    def above(self) -> Tensor:
        """Whether k̂ is above the threshold for the draws of a repeat, shape (M,)."""
        return self.k > good_k(self.num_samples)

    def is_beyond_chance(self, false_alarm: float) -> bool:
        """Whether the test rejects that none of these data has k above the threshold."""
        num, limit = len(self.k), good_k(self.num_samples)
        error = tail_error(self.num_samples, limit) / math.sqrt(self.repeats)
        largest = limit + error * -ndtri(false_alarm / 2 / num)
        too_many = bdtrc(int(self.above.sum()) - 1, num, 0.5) < false_alarm / 2
        return bool(too_many or self.k.max().item() > largest)


@dataclass(frozen=True, repr=False)
class ParetoK(Result):
    """Pareto k̂ of a guide.

    Arguments:
        k: k̂ of each datum, float64, shape (num_data,); of all data jointly, shape (1,), if they
            share a latent.
        ess: effective sample size of the smoothed weights, from 0 to num_samples, shaped as `k`.
        index: index of each datum in the full data set, shaped as `k`.
        num_samples: S, the number of draws per datum.
        joint: whether the weight is that of all data jointly.
        false_alarm: probability of a warning for a guide of which no datum has k > 0.7.
        rechecks: re-examinations of data with k̂ > ½, each on fresh draws; alarms are based on
            them.
        cut: what is missing for lack of time.
        given: whether the draws were given, so that none can be made afresh; then k̂ above the
            threshold is a warning without re-examination.
        data_names: name of each datum in the full data set; empty for numbers.

    Examples:
        >>> import torch
        >>> from vilvm.diagnostics.pareto_k import ParetoK
        >>> k = torch.tensor([0.1, 0.3])
        >>> ParetoK(k, k, torch.arange(2), 1000, joint=False).worst(1)[0][0]
        1
    """

    k: Tensor
    ess: Tensor
    index: Tensor
    num_samples: int
    joint: bool
    false_alarm: float = 0.01
    rechecks: tuple[Recheck, ...] = ()
    cut: str = ""
    given: bool = False
    data_names: tuple[str, ...] = ()

    @property
    def threshold(self) -> float:
        """The k̂ up to which so many draws are enough: min(1 − 1/log₁₀ S, 0.7)."""
        return good_k(self.num_samples)

    @property
    def share(self) -> float:
        """The share of data above the threshold, before re-examination."""
        return (self.k > self.threshold).double().mean().item()

    @property
    def is_beyond_chance(self) -> bool:
        """Whether a re-examination rejects that no datum has k above the threshold.

        Without one, for lack of time, the first draws reject it at a tenth of the rate.
        """
        rate = self.false_alarm / _RECHECKS
        if self.is_unconfirmed:
            return self._first.is_beyond_chance(rate / 10)
        return any(recheck.is_beyond_chance(rate) for recheck in self.rechecks)

    @property
    def is_unconfirmed(self) -> bool:
        """Whether there was no time to re-examine data above the threshold."""
        return not self.rechecks and not self.given and self.share > 0

    @property
    def _first(self) -> Recheck:
        """The first draws, as an examination."""
        place = torch.arange(len(self.k))
        return Recheck(self.k, self.ess, place, self.num_samples, repeats=1)

    @property
    def confirmed(self) -> float:
        """The share of data above the threshold also in the last re-examination.

        The re-examined data stand for all with k̂ > ½. Without a re-examination, the share in the
        first draws, if it is beyond chance.
        """
        if not self.rechecks:
            return self.share if self.is_unconfirmed and self.is_beyond_chance else 0.0
        above = self.rechecks[-1].above.sum().item() / len(self.rechecks[0].k)
        return above * (self.k > _HALF).double().mean().item()

    @property
    def latest(self) -> Tensor:
        """The latest k̂ of each datum, shape (num_data,)."""
        k = self.k.clone()
        for recheck in self.rechecks:
            k[recheck.place] = recheck.k
        return k

    def worst(self, count: int = 10) -> list[tuple[int, float]]:
        """The data of the largest latest k̂, worst first, as (index, k̂)."""
        latest = self.latest
        order = latest.argsort(descending=True)[:count]
        return [
            (int(i), k.item())
            for i, k in zip(self.index[order], latest[order], strict=True)
        ]

    @property
    def finding(self) -> Finding:
        """CRITICAL or WARNING if the guide misses part of the posterior; NOTE if k̂ > ½."""
        return pareto_k_finding(self)

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row a datum, or one for all data jointly.

        Columns: datum (index in the full data set), k (Pareto k̂), ess (number of samples).
        """
        return frame_of({"datum": self.index, "k": self.k, "ess": self.ess})


@torch.no_grad()
def pareto_k(
    lvm: LatentVariableModel | Prepared,
    data: Any = None,
    num_samples: int = 1000,
    batch_size: int | None = None,
    seed: int = 0,
    *,
    false_alarm: float = 0.01,
    compile: Compile = "auto",
    budget: float | None = None,
) -> ParetoK:
    """Pareto k̂ and effective sample size of the guide's importance weights, datum by datum.

    Fitting takes about 0.4 ms per datum at 1000 samples, in addition to running the pair. Data
    with k̂ > ½ are re-examined on a million draws in all, at most twice.

    Arguments:
        lvm: the model and guide; or a ``Prepared``, which holds the data too.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum per row; a transform
            is drawn once, from `seed`.
        num_samples: draws per datum, at least 100; the tail has about 3√S of them.
        batch_size: data per pass, 50 by default; data that share a latent stay together.
        seed: seed of the draws and the transform.
        false_alarm: probability of a warning for a guide of which no datum has k > 0.7.
        compile: whether passes are compiled, as in ``evaluate``.
        budget: seconds; if short, fewer draws are made, see `cut`.

    Returns:
        ParetoK, with k̂ of shape (num_data,).

    Raises:
        ValueError: num_samples is below 100, batch_size below 1, or false_alarm not between 0 and
            1.
        ContractError: the guide is degenerate, a prior is flat, or the pair breaks the contract.

    Reference: Yes, but Did It Work?: Evaluating Variational Inference, Yao, Vehtari, Simpson and
    Gelman, 2018.

    Examples:
        >>> import torch
        >>> from vilvm.models.ppca import PPCA
        >>> from vilvm.diagnostics.pareto_k import pareto_k
        >>> x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
        >>> found = pareto_k(PPCA(4, 2).maximise(x), x)
        >>> found.k.shape, found.finding.severity.name
        (torch.Size([30]), 'OK')
    """
    false_alarm = check_probability("pareto_k: false_alarm", false_alarm)
    num_samples = check_number("pareto_k: num_samples", num_samples, 100)
    check_compile("pareto_k", compile)
    time, cuts = TimeBudget(budget), []
    prepared = prepared_of("pareto_k", lvm, data, batch_size=batch_size, seed=seed)
    prepared.require_weights("pareto_k")
    with prepared.running():
        parts = prepared.parts()
        wanted = num_samples
        if time.is_limited:
            num_samples = _affordable(parts, wanted, time)
        if num_samples < wanted:
            cuts.append(f"{num_samples} of {wanted} draws")
        num_passes = len(parts) * (num_samples // _chunk(parts[0]))
        passes = SamplePasses(
            prepared.lvm, worth_compiling(compile, num_passes, WORTH_COMPILING)
        )
        began = time.left
        found = [_fit(passes, part, num_samples) for part in parts]
        pace = time.pace(began, num_samples * len(parts))
        k, ess = (torch.cat(values) for values in zip(*found, strict=True))
        size = max(num_samples, REPEAT)
        again = _Reestimation(passes, prepared, parts, size, time, pace)
        rechecks, is_cut = again.rechecks(k)
    if is_cut:
        cuts.append("re-examinations")
    return ParetoK(
        k,
        ess,
        torch.cat([part.index for part in parts]),
        num_samples,
        not prepared.local,
        false_alarm,
        rechecks,
        ", ".join(cuts),
    )


def _affordable(parts: Sequence[Part], num_samples: int, time: TimeBudget) -> int:
    """The number of draws that take half of the time, by timed passes; at least a hundred."""
    first = parts[0]

    def draw(count: int) -> None:
        log_weights(first.lvm, first.batch, count, layout=first.layout)

    size = min(num_samples, _chunk(first))
    fits = affordable_draws(draw, min(_PILOT, size), size, time.left / 2 / len(parts))
    if fits < size or size == num_samples:
        return max(_LEAST, fits)
    each = seconds_of(lambda: draw(size))
    return int(
        min(num_samples, max(_LEAST, time.affords(each, 0.5) / len(parts) * size))
    )


class _Reestimation(NamedTuple):
    """Re-examines data with k̂ > ½.

    Arguments:
        passes: runs the pair.
        prepared: the pair and its data.
        parts: all batches with their layouts.
        size: draws of a repeat.
        time: the time budget.
        pace: seconds that a draw of a batch takes.
    """

    passes: SamplePasses
    prepared: Prepared
    parts: Sequence[Part]
    size: int
    time: TimeBudget
    pace: float

    def rechecks(self, k: Tensor) -> tuple[tuple[Recheck, ...], bool]:
        """Re-examinations of the worst data, and whether time cut any of them.

        A second one follows if at most half of the data remain above ½.
        """
        found: list[Recheck] = []
        is_cut, latest = False, k
        most = max(1, _DRAWS // self.size)
        for _ in range(_RECHECKS):
            undecided = latest > _HALF
            if found and 2 * int(undecided.sum()) > len(found[-1].k):
                break
            again = reexamine(undecided, latest, most, self._fresh)
            is_cut |= again.is_cut
            if again.estimate is None:
                break
            found.append(Recheck(*again.estimate, again.rows, self.size, again.draws))
            latest = torch.full_like(k, -1.0).index_copy(0, again.rows, found[-1].k)
        return tuple(found), is_cut

    def _fresh(self, rows: Tensor) -> FreshDraws[tuple[Tensor, Tensor]]:
        """k̂ and effective sample size of some data, averaged over repeats."""
        chosen = self.prepared.parts_of(rows, self.parts)

        def estimate(repeats: int) -> tuple[Tensor, Tensor]:
            found = [
                _fit(self.passes, part, self.size, repeats, columns)
                for part, columns in chosen
            ]
            k, ess = (torch.cat(values) for values in zip(*found, strict=True))
            return k, ess

        cost = len(chosen) * _JOINT
        if self.prepared.local:
            cost = sum(part.layout.num_data for part, _ in chosen)
        return FreshDraws(
            estimate,
            wanted=max(1, _DRAWS // (self.size * cost)),
            affordable=self.time.affords(self.pace * self.size * len(chosen), 0.5),
        )


def _chunk(part: Part) -> int:
    """Samples per pass."""
    if part.layout.local:
        return part.samples_in_a_pass()
    return max(1, JOINT_ROWS // max(part.layout.num_data, 1))


def _fit(
    passes: SamplePasses,
    part: Part,
    num_samples: int,
    repeats: int = 1,
    columns: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """k̂ and effective sample size of a batch, or of some columns, averaged over repeats."""
    blocks = []
    for log_w, *_ in passes(
        part.batch, repeats * num_samples, _chunk(part), part.layout
    ):
        if columns is not None:
            log_w = log_w[:, columns.to(log_w.device)]
        blocks.append(log_w.cpu())
    by_repeat = torch.cat(blocks).reshape(repeats, num_samples, -1).movedim(1, 0)
    smoothed = psis(by_repeat.reshape(num_samples, -1))
    return smoothed.k.reshape(repeats, -1).mean(0), smoothed.ess.reshape(
        repeats, -1
    ).mean(0)
