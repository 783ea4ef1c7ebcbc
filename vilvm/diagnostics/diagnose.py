"""Can this posterior be trusted? What applies to a pair is run, in a stated budget, and what was
found is told the gravest first.

In turn, the quick and the telling before the slow:

- Pareto k̂ of the guide's weights, datum by datum;
- the rate, which cannot be negative, and whether training's own ELBO agrees with it;
- what the weights would correct in means and standard deviations;
- where the data share a latent, leave-one-out prediction;
- where each datum has latents of its own, collapse, and calibration on the model's own data (SBC,
  TARP) of a guide that is amortised;
- the posterior and the prior predictive check;
- the gap between log p(x) and the ELBO, and whose it is;
- convergence, if the history of the training is given.

The stated false-alarm rate is shared out in equal parts among the tests that apply (Bonferroni). A
diagnostic that does not apply, or for which no time was left, is named with the reason. Each has a
share of the time that is left, by which it chooses how much it looks at; what it cut short is
named too, and one that takes more than twice its share, and a quarter of the whole, is stopped. Of
many data some are looked at, and named by their place among all.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

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
from vilvm.diagnostics.collapse import collapse
from vilvm.diagnostics.convergence import convergence
from vilvm.diagnostics.correction import correction
from vilvm.diagnostics.finding import Finding, Severity
from vilvm.diagnostics.gaps import gaps
from vilvm.diagnostics.loo import loo
from vilvm.diagnostics.pareto_k import pareto_k, psis
from vilvm.diagnostics.predictive_check import predictive_check
from vilvm.diagnostics.rates import rates
from vilvm.diagnostics.sbc import sbc
from vilvm.diagnostics.tarp import tarp
from vilvm.evaluation import Schedule
from vilvm.evaluation.ais import check_schedule
from vilvm.evaluation.evaluate import in_parts
from vilvm.lvm import ContractError, LatentVariableModel, NotApplicable, fixed_beside
from vilvm.weights import Layout, find_layout
from vilvm.weights.simulation import batches

__all__ = ["Diagnosis", "diagnose"]

_WORDS = {
    Severity.OK: "Nothing was found that speaks against this posterior.",
    Severity.NOTE: "Nothing was found that speaks against using this posterior; there are notes.",
    Severity.WARNING: "Do not trust this posterior as it stands.",
    Severity.CRITICAL: "Do not trust this posterior.",
}
_PRIORS = (
    "priors of latents that the data share are the user's own; see predictive_check(kind='prior')."
)
_REPLICATED = "Posterior predictive check"
_BEYOND = 0.5  # of the budget, by which a diagnosis may outlast it
_RUNS = 500  # of the pair that a diagnosis makes at least
_FEW = 50  # data that are looked at where these runs would outlast the budget
_DOUBTS = {
    _REPLICATED: "The model does not make data like these.",
    "Prior predictive check": "The model does not make data like these.",
    "Posterior collapse": "The model makes little use of its latents.",
    "Leave-one-out prediction": "Single data stand apart from what the model makes of the others.",
}


@dataclass(frozen=True)
class Diagnosis:
    """What ``diagnose`` found.

    Arguments:
        findings: the gravest first.
        results: what each diagnostic returned, by its name.
        skipped: why a diagnostic was not run, by its name.
        index: which of the data were looked at, shape (num_data,); the findings name data by it.
        seconds: taken.
        unfinished: of those skipped, diagnostics of the posterior that apply, and failed or had no
            time left.
        cut: what a diagnostic cut short for want of time, by its name.
        tempered: the factors that the model puts on its sites by ``poutine.scale``, where they
            differ; all findings are without them.
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
        """How many of the data were looked at."""
        return len(self.index)

    def severity(self, about: Literal["posterior", "model"] = "posterior") -> Severity:
        """That of the gravest finding about the guide as posterior of this model, or about the
        model of these data.
        """
        return max((f.severity for f in self.findings if f.about == about), default=Severity.OK)

    @property
    def trusted(self) -> bool:
        """Whether every diagnostic of the posterior that applies was run to its end, and none
        found a warning or worse.

        What the model itself is worth is another question.
        """
        return not self.unfinished and self.severity() < Severity.WARNING

    @property
    def verdict(self) -> str:
        """One sentence about the posterior, and one about the model for each way in which it is in
        doubt.
        """
        if self.unfinished and self.severity() < Severity.WARNING:
            told = "; ".join(
                f"{name}: {self.skipped[name].rstrip('.')}" for name in self.unfinished
            )
            of_posterior = (
                f"This posterior cannot be vouched for, for not all of it was looked at ({told})."
            )
        else:
            of_posterior = _WORDS[self.severity()]
        found = [
            f.name for f in self.findings if f.about == "model" and f.severity >= Severity.WARNING
        ]
        of_model = dict.fromkeys(_DOUBTS[name] for name in found)
        # draws of such a guide may be what is unlike the data
        if self.severity() >= Severity.WARNING and found == [_REPLICATED]:
            of_model = ["Its draws do not make data like these: be it the guide or the model."]
        if self.tempered:
            factors = ", ".join(
                f"{name!r} by {factor:.3g}" for name, factor in self.tempered.items()
            )
            of_posterior += (
                f" It is held against the model without its poutine.scale ({factors}), whose "
                "posterior is another."
            )
        return " ".join([of_posterior, *of_model])

    def __str__(self) -> str:
        lines = [self.verdict, *(str(finding) for finding in self.findings)]
        lines += [
            f"[cut short] {name}: {what}; with more time (budget=...) it would be all."
            for name, what in self.cut.items()
        ]
        return "\n".join(
            [*lines, *(f"[not run] {name}: {why}" for name, why in self.skipped.items())]
        )


@dataclass(frozen=True)
class _Check:
    """A diagnostic that may apply: its name, what runs it at a false-alarm rate, and whether it is
    for this pair.

    Arguments:
        name: of the diagnostic.
        run: called with the false-alarm rate that is its share, and with the seconds that it may
            take.
        why_not: why it is not for this pair; empty if it is.
        tested: whether it makes a test, and so needs a share.
        about: as of a ``Finding``.
        part: its share of the time, beside those of the others.
    """

    name: str
    run: Callable[[float, float], Any]
    why_not: str = ""
    tested: bool = True
    about: Literal["posterior", "model"] = "posterior"
    part: float = 1.0


def diagnose(
    lvm: LatentVariableModel,
    data: Any,
    *,
    history: Any = None,
    budget: float = 120.0,
    num_data: int = 500,
    false_alarm: float = 0.01,
    schedule: Schedule | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Diagnosis:
    """Runs the diagnostics that apply to a pair, and orders what they find by severity.

    Arguments:
        lvm: the trained model and guide.
        data: those whose posterior is to be trusted: ``Data``, a tensor, or a tuple or dict of
            tensors with one datum a row.
        history: ``Fit`` or ``History`` of the training, by which its convergence is judged.
        budget: seconds, shared out among the diagnostics; each looks at less where its share is
            short, and is stopped at twice its share, though not before a quarter of the budget.
            All of it takes less than twice as long, save where a single run of the pair does not.
        num_data: data that are looked at, drawn from `seed` if there are more and each has latents
            of its own; all of them where the guide has parameters for each datum, so that it
            cannot do without the others.
        false_alarm: how often a right model, its posterior as guide, is given a warning by any of
            the tests; each has an equal share.
        schedule: of annealed importance sampling, where log p(x) is not known.
        seed: of all that is drawn.
        progress: whether to show a progress bar; by default on a terminal only.

    Returns:
        Diagnosis.

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
    given = as_data(data)
    picked = _picked_from_disk(given, num_data, seed)
    fixed, cut = fixed_beside(lvm, given if picked is None else given.subset(picked), seed), {}
    with seeded(seed, fixed.device):
        layout = in_parts(lvm, fixed)[1]
        if picked is not None and not layout.local:
            given.fixed(seed)  # of which some are not enough, and not all can be kept: it says so
        if (time.monotonic() - began) * _RUNS > budget and num_data > _FEW:
            num_data = _FEW
            cut = {"Data": f"{num_data} of {len(given)}"} if len(given) > num_data else {}
        index = _looked_at(lvm, fixed, layout, num_data, seed)
        looked = fixed.loaded() if len(index) == len(fixed) else fixed.subset(index)
        checks = list(_checks(lvm, looked, layout, history, schedule, seed))
    index = index if picked is None else picked[index]
    share = false_alarm / sum(check.tested and not check.why_not for check in checks)
    results, skipped, unfinished = {}, {}, []
    # Held between the diagnostics too: one that another thread breaks into would be left out.
    with one_thread(), ProgressBar("diagnosing", len(checks), show=progress) as bar:
        for i, check in enumerate(checks):
            bar.advance(0, check.name)
            left = began + budget - time.monotonic()
            told, applies = check.why_not, not check.why_not
            if not told and left <= -_BEYOND * budget:
                told = f"the budget of {budget:g} s was spent; give it more (budget=...)."
            elif not told:
                rest = sum(c.part for c in checks[i:] if not c.why_not)
                seconds = max(0.0, left * check.part / rest)
                most = min(max(2 * seconds, budget / 4), left + _BEYOND * budget)
                found, told, applies = _run(check, share, seconds, most)
                if not told:
                    results[check.name] = _named(
                        found, None if looked is fixed and picked is None else index
                    )
            if told:
                skipped[check.name] = told
                unfinished += [check.name] * (applies and check.about == "posterior")
            bar.advance()
    findings = sorted((result.finding for result in results.values()), key=lambda f: -f.severity)
    cut |= {name: what for name, result in results.items() if (what := getattr(result, "cut", ""))}
    return Diagnosis(
        tuple(findings),
        results,
        skipped,
        index,
        time.monotonic() - began,
        tuple(unfinished),
        cut,
        layout.tempered,
    )


def _import_all() -> None:
    """Makes torch and ArviZ import what they do on first use, which takes them seconds that are no
    diagnostic's.
    """
    psis(torch.linspace(0, 1, 100))
    bytes_made(lambda: torch.zeros(1))


def _run(check: _Check, share: float, seconds: float, most: float) -> tuple[Any, str, bool]:
    """What a check found, or why it found nothing; and whether it applies.

    After `most` seconds it is stopped.
    """
    try:
        with Stop(most):
            found = check.run(share, seconds)
        assert found.finding is not None  # one that cannot be put into words is none
        return found, "", True
    except OutOfTimeError:
        return (
            None,
            f"it was stopped after {most:.3g} s, beyond its share of the budget; give it more "
            "(budget=...).",
            True,
        )
    # one that fails must not take the others with it, nor pass for one that found nothing
    except Exception as error:
        told = " ".join(str(error).split("Trace Shapes:")[0].split())  # which Pyro appends
        told = (
            told
            if isinstance(error, ContractError | ValueError)
            else f"{type(error).__name__}: {told}"
        )
        return None, told, not isinstance(error, NotApplicable)


def _picked_from_disk(data: Data, count: int, seed: int) -> Tensor | None:
    """Which data are read, of those that stay on disk and have a transform, whose draws must be
    kept; None of any others.
    """
    return _some(len(data), count, seed) if data.streamed and data.transform is not None else None


def _some(total: int, count: int, seed: int) -> Tensor:
    """Which data are looked at, of so many, in order."""
    return (
        torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].sort().values
    )


def _looked_at(
    lvm: LatentVariableModel, data: Data, layout: Layout, count: int, seed: int
) -> Tensor:
    """Which data are looked at: some of them, where each has latents of its own and the guide
    knows it without the others; else all.
    """
    everything = torch.arange(len(data))
    if not layout.local or not data.divisible or len(data) <= count:
        return everything
    picked = _some(len(data), count, seed)
    try:
        find_layout(lvm, data.subset(picked).x, plate=layout.data_plate)
    except ContractError:  # a guide with parameters for each datum
        return everything
    return picked


def _named(found: Any, index: Tensor | None) -> Any:
    """A result whose data are named by their place among all, `index` being those that it looked
    at, or None for all.
    """
    return (
        found
        if index is None or not hasattr(found, "index")
        else replace(found, index=index[found.index])
    )


def _like(lvm: LatentVariableModel, data: Data, layout: Layout) -> Any:
    """What the pair needs to be simulated: nothing, where its data are made without a batch and
    are one themselves; else the data.
    """
    if not layout.local or not isinstance(data.x, Tensor) or len(layout.observed) != 1:
        return data.x
    try:
        drawn, _ = next(batches(lvm, 2))
        find_layout(lvm, drawn, plate=layout.data_plate)
        return None if drawn.shape[1:] == data.x.shape[1:] else data.x
    # it reads its batch, observes a view of it, knows one size only, or cannot be drawn from
    except ContractError:
        return data.x


def _checks(
    lvm: Any, data: Data, layout: Layout, history: Any, schedule: Schedule | None, seed: int
) -> Iterator[_Check]:
    shared = "" if layout.local else "its data share a latent."
    own = "each datum has latents of its own." if layout.local else ""
    like = _like(lvm, data, layout)
    many = 1000 if layout.local else 50_000
    yield _Check(
        "Pareto k̂",
        lambda share, s: pareto_k(
            lvm, data, seed=seed, num_samples=many, false_alarm=share, budget=s
        ),
        part=2.0,
    )
    yield _Check(
        "Rate",
        lambda share, s: rates(
            lvm, data, history=history, false_alarm=share, budget=s, seed=seed + 2
        ),
    )
    yield _Check(
        "Means and standard deviations",
        lambda share, s: correction(lvm, data, false_alarm=share, budget=s, seed=seed + 1),
        part=2.0,
    )
    yield _Check(
        "Posterior collapse",
        lambda _, s: collapse(lvm, data, seed=seed),
        shared,
        tested=False,
        about="model",
    )
    for name, calibrate in (("Calibration (SBC)", sbc), ("Calibration (TARP)", tarp)):
        yield _Check(
            name,
            lambda share, s, calibrate=calibrate: calibrate(
                lvm, like=like, false_alarm=share, seed=seed, budget=s
            ),
            shared,
            part=2.0,
        )
    for kind in ("posterior", "prior"):
        yield _Check(
            f"{kind.capitalize()} predictive check",
            lambda share, s, kind=kind: predictive_check(
                lvm,
                data,
                num_draws=max(200, round(2 / share)),
                kind=kind,
                false_alarm=share,
                seed=seed,
                budget=s,
            ),
            "" if kind == "posterior" or layout.local else _PRIORS,
            about="model",
        )
    yield _Check(
        "Leave-one-out prediction",
        lambda _, s: loo(lvm, data, seed=seed, budget=s),
        own,
        tested=False,
        about="model",
    )
    yield _Check(
        "Inference gap",
        lambda share, s: gaps(
            lvm, data, schedule=schedule, false_alarm=share, seed=seed, budget=s
        ),
        part=6.0,
    )
    yield _Check(
        "Convergence",
        # one for a rise, one for a fall
        lambda share, _: convergence(history, false_alarm=share / 2),
        "no history of the training was given (history=...)." if history is None else "",
        part=0.1,
    )
