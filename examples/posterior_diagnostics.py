"""Whether a posterior can be trusted: of a run of vae_mnist, or of a prescribed model by its name.

    python -m examples.posterior_diagnostics runs/vae_mnist-DATE-TIME
    python -m examples.posterior_diagnostics eight_schools
    python -m examples.posterior_diagnostics kidiq_raw --guide mean_field

Prints what is found, the gravest first, and writes the page, the ArviZ DataTree (posterior.nc) and the numbers. Of a VAE it also sets the importance-weighted
bound beside annealed importance sampling on the same test images, and says by bidirectional Monte Carlo how far the latter may be off.
"""

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from rich.table import Table as RichTable

import vilvm
from examples import vae_mnist
from examples._options import console, new_folder, own, positive, run, save, settings_in, write_settings
from examples._prescribed import MODELS, fit_case
from vilvm import export, report
from vilvm.data import Data
from vilvm.evaluation import Estimate, Sandwich, Schedule, ais, bdmc, evaluate
from vilvm.files import write_json
from vilvm.lvm import ContractError
from vilvm.report import Page, Table

_EXPORTED = 100  # data whose posterior is written, where each has latents of its own


class Subject(NamedTuple):
    """What is diagnosed."""

    name: str
    lvm: Any
    data: Data
    fitted: vilvm.Fit | None


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.posterior_diagnostics", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("subject", help=f"a run folder of vae_mnist, or one of {', '.join(MODELS)}")
    parser.add_argument(
        "--guide", help="of a prescribed model: mean_field, full_rank, flow, ...; the one that should do by default"
    )
    parser.add_argument("--steps", type=positive, help="of a prescribed model's fit")
    parser.add_argument("--num-data", type=positive, default=500, help="test images that are looked at")
    parser.add_argument("--samples", type=positive, default=5000, help="importance samples for each")
    parser.add_argument("--temperatures", type=positive, default=100, help="of annealed importance sampling")
    parser.add_argument("--budget", type=positive, default=300, help="seconds after which no diagnostic is begun")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder; default: runs/posterior_diagnostics-DATE-TIME")
    return parser.parse_args(argv)


def subject_of(settings: dict[str, Any]) -> Subject:
    name = settings["subject"]
    if name in MODELS:
        case = MODELS[name](settings["guide"])
        console.print(f"Fitting {name}", highlight=False)
        return Subject(name, case.lvm, case.data, fit_case(case, settings["seed"], settings["steps"]))
    folder = Path(name)
    if not folder.is_dir():
        raise SystemExit(f"{name} is neither a run folder nor a prescribed model; there are {', '.join(MODELS)}.")
    of_run = settings_in(folder / "settings.json", vae_mnist.arguments, "vae_mnist")
    lvm, data = vae_mnist.begin(of_run)
    fitted = vae_mnist.train(lvm, data, of_run, folder, resume=True)
    if fitted.stopped == "interrupted":
        raise KeyboardInterrupt
    order = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(settings["seed"]))
    name = {"mnist": "MNIST"}.get(data.name, data.name)
    return Subject(f"VAE on {name}", lvm, data.test.subset(order[: settings["num_data"]]), fitted)


def evidence(subject: Subject, settings: dict[str, Any]) -> tuple[dict[str, Estimate], Sandwich | None]:
    """Estimates of log p(x) on the same data, by name, and how far AIS is off on the model's own data."""
    seed, schedule = settings["seed"], Schedule(num_temperatures=settings["temperatures"], leapfrog=3)
    evaluation = evaluate(subject.lvm, subject.data, num_samples=settings["samples"], seed=seed)
    names = {"elbo": "ELBO", "iwae": f"IWAE-{settings['samples']}", "exact": "exact"}
    found = {names[name]: bound for name, bound in evaluation.bounds.items()}
    annealing = ais(subject.lvm, subject.data, schedule, seed=seed)
    found[f"AIS, {schedule.num_chains} chains × {schedule.num_temperatures} temperatures"] = annealing.bound
    try:
        both = bdmc(subject.lvm, schedule, num_simulations=len(annealing.bound.values), seed=seed)
    except ContractError:
        like = subject.data.x
        try:
            both = bdmc(
                subject.lvm,
                Schedule(num_temperatures=20 * settings["temperatures"], leapfrog=3, base="prior"),
                num_simulations=4,
                like=like,
                seed=seed,
            )
        except ContractError as error:
            console.print(f"No bound from above: {error}", highlight=False)
            both = None
    return found, both


def show(subject: Subject, bounds: dict[str, Estimate], both: Sandwich | None, diagnosis: vilvm.Diagnosis) -> None:
    table = RichTable(title=f"{subject.name}: log p(x), nats", title_justify="left")
    for head in ("", "mean", "± SE over the data", "± SE of Monte Carlo"):
        table.add_column(head, justify="right" if head else "left")
    for name, bound in bounds.items():
        table.add_row(name, f"{bound.mean:.3f}", f"{bound.se:.3f}", f"{bound.mc_se:.3f}")
    if both is not None:
        gap = both.gap
        table.add_row("BDMC gap, on the model's own data", f"{gap.mean:.3f}", f"{gap.se:.3f}", f"{gap.mc_se:.3f}")
    console.print(table)
    console.print(f"[bold]{diagnosis.verdict}", highlight=False)
    for finding in diagnosis.findings:
        console.print(f"• {finding}", highlight=False, markup=False)
    for name, why in diagnosis.skipped.items():
        console.print(f"• not run: {name}: {why}", highlight=False, markup=False)


def page(
    subject: Subject,
    settings: dict[str, Any],
    bounds: dict[str, Estimate],
    both: Sandwich | None,
    diagnosis: vilvm.Diagnosis,
    plots: dict[str, Figure],
) -> Page:
    rows = [[name, bound.mean, bound.se, bound.mc_se] for name, bound in bounds.items()]
    if both is not None:
        rows.append(["BDMC gap, on the model's own data", both.gap.mean, both.gap.se, both.gap.mc_se])
    tables = {"log p(x), in nats": Table(["", "mean", "SE over the data", "SE of Monte Carlo"], rows)}
    if diagnosis.skipped:
        tables["Not run"] = Table(["diagnostic", "why"], [[name, why] for name, why in diagnosis.skipped.items()])
    return Page(
        f"Can this posterior be trusted? {subject.name}",
        diagnosis.verdict,
        summary={f"{name.split(',')[0]} (nats)": bound for name, bound in bounds.items()},
        findings=diagnosis.findings,
        finding_figures=plots,
        tables=tables,
        history=None if subject.fitted is None else subject.fitted.history,
        settings=settings,
        command=report.command("examples.posterior_diagnostics", settings),
        environment=report.environment("cpu", settings["seed"]),
    )


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    folder, settings = new_folder(args, "posterior_diagnostics"), own(args)
    write_settings(folder, settings)
    began = time.perf_counter()
    subject = subject_of(settings)
    bounds, both = evidence(subject, settings)
    diagnosis = vilvm.diagnose(
        subject.lvm,
        subject.data,
        history=subject.fitted,
        budget=settings["budget"],
        num_data=settings["num_data"],
        schedule=Schedule(num_temperatures=settings["temperatures"], leapfrog=3),
        seed=settings["seed"],
    )
    small = subject.data.subset(slice(0, _EXPORTED)) if subject.data.divisible and len(subject.data) > _EXPORTED else subject.data
    export.save(export.to_datatree(subject.lvm, small, seed=settings["seed"]), folder / "posterior.nc")
    show(subject, bounds, both, diagnosis)
    told = [{**vars(finding), "gravity": finding.gravity.name} for finding in diagnosis.findings]
    numbers = {name: {"mean": b.mean, "se": b.se, "mc_se": b.mc_se} for name, b in bounds.items()}
    gap = None if both is None else {"mean": both.gap.mean, "se": both.gap.se, "mc_se": both.gap.mc_se}
    write_json(
        folder / "results.json",
        {"verdict": diagnosis.verdict, "findings": told, "not_run": diagnosis.skipped, "evidence": numbers, "bdmc_gap": gap},
    )
    plots = report.diagnosis_figures(diagnosis.results, subject.fitted)
    save(plots, folder / "figures")
    page(subject, settings, bounds, both, diagnosis, plots).write(folder / "page.html")
    console.print(
        f"Took {time.perf_counter() - began:.0f} s; open {folder / 'page.html'}; posterior.nc is beside it", highlight=False
    )
    return 0


if __name__ == "__main__":
    run(main)
