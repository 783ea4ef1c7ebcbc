"""Can this posterior be trusted? All diagnostics that apply to a pair, within a time budget.

The findings are sorted, the gravest first. The diagnostics run in this order, the fast and
decisive ones before the slow:

- Pareto k̂ of the guide's weights, datum by datum;
- the rate, which cannot be negative, and whether training's own ELBO agrees with it;
- the correction of means and standard deviations by the weights;
- if each datum has latents of its own, collapse, and calibration on the model's own data (SBC,
  TARP) of an amortised guide;
- the posterior and the prior predictive check;
- if the data share a latent, leave-one-out prediction;
- the gap between log p(x) and the ELBO, and what causes it;
- convergence, if the history of the training is given.

The stated false-alarm rate is divided equally among the tests that apply (Bonferroni). A
diagnostic that does not apply, or for which no time is left, is named with the reason. Each has a
share of the time that is left, and chooses its sizes by it; what it leaves out is named too. One
that takes more than twice its share, and more than a quarter of the whole, is stopped. Among many
data some are used, and named by their index in the full data set.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vilvm._runtime.argument_checks import (
    check_number,
    check_positive,
    check_probability,
    check_seed,
)
from vilvm._runtime.memory import bytes_made
from vilvm._runtime.progress import ProgressBar
from vilvm._runtime.random import seeded
from vilvm._runtime.threads import one_thread
from vilvm.data.data import Data, as_data
from vilvm.diagnostics._time_budget import OutOfTimeError, Stop
from vilvm.diagnostics._verdicts.diagnosis import diagnosis_report, diagnosis_verdict
from vilvm.diagnostics.collapse import collapse
from vilvm.diagnostics.convergence import convergence
from vilvm.diagnostics.correction import correction
from vilvm.diagnostics.finding import Finding, Severity
from vilvm.diagnostics.gaps import gaps
from vilvm.diagnostics.loo import loo
from vilvm.diagnostics.pareto_k import pareto_k
from vilvm.diagnostics.predictive_check import predictive_check
from vilvm.diagnostics.psis import psis
from vilvm.diagnostics.rates import rates
from vilvm.diagnostics.sbc import sbc
from vilvm.diagnostics.tarp import tarp
from vilvm.evaluation import Schedule
from vilvm.evaluation.ais import check_schedule
from vilvm.lvm import ContractError, LatentVariableModel, NotApplicable, fixed_beside
from vilvm.weights import find_layout
from vilvm.weights.prepared import Prepared, prepared_of
from vilvm.weights.simulation import batches

__all__ = ["Diagnosis", "diagnose"]

_SHARED = "its data share a latent."
_OWN = "each datum has latents of its own."
_PRIORS = (
    "priors of latents that the data share are the user's own; see predictive_check(kind='prior')."
)
_NO_HISTORY = "no history of the training was given (history=...)."
_BEYOND = 0.5  # share of the budget by which a diagnosis may exceed it
_RUNS = 500  # least number of runs of the pair
_FEW = 50  # data used if these runs would exceed the budget


@dataclass(frozen=True)
class Diagnosis:
    """The findings of all diagnostics on a pair.

    Arguments:
        findings: the gravest first.
        results: the result of each diagnostic, by its name.
        skipped: why a diagnostic was not run, by its name.
        index: index of the data used in the full data set, shape (num_data,).
        seconds: time taken.
        unfinished: skipped diagnostics of the posterior that apply, but failed or had no time.
        cut: what a diagnostic left out for want of time, by its name.
        tempered: factors of the model's sites by ``poutine.scale``, if they differ; all findings
            are without them.

    Example:
        >>> import torch
        >>> from vilvm import Diagnosis
        >>> Diagnosis((), {}, {}, torch.arange(3), 0.0).trusted
        True
    """

    findings: tuple[Finding, ...]
    results: dict[str, Any] = field(repr=False)
    skipped: dict[str, str]
    index: Tensor = field(repr=False)
    seconds: float
    unfinished: tuple[str, ...] = ()
    cut: dict[str, str] = field(default_factory=dict)
    tempered: dict[str, float] = field(default_factory=dict)

    @property
    def num_data(self) -> int:
        """The number of data used."""
        return len(self.index)

    def severity(self, about: Literal["posterior", "model"] = "posterior") -> Severity:
        """The severity of the gravest finding.

        Arguments:
            about: "posterior", the guide as posterior of this model; or "model", the model of
                these data.
        """
        return max((f.severity for f in self.findings if f.about == about), default=Severity.OK)

    @property
    def trusted(self) -> bool:
        """Whether every diagnostic of the posterior that applies is complete and without warning.

        The model is not judged.
        """
        return not self.unfinished and self.severity() < Severity.WARNING

    @property
    def verdict(self) -> str:
        """A sentence about the posterior, and one about the model for each doubt."""
        return diagnosis_verdict(self)

    def __str__(self) -> str:
        return diagnosis_report(self)


@dataclass(frozen=True)
class _Check:
    """A diagnostic that may apply.

    Arguments:
        name: the diagnostic.
        run: called with the false-alarm rate of its test and the seconds that it may take.
        why_not: why it does not apply to this pair; empty if it does.
        tested: whether it makes a test, and so needs a share of the false-alarm rate.
        about: as in ``Finding``.
        part: weight of its share of the time.
    """

    name: str
    run: Callable[[float, float], Any]
    why_not: str = ""
    tested: bool = True
    about: Literal["posterior", "model"] = "posterior"
    part: float = 1.0


def diagnose(
    lvm: LatentVariableModel | Prepared,
    data: Any = None,
    *,
    history: Any = None,
    budget: float = 120.0,
    num_data: int = 500,
    false_alarm: float = 0.01,
    schedule: Schedule | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Diagnosis:
    """Runs the diagnostics that apply to a pair, and sorts the findings by severity.

    Arguments:
        lvm: the trained model and guide; or a ``Prepared``, which holds the data too.
        data: the data whose posterior is to be trusted: ``Data``, a tensor, or a tuple or dict of
            tensors with one datum per row.
        history: ``Fit`` or ``History`` of the training, to judge its convergence.
        budget: seconds for all diagnostics. Each computes less if its share is short, and is
            stopped at twice its share, though not before a quarter of the budget. The total is
            less than twice the budget, unless a single run of the pair takes longer.
        num_data: data to use, drawn from `seed` if there are more and each has latents of its own;
            all data if the guide has parameters for each datum.
        false_alarm: probability of a warning by any test for a right model with its posterior as
            guide; each test has an equal share.
        schedule: schedule of annealed importance sampling, if log p(x) is not known.
        seed: seed of all draws.
        progress: whether to show a progress bar; by default on a terminal only.

    Returns:
        Diagnosis, with the findings and results of all diagnostics.

    Raises:
        ContractError: the pair breaks the contract on these data.

    Example:
        >>> import torch, vilvm
        >>> from vilvm.models.ppca import PPCA
        >>> x = torch.randn(100, 4) * torch.tensor([4.0, 2.0, 1.0, 1.0])
        >>> found = vilvm.diagnose(PPCA(4, 2).maximise(x), x, budget=100)
        >>> found.trusted, "Pareto k̂" in found.results
        (True, True)
    """
    seed = check_seed("diagnose: seed", seed)
    budget = check_positive("diagnose: budget", budget, "number of seconds")
    num_data = check_number("diagnose: num_data", num_data)
    false_alarm = check_probability("diagnose: false_alarm", false_alarm)
    check_schedule("diagnose", schedule)
    _import_all()
    began = time.monotonic()
    if isinstance(lvm, Prepared):
        lvm = prepared_of("diagnose", lvm, data, seed=seed)
        data, seed = lvm.data, lvm.seed
    chosen = _choose(lvm, as_data(data), num_data, seed, began + budget)
    with seeded(seed, chosen.prepared.device):
        checks = list(_checks(chosen.prepared, history, schedule))
    session = _Session(chosen.index_to_name, budget, began + budget)
    session.run(checks, false_alarm, progress)
    findings = [result.finding for result in session.results.values()]
    return Diagnosis(
        tuple(sorted(findings, key=lambda finding: -finding.severity)),
        session.results,
        session.skipped,
        chosen.index,
        time.monotonic() - began,
        tuple(session.unfinished),
        chosen.cut | session.cut,
        chosen.prepared.layout.tempered,
    )


def _import_all() -> None:
    """Makes torch and ArviZ import their lazy parts, so that no diagnostic pays for the time."""
    psis(torch.linspace(0, 1, 100))
    bytes_made(lambda: torch.zeros(1))


class _Chosen(NamedTuple):
    """The data of a diagnosis.

    Arguments:
        prepared: the pair and the chosen data.
        index: their index in the full data set, shape (num_data,).
        is_all: whether they are all data, so that results name them right.
        cut: what is left out for want of time.
    """

    prepared: Prepared
    index: Tensor
    is_all: bool
    cut: dict[str, str]

    @property
    def index_to_name(self) -> Tensor | None:
        """The index by which results are named anew; None if they need not be."""
        if self.is_all:
            return None
        return self.index


def _choose(
    lvm: LatentVariableModel | Prepared, given: Data, num_data: int, seed: int, end: float
) -> _Chosen:
    """Prepares the data, or random ones of them; fewer if a run of the pair is slow."""
    began = time.monotonic()
    picked = None
    if isinstance(lvm, Prepared):
        prepared = lvm
    else:
        picked = _picked_from_disk(given, num_data, seed)
        some = given
        if picked is not None:
            some = given.subset(picked)
        prepared = prepared_of("diagnose", lvm, fixed_beside(lvm, some, seed), seed=seed)
    fixed = prepared.data
    if picked is not None and not prepared.local:
        given.fixed(seed)  # raises: some data are not enough, and all cannot be kept
    cut = {}
    if (time.monotonic() - began) * _RUNS > end - began and num_data > _FEW:
        num_data = _FEW
        if len(given) > num_data:
            cut = {"Data": f"{num_data} of {len(given)}"}
    index = _index(prepared, num_data)
    is_all = picked is None and len(index) == len(fixed)
    if len(index) < len(fixed):
        prepared = prepared_of("diagnose", prepared.lvm, fixed.subset(index), seed=seed)
    elif fixed.streamed:
        prepared = prepared_of("diagnose", prepared.lvm, fixed.loaded(), seed=seed)
    if picked is not None:
        index = picked[index]
    return _Chosen(prepared, index, is_all, cut)


def _picked_from_disk(data: Data, count: int, seed: int) -> Tensor | None:
    """The index of the data to read, if they are on disk and have a transform; else None.

    The draws of a transform are kept in memory, so that all data may be too many.
    """
    if data.streamed and data.transform is not None:
        return _random_index(len(data), count, seed)
    return None


def _random_index(total: int, count: int, seed: int) -> Tensor:
    """The index of so many random data, in order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(total, generator=generator)[:count].sort().values


def _index(prepared: Prepared, count: int) -> Tensor:
    """The index of random data, if each has latents of its own and the pair runs on them."""
    data = prepared.data
    everything = torch.arange(len(data))
    if not prepared.local or not data.divisible or len(data) <= count:
        return everything
    picked = _random_index(len(data), count, prepared.seed)
    try:
        with prepared.running():
            batch = data.subset(picked).x
            find_layout(prepared.lvm, batch, plate=prepared.layout.data_plate)
    except ContractError:  # a guide with parameters for each datum
        return everything
    return picked


class _Session:
    """Runs checks one after the other within a time budget.

    Arguments:
        index: index of the data in the full data set; None if results name data right.
        budget: seconds for all checks.
        end: time on the monotonic clock at which the budget is spent.
    """

    def __init__(self, index: Tensor | None, budget: float, end: float):
        self.index, self.budget, self.end = index, budget, end
        self.results: dict[str, Any] = {}
        self.skipped: dict[str, str] = {}
        self.unfinished: list[str] = []

    @property
    def cut(self) -> dict[str, str]:
        """What each diagnostic left out, by its name."""
        cuts = {name: getattr(result, "cut", "") for name, result in self.results.items()}
        return {name: what for name, what in cuts.items() if what}

    def run(self, checks: list[_Check], false_alarm: float, progress: bool | None) -> None:
        """Runs the checks that apply, each with an equal share of the false-alarm rate."""
        rate = false_alarm / sum(check.tested and not check.why_not for check in checks)
        # One thread between the checks too: a check that changes the number would be left out.
        with one_thread(), ProgressBar("diagnosing", len(checks), show=progress) as bar:
            for i, check in enumerate(checks):
                bar.advance(0, check.name)
                if check.why_not:
                    self.skipped[check.name] = check.why_not
                else:
                    rest = sum(c.part for c in checks[i:] if not c.why_not)
                    self._run(check, rate, check.part / rest)
                bar.advance()

    def _run(self, check: _Check, rate: float, share: float) -> None:
        """Runs a check in its share of the time that is left."""
        left = self.end - time.monotonic()
        if left <= -_BEYOND * self.budget:
            reason = f"the budget of {self.budget:g} s was spent; give it more (budget=...)."
            self._skip(check, reason)
            return
        seconds = max(0.0, left * share)
        most = min(max(2 * seconds, self.budget / 4), left + _BEYOND * self.budget)
        try:
            with Stop(most):
                found = check.run(rate, seconds)
            assert found.finding is not None  # a finding that raises counts as a failure
            self.results[check.name] = _renamed(found, self.index)
        except OutOfTimeError:
            self._skip(
                check,
                f"it was stopped after {most:.3g} s, beyond its share of the budget; give it more "
                "(budget=...).",
            )
        # The failure of one check must not stop the others, nor count as no finding.
        except Exception as error:
            self._skip(check, _reason(error), applies=not isinstance(error, NotApplicable))

    def _skip(self, check: _Check, reason: str, applies: bool = True) -> None:
        self.skipped[check.name] = reason
        if applies and check.about == "posterior":
            self.unfinished.append(check.name)


def _reason(error: Exception) -> str:
    """The message of an error, without the shapes that Pyro appends."""
    message = " ".join(str(error).split("Trace Shapes:")[0].split())
    if isinstance(error, ContractError | ValueError):
        return message
    return f"{type(error).__name__}: {message}"


def _renamed(found: Any, index: Tensor | None) -> Any:
    """A result that names data by their index in the full data set."""
    if index is None or not hasattr(found, "index"):
        return found
    return replace(found, index=index[found.index])


def _like(prepared: Prepared) -> Any:
    """The batch that simulation needs; None if the model makes the data without one."""
    data, layout = prepared.data, prepared.layout
    if not layout.local or not isinstance(data.x, Tensor) or len(layout.observed) != 1:
        return data.x
    try:
        drawn, _ = next(batches(prepared.lvm, 2))
        find_layout(prepared.lvm, drawn, plate=layout.data_plate)
    # The model reads its batch, observes a view of it, knows one size only, or cannot be drawn.
    except ContractError:
        return data.x
    if drawn.shape[1:] == data.x.shape[1:]:
        return None
    return data.x


def _checks(prepared: Prepared, history: Any, schedule: Schedule | None) -> Iterator[_Check]:
    """All diagnostics, in their order."""
    yield from _weight_checks(prepared, history)
    yield from _local_checks(prepared)
    yield from _predictive_checks(prepared)
    yield _Check(
        "Inference gap",
        lambda rate, s: gaps(prepared, schedule=schedule, false_alarm=rate, budget=s),
        part=6.0,
    )
    yield _Check(
        "Convergence",
        # one test for a rise, one for a fall
        lambda rate, _: convergence(history, false_alarm=rate / 2),
        why_not={True: _NO_HISTORY, False: ""}[history is None],
        part=0.1,
    )


def _weight_checks(prepared: Prepared, history: Any) -> Iterator[_Check]:
    """The diagnostics of the guide's importance weights.

    Rate and correction have seeds of their own, so that their draws are independent.
    """
    lvm, data, seed = prepared.lvm, prepared.data, prepared.seed
    num_samples = {True: 1000, False: 50_000}[prepared.local]
    yield _Check(
        "Pareto k̂",
        lambda rate, s: pareto_k(prepared, num_samples=num_samples, false_alarm=rate, budget=s),
        part=2.0,
    )
    yield _Check(
        "Rate",
        lambda rate, s: rates(
            lvm, data, history=history, false_alarm=rate, budget=s, seed=seed + 2
        ),
    )
    yield _Check(
        "Means and standard deviations",
        lambda rate, s: correction(lvm, data, false_alarm=rate, budget=s, seed=seed + 1),
        part=2.0,
    )


def _local_checks(prepared: Prepared) -> Iterator[_Check]:
    """The diagnostics for data with latents of their own."""
    why_not = {True: "", False: _SHARED}[prepared.local]
    like = _like(prepared)
    options = {"like": like, "seed": prepared.seed}
    yield _Check(
        "Posterior collapse",
        lambda _, s: collapse(prepared),
        why_not,
        tested=False,
        about="model",
    )
    yield _Check(
        "Calibration (SBC)",
        lambda rate, s: sbc(prepared.lvm, **options, false_alarm=rate, budget=s),
        why_not,
        part=2.0,
    )
    yield _Check(
        "Calibration (TARP)",
        lambda rate, s: tarp(prepared.lvm, **options, false_alarm=rate, budget=s),
        why_not,
        part=2.0,
    )


def _predictive_checks(prepared: Prepared) -> Iterator[_Check]:
    """The diagnostics of the model's predictions."""

    def check(kind: Literal["posterior", "prior"], rate: float, seconds: float) -> Any:
        num_draws = max(200, round(2 / rate))
        return predictive_check(
            prepared, num_draws=num_draws, kind=kind, false_alarm=rate, budget=seconds
        )

    yield _Check(
        "Posterior predictive check",
        lambda rate, s: check("posterior", rate, s),
        about="model",
    )
    yield _Check(
        "Prior predictive check",
        lambda rate, s: check("prior", rate, s),
        why_not={True: "", False: _PRIORS}[prepared.local],
        about="model",
    )
    yield _Check(
        "Leave-one-out prediction",
        lambda _, s: loo(prepared, budget=s),
        why_not={True: _OWN, False: ""}[prepared.local],
        tested=False,
        about="model",
    )
