"""Can this posterior be trusted? What applies to a pair is run, in a stated budget, and what was found is told the gravest first.

In turn, the quick and the telling before the slow:

- Pareto k̂ of the guide's weights, datum by datum;
- where the data share a latent, what the weights would correct in means and standard deviations, and leave-one-out prediction;
- where each datum has latents of its own, collapse, and calibration on the model's own data (SBC, TARP);
- the posterior and the prior predictive check;
- the gap between log p(x) and the ELBO, and whose it is;
- convergence, if the history of the training is given.

Every test keeps to its share of the stated false-alarm rate. A diagnostic that does not apply, or for which no time was left, is named with the reason.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from vilvm.data import Data, seeded
from vilvm.diagnostics.calibration import sbc, tarp
from vilvm.diagnostics.collapse import collapse
from vilvm.diagnostics.convergence import convergence
from vilvm.diagnostics.correction import correction
from vilvm.diagnostics.finding import Finding, Gravity
from vilvm.diagnostics.gaps import gaps
from vilvm.diagnostics.loo import loo
from vilvm.diagnostics.predictive import predictive_check
from vilvm.diagnostics.psis import pareto_k
from vilvm.evaluation import Schedule
from vilvm.evaluation.bounds import in_parts
from vilvm.lvm import ContractError, LatentVariableModel, fixed_beside
from vilvm.progress import ProgressBar
from vilvm.weights import Layout

__all__ = ["Diagnosis", "diagnose"]

_TESTS = 5  # that have a false-alarm rate, at most, in one diagnosis
_WORDS = {
    Gravity.FINE: "Nothing was found that speaks against this posterior.",
    Gravity.NOTE: "Nothing was found that speaks against using this posterior; there are notes.",
    Gravity.WARNING: "Do not trust this posterior as it stands.",
    Gravity.GRAVE: "Do not trust this posterior.",
}


@dataclass(frozen=True)
class Diagnosis:
    """What ``diagnose`` found.

    Arguments:
        findings: the gravest first.
        results: what each diagnostic returned, by the name of its finding.
        skipped: why a diagnostic was not run, by its name.
        num_data: how many of the data were looked at.
        seconds: taken.
        unfinished: of those skipped, diagnostics of the posterior that apply, and failed or had no time left.
    """

    findings: tuple[Finding, ...]
    results: dict[str, Any] = field(repr=False)
    skipped: dict[str, str]
    num_data: int
    seconds: float
    unfinished: tuple[str, ...] = ()

    def gravity(self, about: Literal["posterior", "model"] = "posterior") -> Gravity:
        """That of the gravest finding about the guide as posterior of this model, or about the model of these data."""
        return max((f.gravity for f in self.findings if f.about == about), default=Gravity.FINE)

    @property
    def trusted(self) -> bool:
        """Whether every diagnostic of the posterior that applies was run to its end, and none found a warning or worse.

        What the model itself is worth is another question.
        """
        return not self.unfinished and self.gravity() < Gravity.WARNING

    @property
    def verdict(self) -> str:
        """One sentence about the posterior, and one about the model if it is in doubt."""
        doubt = " The model does not make data like these." if self.gravity("model") >= Gravity.WARNING else ""
        if self.unfinished and self.gravity() < Gravity.WARNING:
            told = "; ".join(f"{name}: {self.skipped[name]}" for name in self.unfinished)
            return f"This posterior cannot be vouched for, for not all of it was looked at ({told})" + doubt
        return _WORDS[self.gravity()] + doubt

    def __str__(self) -> str:
        lines = [self.verdict, *(str(finding) for finding in self.findings)]
        return "\n".join([*lines, *(f"[not run] {name}: {why}" for name, why in self.skipped.items())])


@dataclass(frozen=True)
class _Check:
    """A diagnostic that may apply: its name, what runs it, and for which pairs it is."""

    name: str
    run: Callable[[], Any]
    applies: bool = True
    why_not: str = ""

    @property
    def of_posterior(self) -> bool:
        """Whether it says something of the posterior, and not of the model."""
        return "predict" not in self.name


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
    """Runs the diagnostics that apply to a pair, and orders what they find by gravity.

    Arguments:
        lvm: the trained model and guide.
        data: those whose posterior is to be trusted: ``Data``, a tensor, or a tuple or dict of tensors with one datum a row.
        history: ``Fit`` or ``History`` of the training, by which its convergence is judged.
        budget: seconds after which no diagnostic is begun; one that is running is let finish.
        num_data: data that are looked at, drawn from `seed` if there are more and each has latents of its own.
        false_alarm: how often a right model, its posterior as guide, is given a warning by any of the tests.
        schedule: of annealed importance sampling, where log p(x) is not known.
        seed: of all that is drawn.
        progress: whether to show a progress bar; by default on a terminal only.

    Returns:
        Diagnosis.

    Raises:
        ContractError: the pair breaks the contract on these data.

    Example:
        >>> import torch, vilvm
        >>> from models.ppca import PPCA
        >>> x = torch.randn(100, 4) * torch.tensor([4.0, 2.0, 1.0, 1.0])
        >>> found = vilvm.diagnose(PPCA(4, 2).maximise(x), x, budget=100)
        >>> found.trusted, "Pareto k̂" in found.results
        (True, True)
    """
    if not budget > 0:
        raise ValueError(f"diagnose: budget must be a positive number of seconds; got {budget!r}.")
    if not 0 < false_alarm < 1:
        raise ValueError(f"diagnose: false_alarm must be between 0 and 1; got {false_alarm!r}.")
    began = time.monotonic()
    fixed = fixed_beside(lvm, data, seed)
    with seeded(seed, fixed.device):
        plan = in_parts(lvm, fixed)[1]
    looked = _some(fixed, num_data, seed) if plan.local else fixed
    results, skipped, unfinished = {}, {}, []
    checks = list(_checks(lvm, looked, plan, history, false_alarm / _TESTS, schedule, seed))
    with ProgressBar("diagnosing", len(checks), show=progress) as bar:
        for check in checks:
            bar.advance(0, check.name)
            if not check.applies:
                skipped[check.name] = check.why_not
            elif time.monotonic() - began > budget:
                skipped[check.name] = f"the budget of {budget:g} s was spent; give it more (budget=...)."
            else:
                try:
                    results[check.name] = check.run()
                except Exception as error:  # one that fails must not take the others with it, nor pass for one that found nothing
                    known = isinstance(error, ContractError | ValueError)
                    skipped[check.name] = str(error) if known else f"{type(error).__name__}: {error}"
            if check.applies and check.of_posterior and check.name not in results:
                unfinished.append(check.name)
            bar.advance()
    findings = sorted((r.finding for r in results.values()), key=lambda f: -f.gravity)
    return Diagnosis(tuple(findings), results, skipped, len(looked), time.monotonic() - began, tuple(unfinished))


def _some(data: Data, count: int, seed: int) -> Data:
    if not data.divisible or len(data) <= count:
        return data
    picked = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:count]
    return data.subset(picked.sort().values)


def _checks(
    lvm: Any, data: Data, plan: Layout, history: Any, false_alarm: float, schedule: Schedule | None, seed: int
) -> Iterator[_Check]:
    shared, own = "its data share a latent.", "each datum has latents of its own."
    draws = max(200, round(2 / false_alarm))
    like = None if plan.local and isinstance(data.x, torch.Tensor) else data.x
    yield _Check(
        "Pareto k̂", lambda: pareto_k(lvm, data, seed=seed, num_samples=1000 if plan.local else 50_000, false_alarm=false_alarm)
    )
    yield _Check("Means and standard deviations", lambda: correction(lvm, data, seed=seed + 1), not plan.local, own)
    yield _Check("Posterior collapse", lambda: collapse(lvm, data, seed=seed), plan.local, shared)
    for name, calibrate in (("Calibration (SBC)", sbc), ("Calibration (TARP)", tarp)):
        yield _Check(
            name, lambda calibrate=calibrate: calibrate(lvm, like=like, false_alarm=false_alarm, seed=seed), plan.local, shared
        )
    for kind in ("posterior", "prior"):
        yield _Check(
            f"{kind.capitalize()} predictive check",
            lambda kind=kind: predictive_check(lvm, data, num_draws=draws, kind=kind, false_alarm=false_alarm, seed=seed),
            kind == "posterior" or plan.local,
            "priors of latents that the data share are the user's own; see predictive_check(kind='prior').",
        )
    yield _Check("Leave-one-out prediction", lambda: loo(lvm, data, seed=seed), not plan.local, own)
    yield _Check("Inference gap", lambda: gaps(lvm, data, schedule=schedule, seed=seed))
    yield _Check(
        "Convergence", lambda: convergence(history), history is not None, "no history of the training was given (history=...)."
    )
