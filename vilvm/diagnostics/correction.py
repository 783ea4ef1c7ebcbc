"""By how much importance weights would correct the guide's means and standard deviations.

With draws z₁ … z_S of the guide and their Pareto-smoothed weights w₁ … w_S, which sum to one, of
every component of a latent

    mean:  m̂ = Σ wₛ zₛ,    sd:  ŝ² = Σ wₛ (zₛ − m̂)²

are those of the posterior as far as the weights can log. What the guide says is off by

    shift = (m̂ − mean z) / ŝ,    ratio = sd z / ŝ,

(of a label, whose values have probabilities, m̂ − mean z alone), in the posterior's own units:
what a reader of a table of results would want to know of it. A guide can have a small k̂ and be
off, for the weights that correct it are not in its own draws. Where the data share latents the
weight is one, and so are the numbers; where all latents belong to single data, each datum has its
own.

How far the weights can log is a matter of the component: wₛ (zₛ − m̂)² has a heavier tail than wₛ,
and if its k̂ is too large, ŝ is too small, however small its standard error. Each component is
therefore held to the larger k̂ of w and w (z − m̂)²; but where (z − m̂)² has such a tail without
the weights (a component without a variance), the weights are not to blame, and only theirs counts.
Of a component and a tolerance τ the verdict is

    uneven     k̂ is above ½ by more than its noise, and above 1 − 1/log₁₀ S, for which S draws are too few; or above 0.7, where the smoothed tail is biased,
               and |x| + 2 se > τ/2: half of the tolerance is left for what such a tail hides;
    off        |x| − c · se > τ: beyond the tolerance by more than the noise;
    fine       |x| + 2 se ≤ τ, and k̂ is not above min(1 − 1/log₁₀ S, 0.7);
    undecided  otherwise: with so many draws the weights cannot log.

c is the normal quantile of the false-alarm rate, shared out among all 2 K numbers of all data
(Bonferroni) and two looks; so is the noise of k̂. The ratio is compared in logarithms. Whoever is
undecided at a first look is looked at again, with more draws, all of them new, and judged by these
alone: if that is a choice among many data, the choice does not bias them.

References: Yes, but Did It Work?: Evaluating Variational Inference, Yao, Vehtari, Simpson and
Gelman, 2018; Validated Variational Inference via Practical Posterior Error Bounds, Huggins,
Kasprzak, Campbell and Broderick, 2020 (errors of means and standard deviations as what matters);
Pareto Smoothed Importance Sampling, Vehtari, Simpson, Gelman, Yao and Gabry, 2024 (k̂ of an
expectation).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from scipy.special import ndtri
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_probability, check_seed, optional
from vilvm._runtime.random import seeded
from vilvm.data.data import Data
from vilvm.diagnostics._moments import KEPT, DrawnMoments, Moments
from vilvm.diagnostics._tail import tail_error
from vilvm.diagnostics._time_budget import TimeBudget, affordable_draws
from vilvm.diagnostics.finding import Finding, Severity
from vilvm.diagnostics.pareto_k import check_weighable, good_k
from vilvm.evaluation.evaluate import in_parts
from vilvm.lvm import LatentVariableModel, check_contract, device_of, evaluation_mode, fixed_beside
from vilvm.weights import Layout, find_layout

__all__ = ["Correction", "correction"]

SOURCE = (
    "tolerances of 0.1 posterior standard deviations, of 10 %, and of 0.05 in the probability of "
    "a label, ours, after Huggins et al., 2020; false-alarm rate {:g}; k̂: Vehtari et al., 2024"
)
_NAME = "Means and standard deviations"
_LOOKS = 2  # at which a false alarm may be raised
_AGAIN = 25  # data that are looked at again, where the data can be picked from
_FEWEST, _PILOT = 200, 50  # draws at the first look where time is short, and of its timed pilot
_MORE, _MORE_JOINT = 20, 10  # times as many draws then


@dataclass(frozen=True)
class Correction:
    """The guide's means and standard deviations beside those that its weights make of them.

    R is the number of data where every latent belongs to one, and 1 where they share a latent, for
    all of them together.

    Arguments:
        names: of the K components of the latents and of what ``pyro.deterministic`` makes of them,
            such as "theta[3]"; without those that never change.
        mean, sd: of the guide's draws, shape (R, K); NaN where some draw is not finite.
        corrected_mean, corrected_sd: of the weighted draws, shape (R, K).
        shift_se, ratio_se: Monte Carlo standard errors of ``shift`` and ``ratio``, shape (R, K).
        k: the larger Pareto k̂ of the weights w and of w (z − m̂)², shape (R, K).
        num_samples: draws that these numbers are made of, shape (R,).
        index: which data the rows are, shape (R,).
        joint: whether the weight is that of all data together.
        probabilities: which components are the probability of a label's value, shape (K,): their
            shift is a difference of probabilities, their ratio one.
        false_alarm: how often a guide within the tolerances, and with no k above ½, may be given a
            warning.
        largest_shift, largest_ratio, largest_change: the tolerances, the last that of a
            probability.
        cut: what was cut short for want of time.
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

    @property
    def shift(self) -> Tensor:
        """(m̂ − mean) / ŝ, shape (R, K): what must be added to the guide's mean, in posterior
        standard deviations; of a probability, m̂ − mean.
        """
        unit = torch.where(self.probabilities, 1.0, self.corrected_sd)
        return torch.where(
            self.corrected_mean == self.mean, 0.0, (self.corrected_mean - self.mean) / unit
        )

    @property
    def ratio(self) -> Tensor:
        """The guide's standard deviation over the corrected one, shape (R, K); 1 for a
        probability, whose mean tells all.
        """
        return torch.where(
            (self.corrected_sd == self.sd) | self.probabilities, 1.0, self.sd / self.corrected_sd
        )

    @property
    def undefined(self) -> Tensor:
        """Which components have draws that are not finite, shape (R, K)."""
        return self.mean.isnan()

    @property
    def uneven(self) -> Tensor:
        """Which have too heavy a tail to log, by more than the noise of k̂, shape (R, K)."""
        samples = self.num_samples.tolist()
        noise, few, biased = (
            torch.tensor(limits)[:, None]
            for limits in (
                [0.5 + self._quantile() * tail_error(s) for s in samples],
                [1 - 1 / math.log10(s) for s in samples],
                [good_k(s) for s in samples],
            )
        )
        return (self.k > noise) & ((self.k > few) | ((self.k > biased) & (self.excess(2.0) > 0.5)))

    @property
    def off(self) -> Tensor:
        """Which are beyond a tolerance by more than the noise, as far as the weights can log,
        shape (R, K).
        """
        return (self.excess(-self._quantile()) > 1) & ~self.uneven

    @property
    def fine(self) -> Tensor:
        """Which are within the tolerances, two standard errors and all, shape (R, K)."""
        limit = torch.tensor([good_k(s) for s in self.num_samples.tolist()])
        return (self.excess(2.0) <= 1) & (self.k <= limit[:, None])

    @property
    def undecided(self) -> Tensor:
        """Of which none of this can be said, shape (R, K)."""
        return ~(self.undefined | self.uneven | self.off | self.fine)

    @property
    def share(self) -> float:
        """The share of rows with a mean or standard deviation beyond its tolerance, noise
        included.
        """
        return (self.excess() > 1).any(1).double().mean().item()

    def worst(self, which: Tensor, count: int = 3) -> list[tuple[int, int]]:
        """Among the entries of a mask (R, K), those furthest off, worst first, as (row,
        component); one a row if there are many rows.
        """
        badness = torch.where(which, self.excess().nan_to_num(posinf=1e300).clamp(max=1e300), -1.0)
        badness = (
            badness
            if self.joint
            else torch.where(badness == badness.amax(1, keepdim=True), badness, -1.0)
        )
        order = badness.flatten().argsort(descending=True)[:count].tolist()
        return [divmod(i, len(self.names)) for i in order if badness.flatten()[i] >= 0]

    @property
    def finding(self) -> Finding:
        """The verdict: WARNING if a component is off, is not finite, or has weights too uneven to
        tell; NOTE if more draws would be needed.
        """
        source = SOURCE.format(self.false_alarm)
        if not self.names:
            return Finding(
                _NAME,
                Severity.NOTE,
                "No component of the latents changes from draw to draw, so there is nothing to "
                "correct.",
                source,
            )
        if self.undefined.any():
            verdict = (
                f"{self._count(self.undefined)} not finite in some draw: "
                f"{self._which(self.undefined)}."
            )
            return Finding(
                _NAME,
                Severity.WARNING,
                verdict,
                source,
                "Look at what makes them: an overflow, or the logarithm of a negative number.",
            )
        if self.off.any():
            told = "; ".join(self._told(*at) for at in self.worst(self.off))
            advice = (
                "Report weighted draws in place of the guide's own (vilvm.resample), or take a "
                "richer guide."
            )
            return Finding(
                _NAME,
                Severity.WARNING,
                f"{self._count(self.off)} off: {told}.{self._of_share()}",
                source,
                advice,
            )
        if self.uneven.any():
            verdict = (
                f"The weights are too uneven (k̂ up to {self.k[self.uneven].max().item():.2f}) to "
                "tell by how much the guide's means and standard deviations are "
                f"off: {self._count(self.uneven)} beyond them ({self._which(self.uneven)})."
            )
            return Finding(
                _NAME,
                Severity.WARNING,
                verdict,
                source,
                "Take a richer guide, or another parametrisation of the model.",
            )
        if self.undecided.any():
            told = "; ".join(self._told(*at) for at in self.worst(self.undecided))
            verdict = (
                f"With {int(self.num_samples.max())} draws the weights cannot tell whether "
                f"{self._count(self.undecided)} within the tolerances: {told}.{self._of_share()}"
            )
            return Finding(
                _NAME,
                Severity.NOTE,
                verdict,
                source,
                "To be sure of these, look again with more draws (num_samples=...).",
            )
        return Finding(_NAME, Severity.OK, self._fine(), source)

    def _fine(self) -> str:
        """What is told of a guide whose every number is within its tolerance."""
        shifts = [
            self.shift.abs().where(which, 0.0)
            for which in (~self.probabilities, self.probabilities)
        ]
        (i, j), (a, b), (m, n) = (
            divmod(int(x.argmax()), len(self.names))
            for x in (shifts[0], self.ratio.log().abs(), shifts[1])
        )
        labels = (
            f"no probability of a label by more than {shifts[1][m, n].item():.2f} "
            f"({self._label(m, n)})"
        )
        if bool(self.probabilities.all()):
            return f"Importance weights would move {labels}."
        told = (
            f"Importance weights would move no mean by more than {shifts[0][i, j].item():.2f} of "
            f"its standard deviation ({self._label(i, j)}), and "
            f"the standard deviations are {self.ratio.min().item():.2f} to "
            f"{self.ratio.max().item():.2f} times theirs ({self._label(a, b)})"
        )
        return f"{told}; and {labels}." if bool(self.probabilities.any()) else f"{told}."

    def _quantile(self) -> float:
        """That of a normal law, two-sided, at the false-alarm rate shared out among all numbers
        and both looks.
        """
        return float(-ndtri(self.false_alarm / (2 * _LOOKS * 2 * max(self.mean.numel(), 1))))

    def excess(self, errors: float = 0.0) -> Tensor:
        """The further beyond of the two, as a multiple of its tolerance, after `errors` standard
        errors have been added; shape (R, K).
        """
        tolerance = torch.where(self.probabilities, self.largest_change, self.largest_shift)
        shift = (self.shift.abs() + errors * self.shift_se) / tolerance
        logs, error = self.ratio.log(), errors * self.ratio_se / self.ratio
        above = (logs + error) / torch.tensor(1 + self.largest_ratio).log()
        below = (logs - error) / torch.tensor(1 - self.largest_ratio).log()
        return torch.maximum(shift, torch.maximum(above, below))

    def _label(self, row: int, column: int) -> str:
        return (
            self.names[column]
            if self.joint
            else f"{self.names[column]} of datum {int(self.index[row])}"
        )

    def _count(self, which: Tensor) -> str:
        of, what = (which[0], "components") if self.joint else (which.any(1), "data")
        return f"{int(of.sum())} of {len(of)} {what} {'is' if of.sum() == 1 else 'are'}"

    def _which(self, which: Tensor) -> str:
        return ", ".join(self._label(*at) for at in self.worst(which))

    def _of_share(self) -> str:
        return (
            ""
            if self.joint
            else f" Noise included, {self.share:.1%} of the data have a number beyond its "
            "tolerance."
        )

    def _told(self, i: int, j: int) -> str:
        if bool(self.probabilities[j]):
            return (
                f"{self._label(i, j)}: the guide's probability is {self.mean[i, j].item():.2f}, "
                "the corrected one "
                f"{self.corrected_mean[i, j].item():.2f} ± {self.shift_se[i, j].item():.2f}"
            )
        return (
            f"{self._label(i, j)}: mean to be moved by {self.shift[i, j].item():+.2f} ± "
            f"{self.shift_se[i, j].item():.2f} standard deviations, the guide's "
            f"standard deviation is {self.ratio[i, j].item():.2f} ± "
            f"{self.ratio_se[i, j].item():.2f} times the corrected one"
        )


@torch.no_grad()
def correction(
    lvm: LatentVariableModel,
    data: Any,
    *,
    num_samples: int | None = None,
    batch_size: int | None = None,
    false_alarm: float = 0.01,
    budget: float | None = None,
    seed: int = 0,
) -> Correction:
    """Means and standard deviations of the guide, and what its importance weights make of them.

    Of all data together if they share a latent; else of each datum by its own weights.

    Arguments:
        lvm: the model and guide.
        data: ``Data``, a tensor, or a tuple or dict of tensors with one datum a row.
        num_samples: draws at the first look, at least 1000; by default 50,000 for all data
            together, and 1000 a datum. What is left undecided is looked at again with 10 times as
            many, or 20, as far as memory goes; of single data, the worst 25 are.
        batch_size: data a pass, 50 by default, where each has its own latents.
        false_alarm: how often a guide within the tolerances, and with no k above ½, may be given a
            warning.
        budget: seconds after which it makes do with less; see `cut`.
        seed: of the draws, and of the data's transform.

    Returns:
        Correction, of every component of every latent and deterministic value.

    Raises:
        ValueError: num_samples is below 1000, or false_alarm is no rate.
        ContractError: the guide is degenerate, a prior flat, or the pair breaks the contract.

    Example:
        >>> import torch, vilvm
        >>> from vilvm.models.eight_schools import EightSchools, eight_schools
        >>> from vilvm.diagnostics import correction
        >>> correction(EightSchools(guide="mean_field"), eight_schools(), num_samples=1000).names[:2]
        ('mu', 'tau')
    """
    seed = check_seed("correction: seed", seed)
    false_alarm = check_probability("correction: false_alarm", false_alarm)
    check_contract(lvm)
    num_samples = optional(check_number, "correction: num_samples", num_samples, 1000)
    batch_size = optional(check_number, "correction: batch_size", batch_size)
    clock, cuts = TimeBudget(budget), []
    fixed = fixed_beside(lvm, data, seed)
    with seeded(seed, device_of(lvm, fixed.device)), evaluation_mode(lvm):
        parts, layout = in_parts(lvm, fixed, batch_size)
        check_weighable("correction", lvm, layout)
        samples = num_samples or (1000 if layout.local else 50_000)
        drawn = [
            DrawnMoments(
                lvm,
                p.x,
                layout if p is parts[0] else find_layout(lvm, p.x, plate=layout.data_plate),
            )
            for p in parts
        ]
        if clock.is_limited:
            wanted, seconds = samples, clock.left / 2 / len(parts)
            samples = max(
                _FEWEST,
                affordable_draws(lambda n: drawn[0](max(n, _PILOT)), _PILOT, wanted, seconds),
            )
            cuts += [f"{samples} of {wanted} draws"] if samples < wanted else []
        began = clock.left
        moments = Moments(
            *(torch.cat(column) for column in zip(*(of(samples) for of in drawn), strict=True))
        )
        found = Correction(
            names=drawn[0].names,
            **moments._asdict(),
            num_samples=torch.full((len(moments.k),), samples),
            index=_index(parts, drawn, len(moments.k)),
            joint=not layout.local,
            probabilities=drawn[0].probabilities,
            false_alarm=false_alarm,
        )
        # seconds of a draw of a part
        pace = (began - clock.left) / samples / len(parts) if clock.is_limited else 0.0
        if len(parts) == 1:
            found, fewer = _again(
                found, drawn[0], layout.num_data, affordable=clock.affords(pace, 0.8)
            )
        elif not layout.subsample:
            of_rows = partial(_of_rows, lvm, fixed, layout)
            found, fewer = _again(
                found, of_rows, _AGAIN, _AGAIN, affordable=clock.affords(pace, 0.8)
            )
        else:
            fewer = False
        cuts += ["the second look"] if fewer else []
    return _without_constants(replace(found, cut=", ".join(cuts)))


def _index(parts: Sequence[Data], drawn: list[DrawnMoments], rows: int) -> Tensor:
    """Which data the rows are."""
    if drawn[0].indices is None:
        return torch.arange(rows)
    starts = torch.tensor([0, *(len(p) for p in parts[:-1])]).cumsum(0).tolist()
    return torch.cat(
        [
            of.indices.cpu() + start
            for of, start in zip(drawn, starts, strict=True)
            if of.indices is not None
        ]
    )


def _of_rows(
    lvm: LatentVariableModel, data: Data, layout: Layout, num_samples: int, rows: Tensor
) -> Moments:
    """The moments of some of the data, as a batch of their own."""
    x = data.subset(rows).x
    return DrawnMoments(lvm, x, find_layout(lvm, x, plate=layout.data_plate))(num_samples)


def _again(
    found: Correction,
    look: Callable[[int, Tensor], Moments],
    data: int,
    most: int | None = None,
    affordable: float = math.inf,
) -> tuple[Correction, bool]:
    """The same with the numbers of a second look, with more draws, at the worst rows of those that
    the first leaves open.

    Arguments:
        found: at the first look.
        look: given how many draws, and of which rows, makes them.
        data: how many go through the pair for each draw.
        most: rows that it may be asked for; if None it draws for all rows, whichever are asked
            for.
        affordable: draws for which there is time.

    Returns:
        The same with the numbers of the second look; and whether want of time cut it short.
    """
    # then a second look would change no verdict
    if not found.names or (found.joint and found.off.any()):
        return found, False
    # above which a standard error is none
    unclear = found.undecided | found.uneven | (found.k > 0.5)
    badness = torch.where(
        unclear, torch.maximum(found.excess().nan_to_num(posinf=1e300), found.k), -1.0
    ).amax(1)
    rows = badness.argsort(descending=True)[: int(unclear.any(1).sum())][:most].sort().values
    samples = int(found.num_samples[0])
    size = (len(badness) if most is None else len(rows)) * len(found.names)
    wanted = min(samples * (_MORE_JOINT if found.joint else _MORE), KEPT // max(size, data))
    more = int(min(wanted, affordable))
    if not len(rows) or more < 2 * samples:
        return found, bool(len(rows)) and more < wanted
    again = look(more, rows)._asdict()
    put = {name: getattr(found, name).index_copy(0, rows, value) for name, value in again.items()}
    return replace(
        found, **put, num_samples=found.num_samples.index_fill(0, rows, more)
    ), more < wanted


def _without_constants(found: Correction) -> Correction:
    """A deterministic value may be a constant, of which there is nothing to say."""
    moving = ~(found.sd == 0).all(0)
    kept = {name: getattr(found, name)[:, moving] for name in Moments._fields}
    names = tuple(n for n, moves in zip(found.names, moving.tolist(), strict=True) if moves)
    return replace(found, names=names, probabilities=found.probabilities[moving], **kept)
