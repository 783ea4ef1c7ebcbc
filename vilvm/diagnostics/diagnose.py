"""Can this posterior be trusted? All diagnostics that apply to a pair, within a time budget.

The findings are sorted, the most severe first. The diagnostics run in this order, the fast and
decisive ones before the slow:

- Pareto k̂ of the guide's weights, datum by datum;
- the rate, which cannot be negative, and whether training's own ELBO agrees with it;
- the correction of means and standard deviations by the weights;
- if each datum has latents of its own, collapse, and calibration on the model's own data (SBC,
  TARP) of an amortised guide;
- the posterior and the prior predictive check;
- if the data share a latent, leave-one-out prediction;
- convergence, if the history of the training is given;
- the gap between log p(x) and the ELBO, and what causes it;
- the table of the posterior (``PosteriorTable``), which shows what the others found.

The stated false-alarm rate is divided equally among the tests that apply (Bonferroni). A
diagnostic that does not apply, or for which no time is left, is named with the reason. Each has a
share of the remaining time and chooses its sizes accordingly; what it leaves out is named too. A
diagnostic that takes more than twice its share, and more than a quarter of the budget, is stopped.
If there are many data, a random subset is used and named by its index in the full data set.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
from vilvm._runtime.random import seeded
from vilvm._runtime.results import Result, Table, plots
from vilvm.diagnostics._chosen_data import choose
from vilvm.diagnostics._coordinates import Coordinates
from vilvm.diagnostics._names import names_of_pair
from vilvm.diagnostics._posterior_tables import table_of_pair
from vilvm.diagnostics._session import Check, Session
from vilvm.diagnostics._verdicts.diagnosis import (
    Judgement,
    diagnosis_report,
    judgement_of,
    verdict_of,
)
from vilvm.diagnostics.collapse import collapse
from vilvm.diagnostics.convergence import convergence
from vilvm.diagnostics.correction import correction
from vilvm.diagnostics.finding import Finding, Severity, findings_frame
from vilvm.diagnostics.gaps import gaps
from vilvm.diagnostics.loo import loo
from vilvm.diagnostics.pareto_k import pareto_k
from vilvm.diagnostics.posterior_table import PosteriorTable
from vilvm.diagnostics.predictive_check import predictive_check
from vilvm.diagnostics.psis import psis
from vilvm.diagnostics.rates import rates
from vilvm.diagnostics.sbc import sbc
from vilvm.diagnostics.tarp import tarp
from vilvm.evaluation import Schedule
from vilvm.evaluation.ais import check_schedule
from vilvm.lvm import ContractError, LatentVariableModel, data_beside
from vilvm.weights import find_layout
from vilvm.weights.prepared import Prepared, prepared_of
from vilvm.weights.simulation import batches

__all__ = ["Diagnosis", "diagnose"]

_SHARED = "its data share a latent."
_OWN = "each datum has latents of its own."
_PRIORS = (
    "priors of latents that the data share are the user's own; see "
    "predictive_check(kind='prior')."
)
_NO_HISTORY = "no history of the training was given (history=...)."


@dataclass(frozen=True, repr=False)
class Diagnosis(Result):
    """The findings of all diagnostics on a pair.

    It prints, and shows in a notebook, as the verdict, the findings, and what was not run.

    Arguments:
        findings: the most severe first.
        results: the result of each diagnostic, by its name.
        skipped: why a diagnostic was not run, by its name.
        index: index of the data used in the full data set, shape (num_data,).
        seconds: time taken.
        unfinished: skipped diagnostics of the posterior that apply, but failed or had no time.
        cut: what a diagnostic left out for lack of time, by its name.
        tempered: factors of the model's sites by ``poutine.scale``, if they differ; the findings
            are about the densities without them.
        posterior: the table of the posterior; None if there was no time for it.

    Examples:
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
    posterior: PosteriorTable | None = field(default=None, repr=False)

    @property
    def num_data(self) -> int:
        """The number of data used."""
        return len(self.index)

    def severity(self, about: Literal["posterior", "model"] = "posterior") -> Severity:
        """The severity of the most severe finding.

        Arguments:
            about: "posterior", the guide as posterior of this model; or "model", the model of
                these data.
        """
        return max(
            (f.severity for f in self.findings if f.about == about), default=Severity.OK
        )

    @property
    def trusted(self) -> bool:
        """Whether every diagnostic of the posterior that applies is complete and without warning.

        The model is not judged.
        """
        return not self.unfinished and self.severity() < Severity.WARNING

    @property
    def verdict(self) -> str:
        """A sentence about the posterior, and one about the model for each doubt."""
        return verdict_of(self)

    @property
    def judgements(self) -> tuple[Judgement, Judgement]:
        """What the findings say of the posterior, and of the model."""
        return judgement_of(self, "posterior"), judgement_of(self, "model")

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row a finding, the most severe first.

        Its columns are the fields of ``Finding``. The numbers of a diagnostic are in the frame of
        its result: ``diagnosis.results["Pareto k̂"].to_frame()``.
        """
        return findings_frame(self.findings)

    def plot(self, history: Any = None) -> Any:
        """The figures of the findings; see ``vilvm.plots.diagnosis_figures``.

        Arguments:
            history: of the training, for the finding on its convergence.

        Returns:
            A dict of figures by finding, which shows all of them in a notebook.

        Raises:
            ImportError: matplotlib is not installed.
        """
        return plots().diagnosis_figures(self.results, history)

    def _headline(self) -> Mapping[str, Any]:
        return {
            "posterior": self.severity().name,
            "model": self.severity("model").name,
            "findings": len(self.findings),
            "not_run": len(self.skipped),
        }

    def _contents(self) -> Iterator[str | Table]:
        return diagnosis_report(self)


def diagnose(
    lvm: LatentVariableModel | Prepared,
    data: Any = None,
    *,
    history: Any = None,
    budget: float = 120.0,
    num_data: int = 500,
    false_alarm: float = 0.01,
    schedule: Schedule | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Diagnosis:
    """Runs the diagnostics that apply to a pair, and sorts the findings by severity.

    Arguments:
        lvm: the trained model and guide; or a ``Prepared``, which holds the data too.
        data: the data whose posterior is to be trusted: ``Data``, a tensor, or a tuple or dict of
            tensors with one datum per row.
        history: ``Fit`` or ``History`` of the training, to judge its convergence.
        budget: seconds for all diagnostics, and for importing what they need. Each computes less
            if its share is short. It is stopped at twice its share or a quarter of the budget,
            whichever is longer, and a tenth of the budget after its end at the latest. The total
            exceeds the budget by more than a fifth only if a single run of the pair takes so long.
        num_data: data to use, drawn from `seed` if there are more and each has latents of its own;
            all data if the guide has parameters for each datum.
        false_alarm: probability of a warning by any test for a right model with its posterior as
            guide; each test has an equal share.
        schedule: schedule of annealed importance sampling, if log p(x) is not known.
        coords: by dimension, the name of each index, such as {"school": names}, as for
            ``export.to_datatree``: the plate over all data has its own name, and other dimensions
            of a site are "SITE_dim_0" and so on. The findings and the table use these names; by
            default the row labels and the names of columns that the data have.
        dims: by site, names for its dimensions except those of draws and data.
        seed: seed of all draws.
        progress: whether to show a progress bar.

    Returns:
        Diagnosis, with the findings and results of all diagnostics.

    Raises:
        ContractError: the pair breaks the contract on these data.
        ValueError: an option is out of range, or coords or dims do not fit.

    Examples:
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
    began = time.monotonic()
    import_all()
    if isinstance(lvm, Prepared):
        lvm = prepared_of("diagnose", lvm, data, seed=seed)
        data, seed = lvm.data, lvm.seed
    given = data_beside(lvm, data)
    chosen = choose(lvm, given, num_data, seed, began + budget)
    prepared = chosen.prepared
    with prepared.running():
        pair = prepared.lvm, prepared.batches[0].x, prepared.layout
        names = names_of_pair("diagnose", pair, given, coords, dims)
    with seeded(seed, chosen.prepared.device):
        checks = list(_checks(chosen.prepared, history, schedule, names))
    session = Session(chosen.index_to_name, budget, began + budget, names)
    session.run(checks, false_alarm, progress)
    table = session.tabulate(
        lambda seconds: table_of_pair(chosen.prepared, session.results, names, seconds)
    )
    findings = [result.finding for result in session.results.values()]
    return Diagnosis(
        findings=tuple(sorted(findings, key=lambda finding: -finding.severity)),
        results=session.results,
        skipped=session.skipped,
        index=chosen.index,
        seconds=time.monotonic() - began,
        unfinished=tuple(session.unfinished),
        cut=chosen.cut | session.cut,
        tempered=chosen.prepared.layout.tempered,
        posterior=table,
    )


def import_all() -> None:
    """Triggers the lazy imports of torch and ArviZ, so that no diagnostic is charged for them."""
    psis(torch.linspace(0, 1, 100))
    bytes_made(lambda: torch.zeros(1))


def _like(prepared: Prepared) -> Any:
    """The batch that simulation needs; None if the model makes the data without one."""
    data, layout = prepared.data, prepared.layout
    if not layout.local or not isinstance(data.x, Tensor) or len(layout.observed) != 1:
        return data.x
    try:
        drawn, _ = next(batches(prepared.lvm, 2))
        find_layout(prepared.lvm, drawn, plate=layout.data_plate)
    # The model reads its batch, observes a view of it, has one size only, or cannot be simulated.
    except ContractError:
        return data.x
    if drawn.shape[1:] == data.x.shape[1:]:
        return None
    return data.x


def _checks(
    prepared: Prepared, history: Any, schedule: Schedule | None, names: Coordinates
) -> Iterator[Check]:
    """All diagnostics, in their order."""
    yield from _weight_checks(prepared, history)
    yield from _local_checks(prepared)
    yield from _predictive_checks(prepared, names)
    yield Check(
        "Convergence",
        # The rate is halved: one test for a rise, one for a fall.
        lambda rate, _: convergence(history, false_alarm=rate / 2),
        why_not=_NO_HISTORY if history is None else "",
        part=0.1,
    )
    yield Check(
        "Inference gap",
        lambda rate, s: gaps(prepared, schedule=schedule, false_alarm=rate, budget=s),
        part=6.0,
    )


def _weight_checks(prepared: Prepared, history: Any) -> Iterator[Check]:
    """The diagnostics of the guide's importance weights.

    Rate and correction have seeds of their own, so that their draws are independent.
    """
    lvm, data, seed = prepared.lvm, prepared.data, prepared.seed
    num_samples = 1000 if prepared.local else 50_000
    yield Check(
        "Pareto k̂",
        lambda rate, s: pareto_k(
            prepared, num_samples=num_samples, false_alarm=rate, budget=s
        ),
        part=2.0,
    )
    yield Check(
        "Rate",
        lambda rate, s: rates(
            lvm, data, history=history, false_alarm=rate, budget=s, seed=seed + 2
        ),
    )
    yield Check(
        "Means and standard deviations",
        lambda rate, s: correction(
            lvm, data, false_alarm=rate, budget=s, seed=seed + 1
        ),
        part=2.0,
    )


def _local_checks(prepared: Prepared) -> Iterator[Check]:
    """The diagnostics for data with latents of their own."""
    why_not = "" if prepared.local else _SHARED
    like = _like(prepared)
    options = {"like": like, "seed": prepared.seed}
    yield Check(
        "Posterior collapse",
        lambda _, s: collapse(prepared),
        why_not,
        tested=False,
        about="model",
    )
    yield Check(
        "Calibration (SBC)",
        lambda rate, s: sbc(prepared.lvm, **options, false_alarm=rate, budget=s),
        why_not,
        part=2.0,
    )
    yield Check(
        "Calibration (TARP)",
        lambda rate, s: tarp(prepared.lvm, **options, false_alarm=rate, budget=s),
        why_not,
        part=2.0,
    )


def _predictive_checks(prepared: Prepared, names: Coordinates) -> Iterator[Check]:
    """The diagnostics of the model's predictions."""

    def check(kind: Literal["posterior", "prior"], rate: float, seconds: float) -> Any:
        num_draws = max(200, round(2 / rate))
        return predictive_check(
            prepared,
            num_draws=num_draws,
            kind=kind,
            false_alarm=rate,
            budget=seconds,
            columns=names.of_columns(prepared.layout.observed),
        )

    yield Check(
        "Posterior predictive check",
        lambda rate, s: check("posterior", rate, s),
        about="model",
    )
    yield Check(
        "Prior predictive check",
        lambda rate, s: check("prior", rate, s),
        why_not="" if prepared.local else _PRIORS,
        about="model",
    )
    yield Check(
        "Leave-one-out prediction",
        lambda _, s: loo(prepared, budget=s),
        why_not=_OWN if prepared.local else "",
        tested=False,
        about="model",
    )
