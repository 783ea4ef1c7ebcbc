"""Diagnoses the posterior of a run of vae_mnist, or of a prescribed model given by name.

    python -m examples.posterior_diagnostics runs/vae_mnist-DATE-TIME
    python -m examples.posterior_diagnostics eight_schools
    python -m examples.posterior_diagnostics kidiq_raw --guide mean_field

Prints the findings by severity, and writes the page, the ArviZ DataTree (posterior.nc) and the
numbers. It also compares the importance-weighted bound with annealed importance sampling (AIS) on
the same data, and bounds the error of AIS by bidirectional Monte Carlo.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from rich.table import Table as RichTable

import vilvm
from examples import vae_mnist
from examples._options import (
    console,
    positive,
    run,
    run_folder,
    save,
    settings_in,
    write_settings,
)
from examples._prescribed import MODELS, fit_case
from vilvm import export, plots, report
from vilvm._runtime.files import write_json
from vilvm.data import Data
from vilvm.evaluation import Estimate, Schedule, ais, bdmc, evaluate
from vilvm.lvm import ContractError, device_of
from vilvm.report import Page, Table
from vilvm.weights import find_layout

_EXPORTED = 100  # data whose posterior is written, if each has latents of its own
# Predictive draws of each of them; more would make a file of half a gigabyte for images.
_REPLICATES = 50


class Subject(NamedTuple):
    """A pair, its data, its training if there was one, and the names of its data."""

    name: str
    lvm: Any
    data: Data
    fitted: vilvm.Fit | None
    coords: Mapping[str, Sequence[Any]] | None = None


class Evidence(NamedTuple):
    """Estimates of log p(x) by name, and the bidirectional Monte Carlo gap of the last one."""

    bounds: dict[str, Estimate]
    gaps: dict[str, Estimate]

    @property
    def all(self) -> dict[str, Estimate]:
        return self.bounds | self.gaps


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.posterior_diagnostics",
        description=(__doc__ or "").split("\n")[0],
    )
    parser.add_argument(
        "subject", help=f"a run folder of vae_mnist, or one of {', '.join(MODELS)}"
    )
    parser.add_argument(
        "--guide",
        help="of a prescribed model: mean_field, full_rank, flow, ...; default: a good one",
    )
    parser.add_argument("--steps", type=positive, help="of a prescribed model's fit")
    parser.add_argument(
        "--num-data", type=positive, default=500, help="test images to diagnose"
    )
    parser.add_argument(
        "--samples", type=positive, default=5000, help="importance samples for each"
    )
    parser.add_argument(
        "--temperatures",
        type=positive,
        default=100,
        help="of annealed importance sampling",
    )
    parser.add_argument(
        "--budget",
        type=positive,
        default=300,
        help="seconds after which no diagnostic starts",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, help="folder; default: runs/posterior_diagnostics-DATE-TIME"
    )
    return parser.parse_args(argv)


def subject_of(settings: dict[str, Any]) -> Subject:
    name = settings["subject"]
    if name in MODELS:
        case = MODELS[name](settings["guide"])
        console.print(f"Fitting {name}", highlight=False)
        return Subject(
            name,
            case.lvm,
            case.data,
            fit_case(case, settings["seed"], settings["steps"]),
            case.coords,
        )
    folder = Path(name)
    if not folder.is_dir():
        raise SystemExit(
            f"{name} is neither a run folder nor a prescribed model; there are "
            f"{', '.join(MODELS)}."
        )
    of_run = settings_in(folder / "settings.json", vae_mnist.arguments, "vae_mnist")
    lvm, data = vae_mnist.begin(of_run)
    fitted = vae_mnist.train(lvm, data, of_run, folder, resume=True)
    if fitted.stopped == "interrupted":
        raise KeyboardInterrupt
    name = {"mnist": "MNIST"}.get(data.name, data.name)
    # Fixed here, so that a part of the data has the same noise as the whole.
    return Subject(f"VAE on {name}", lvm, data.test.fixed(settings["seed"]), fitted)


def part_of(data: Data, index: torch.Tensor) -> Data:
    if not data.divisible:
        return data
    return data.subset(index)


def evidence(subject: Subject, data: Data, settings: dict[str, Any]) -> Evidence:
    """Bounds on log p(x) of the diagnosed data, and the gap of bidirectional Monte Carlo with the
    same settings.
    """
    seed, temperatures = settings["seed"], settings["temperatures"]
    schedule = Schedule(num_temperatures=temperatures, leapfrog=3)
    evaluation = evaluate(subject.lvm, data, num_samples=settings["samples"], seed=seed)
    names = {"elbo": "ELBO", "iwae": f"IWAE-{settings['samples']}", "exact": "exact"}
    bounds = {names[name]: bound for name, bound in evaluation.bounds.items()}
    annealed = ais(subject.lvm, data, schedule, seed=seed).bound
    bounds[_of(schedule)] = annealed
    try:
        gap = bdmc(
            subject.lvm, schedule, num_simulations=len(annealed.values), seed=seed
        ).gap
        return Evidence(
            bounds, {f"its BDMC gap, on {len(gap.values)} simulated data": gap}
        )
    except (
        ContractError
    ):  # a guide fitted to these data cannot start from simulated data
        schedule = Schedule(
            num_temperatures=20 * temperatures, leapfrog=3, base="prior"
        )
    try:
        gap = bdmc(subject.lvm, schedule, num_simulations=4, like=data.x, seed=seed).gap
    except ContractError as error:
        console.print(f"No bound from above: {error}", highlight=False)
        return Evidence(bounds, {})
    bounds[_of(schedule)] = ais(subject.lvm, data, schedule, seed=seed).bound
    return Evidence(
        bounds, {f"its BDMC gap, on {len(gap.values)} simulated data sets": gap}
    )


def _of(schedule: Schedule) -> str:
    return f"AIS from the {schedule.base}, {schedule.num_chains} × {schedule.num_temperatures:,}"


def show(subject: Subject, found: Evidence, diagnosis: vilvm.Diagnosis) -> None:
    table = RichTable(
        title=f"{subject.name}: log p(x), nats (AIS: chains × temperatures)",
        title_justify="left",
    )
    for head in ("", "mean", "± SE over the data", "± SE of Monte Carlo"):
        table.add_column(head, justify="right" if head else "left")
    for name, bound in found.all.items():
        table.add_row(
            name, f"{bound.mean:.3f}", f"{bound.se:.3f}", f"{bound.mc_se:.3f}"
        )
    console.print(table)
    console.print(f"[bold]{diagnosis.verdict}", highlight=False)
    if diagnosis.posterior is not None:
        console.print(str(diagnosis.posterior), highlight=False, markup=False)
    for finding in diagnosis.findings:
        console.print(f"• {finding}", highlight=False, markup=False)
    for name, why in diagnosis.skipped.items():
        console.print(f"• not run: {name}: {why}", highlight=False, markup=False)


def page(
    subject: Subject,
    settings: dict[str, Any],
    found: Evidence,
    diagnosis: vilvm.Diagnosis,
    plots: dict[str, Figure],
) -> Page:
    rows = [
        [name, bound.mean, bound.se, bound.mc_se] for name, bound in found.all.items()
    ]
    tables = {
        "log p(x), in nats (AIS: chains × temperatures)": Table(
            ["", "mean", "SE over the data", "SE of Monte Carlo"], rows
        )
    }
    return report.diagnosis_page(
        diagnosis,
        f"Can this posterior be trusted? {subject.name}",
        history=subject.fitted,
        summary={
            f"{name.split(',')[0]} (nats)": bound
            for name, bound in found.bounds.items()
        },
        finding_figures=plots,
        tables=tables,
        settings=settings,
        command=report.command("examples.posterior_diagnostics", settings),
        environment=report.environment(str(device_of(subject.lvm)), settings["seed"]),
    )


def posterior_of(subject: Subject, index: torch.Tensor, seed: int) -> Any:
    """The DataTree.

    If each datum has its own latents, the tree holds the first diagnosed data, with their index in
    the full data set as coordinate.
    """
    layout = find_layout(subject.lvm, part_of(subject.data, index).x)
    if not (layout.local and subject.data.divisible):
        return export.to_datatree(
            subject.lvm, subject.data, coords=subject.coords, seed=seed
        )
    if len(index) < len(subject.data):
        index = index[:_EXPORTED]
    part, coords = (
        part_of(subject.data, index),
        {layout.data_plate or "": index.tolist()},
    )
    return export.to_datatree(
        subject.lvm, part, num_predictive=_REPLICATES, coords=coords, seed=seed
    )


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    with run_folder(args, arguments, "posterior_diagnostics") as (folder, settings):
        return work(folder, settings)


def work(folder: Path, settings: dict[str, Any]) -> int:
    write_settings(folder, settings)
    began = time.perf_counter()
    subject = subject_of(settings)
    console.print("Diagnosing", highlight=False)
    diagnosis = vilvm.diagnose(
        subject.lvm,
        subject.data,
        history=subject.fitted,
        budget=settings["budget"],
        num_data=settings["num_data"],
        schedule=Schedule(num_temperatures=settings["temperatures"], leapfrog=3),
        coords=subject.coords,
        seed=settings["seed"],
    )
    diagnosed = part_of(subject.data, diagnosis.index)
    console.print("Bounding log p(x)", highlight=False)
    found = evidence(subject, diagnosed, settings)
    export.save(
        posterior_of(subject, diagnosis.index, settings["seed"]),
        folder / "posterior.nc",
    )
    show(subject, found, diagnosis)
    findings = [
        {**vars(finding), "severity": finding.severity.name}
        for finding in diagnosis.findings
    ]
    bounds, gaps = (
        {
            name: {"mean": e.mean, "se": e.se, "mc_se": e.mc_se}
            for name, e in each.items()
        }
        for each in found
    )
    write_json(
        folder / "results.json",
        {
            "verdict": diagnosis.verdict,
            "findings": findings,
            "not_run": diagnosis.skipped,
            "evidence": bounds,
            "bdmc_gap": gaps,
        },
    )
    figures = plots.diagnosis_figures(diagnosis.results, subject.fitted)
    save(figures, folder / "figures")
    page(subject, settings, found, diagnosis, figures).write(folder / "page.html")
    console.print(
        f"Took {time.perf_counter() - began:.0f} s; open {folder / 'page.html'}; posterior.nc is "
        "beside it",
        highlight=False,
    )
    return 0


if __name__ == "__main__":
    run(main)
