"""The commands, one function each; ``vilvm.cli.main`` calls them by name."""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from vilvm._runtime.extras import require
from vilvm._runtime.files import write_atomic, write_json
from vilvm._runtime.random import seeded
from vilvm.cli._data import read_data
from vilvm.cli._models import (
    MODEL_FILE,
    Subject,
    device_of,
    subject_of,
    trained_columns,
)
from vilvm.data.data import Data
from vilvm.diagnostics import Diagnosis
from vilvm.diagnostics import diagnose as diagnose_model
from vilvm.diagnostics.finding import findings_frame
from vilvm.evaluation import Evaluation
from vilvm.evaluation import evaluate as evaluate_model
from vilvm.inference import Posterior
from vilvm.inference import infer as infer_posterior
from vilvm.lvm import NotApplicable
from vilvm.saving import save
from vilvm.training import Fit, fit, one_cycle
from vilvm.training.checkpoint import latest

__all__ = ["diagnose", "evaluate", "infer", "report", "train"]

_EPOCHS = 100
# what findings advise in Python, and its option here
_OPTIONS = {
    "budget=...": "--budget",
    " (history=...)": ", which only Python takes",
    "refine=True": "in Python, refine=True",
}


def train(args: argparse.Namespace) -> None:
    """Trains a model, and saves it with its settings and history."""
    folder = _folder(args)
    if args.resume and args.out is None:
        raise ValueError("--resume needs --out, the folder of the run to continue.")
    data, held_out = _split(_data(args), args.validation, args.seed)
    with seeded(args.seed, purpose="training"):
        subject = subject_of(args.model, dict(args.set), data)
    lvm = _pair(subject)
    if not args.resume:
        _begin(folder, _settings(args))
    fitted = fit(
        lvm.train(),
        data,
        **_training(args, data),
        objective=subject.objective and subject.objective(),
        validation=held_out,
        patience=args.patience,
        device=device_of(args.device),
        seed=args.seed,
        run_dir=folder,
        resume=args.resume,
    )
    if fitted.stopped == "interrupted":
        raise KeyboardInterrupt
    save(lvm, folder / MODEL_FILE, data=data)
    _print_training(subject, fitted, folder)


def evaluate(args: argparse.Namespace) -> None:
    """Prints the bounds, and writes them with those of every datum."""
    data = _data(args)
    subject = _subject(args, data)
    found = evaluate_model(
        subject.model, data, num_samples=args.samples, seed=args.seed
    )
    _print_bounds(subject, found)
    if args.out is not None:
        _write_evaluation(found, args.out)
        _say(f"Written to {args.out}: evaluation.json, per_datum.csv")


def diagnose(args: argparse.Namespace) -> None:
    """Prints the verdict and the findings, and writes them."""
    data = _data(args)
    found = _diagnosed(_subject(args, data), data, args)
    _say(str(found))
    if args.out is not None:
        _write_diagnosis(found, args.out)
        _say(f"Written to {args.out}: diagnosis.json, findings.csv")


def infer(args: argparse.Namespace) -> None:
    """Prints the verdict and the table of latents, and writes them with the draws."""
    data = _data(args)
    subject = subject_of(args.model, dict(args.set), data, saved=args.load)
    found = infer_posterior(subject.model, data, budget=args.budget, seed=args.seed)
    _say(str(found))
    if args.out is not None:
        _write_posterior(found, args.out)
        _say(f"Written to {args.out}: posterior.json, summary.csv, draws.csv")


def report(args: argparse.Namespace) -> None:
    """Evaluates and diagnoses a model, and writes the page."""
    require("matplotlib", extra="plots")
    from vilvm.report import diagnosis_page, environment

    folder, data = _folder(args), _data(args)
    subject = _subject(args, data)
    bounds = evaluate_model(
        subject.model, data, num_samples=args.samples, seed=args.seed
    )
    found = _diagnosed(subject, data, args)
    _write_evaluation(bounds, folder)
    _write_diagnosis(found, folder)
    summary = {_title(n, bounds): bound for n, bound in bounds.bounds.items()}
    diagnosis_page(
        found,
        f"{subject.name} on {data.name}",
        summary=summary | {"distortion": bounds.distortion},
        settings=_settings(args),
        environment=environment(device_of(args.device), args.seed),
    ).write(folder / "page.html")
    _print_bounds(subject, bounds)
    _say(found.verdict)
    _say(f"Written to {folder}: page.html and its numbers")


# The parts of a command
# ------------------------------------------------------------------------------------


def _data(args: argparse.Namespace) -> Data:
    saved = getattr(args, "load", None) or args.model
    trained = trained_columns(str(saved), args.target)
    return read_data(args.data, args.columns, args.target, args.each, trained=trained)


def _subject(args: argparse.Namespace, data: Data) -> Subject:
    """The model of a command that needs a trained one, on its device."""
    with seeded(args.seed, purpose="training"):
        subject = subject_of(args.model, dict(args.set), data, saved=args.load)
    lvm = _pair(subject)
    if not subject.trained and any(p.requires_grad for p in lvm.parameters()):
        _say(
            f"{subject.name} is not trained: its parameters are those of the constructor (give a "
            "folder of vilvm train, or --load FILE)."
        )
    lvm.to(device_of(args.device))
    return subject


def _pair(subject: Subject) -> Any:
    """The model, which must be a module with a guide."""
    if not isinstance(subject.model, torch.nn.Module):
        raise ValueError(
            f"{subject.name} has no guide; give a class with model and guide, or use vilvm infer."
        )
    return subject.model


def _diagnosed(subject: Subject, data: Data, args: argparse.Namespace) -> Diagnosis:
    return diagnose_model(
        subject.model,
        data,
        budget=args.budget,
        num_data=args.num_data,
        seed=args.seed,
    )


def _split(data: Data, fraction: float, seed: int) -> tuple[Data, Data | None]:
    """The training data and the data held out, drawn at random."""
    if not fraction:
        return data, None
    count = round(fraction * len(data)) if data.divisible else 0
    if not 0 < count < len(data):
        raise ValueError(
            f"--validation {fraction:g} of {len(data)} data leaves none on one side; give another "
            "fraction, or leave it out."
        )
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    held_out = data.subset(order[:count].sort().values)
    return data.subset(order[count:].sort().values), held_out


def _training(args: argparse.Namespace, data: Data) -> dict[str, Any]:
    """Length, batches and optimizer of a training."""
    batch_size = None
    if data.divisible and args.batch_size < len(data):
        batch_size = args.batch_size
    each = -(-len(data) // (batch_size or len(data)))
    steps = args.steps or (args.epochs or _EPOCHS) * each
    return {"steps": steps, "batch_size": batch_size, **one_cycle(args.lr, steps)}


def _folder(args: argparse.Namespace) -> Path:
    return args.out or Path("runs") / time.strftime(f"{args.command}-%Y%m%d-%H%M%S")


def _begin(folder: Path, settings: dict[str, Any]) -> None:
    """Writes the settings of a new run, unless the folder holds one."""
    if latest(folder / "checkpoint"):
        raise ValueError(
            f"{folder} holds a run already; continue it with --resume, or choose another --out."
        )
    write_json(folder / "settings.json", settings)


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    kept = {n: v for n, v in vars(args).items() if n not in ("out", "resume")}
    paths = {n: str(v) for n, v in kept.items() if isinstance(v, Path)}
    return {**kept, **paths, "set": dict(args.set)}


# Tables in the terminal
# ------------------------------------------------------------------------------------


def _say(text: str) -> None:
    for argument, option in _OPTIONS.items():
        text = text.replace(argument, option)
    print(text)


def _print_training(subject: Subject, fitted: Fit, folder: Path) -> None:
    _say(
        f"Trained {subject.name} for {fitted.steps} steps in {fitted.seconds:.0f} s "
        f"({fitted.stopped}); the parameters are those of step {fitted.best_step}."
    )
    last = fitted.history.records[-1]
    results = {
        "steps": fitted.steps,
        "stopped": fitted.stopped,
        "best_step": fitted.best_step,
        "seconds": fitted.seconds,
        "skipped": fitted.skipped,
        "last_record": vars(last),
        "protocol": fitted.protocol,
    }
    write_json(folder / "results.json", results)
    rows = [
        (name, f"{value:.3f}")
        for name, value in vars(last).items()
        if name in ("elbo", "validation_elbo", "rate", "distortion") and value == value
    ]
    _print_table("Last record, nats per datum", ("", "value"), rows)
    _say(f"Written to {folder}: {MODEL_FILE}, history.csv, settings.json, results.json")


def _title(name: str, found: Evaluation) -> str:
    titles = {"elbo": "ELBO", "iwae": f"IWAE-{found.num_samples}", "exact": "exact"}
    return titles[name]


def _print_bounds(subject: Subject, found: Evaluation) -> None:
    estimates = {_title(n, found): bound for n, bound in found.bounds.items()}
    if found.rate is not None:
        estimates["rate"] = found.rate
    estimates["distortion"] = found.distortion
    rows = [
        (name, f"{e.mean:.3f}", f"{e.se:.3f}", f"{e.mc_se:.3f}")
        for name, e in estimates.items()
    ]
    title = f"{subject.name} on {found.protocol['data']}, {found.protocol['unit']}"
    _print_table(title, ("", "mean", "± SE over the data", "± SE of Monte Carlo"), rows)
    if found.bounds.refusal:
        _say(found.bounds.refusal)


def _print_table(title: str, heads: tuple[str, ...], rows: list[Any]) -> None:
    _say(title)
    table = Table()
    for head in heads:
        table.add_column(head, justify="right" if head else "left")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)


# Files
# ------------------------------------------------------------------------------------


def _write_table(frame: pd.DataFrame, path: Path) -> None:
    write_atomic(path, frame.to_csv(index=False))


def _write_evaluation(found: Evaluation, folder: Path) -> None:
    write_json(folder / "evaluation.json", found.to_dict())
    frame = found.to_frame(per_datum=True)
    errors = [name for name in frame if name.endswith("_error")]
    _write_table(frame.drop(columns=errors), folder / "per_datum.csv")


def _write_diagnosis(found: Diagnosis, folder: Path) -> None:
    findings = found.to_frame()
    content = {
        "verdict": found.verdict,
        "trusted": found.trusted,
        "num_data": found.num_data,
        "findings": findings.to_dict("records"),
        "not_run": found.skipped,
        "cut": found.cut,
        "seconds": found.seconds,
    }
    write_json(folder / "diagnosis.json", content)
    _write_table(findings, folder / "findings.csv")


def _write_posterior(found: Posterior, folder: Path) -> None:
    try:
        evidence: Any = found.log_evidence
        evidence = {"mean": evidence.mean, "mc_se": evidence.mc_se}
    except NotApplicable as error:
        evidence = str(error)
    content = {
        "verdict": found.verdict,
        "trusted": found.trusted,
        "rung": found.rung,
        "pareto_k": found.k,
        "log_evidence": evidence,
        "findings": findings_frame(found.findings).to_dict("records"),
        "seconds": found.seconds,
    }
    write_json(folder / "posterior.json", content)
    summary = found.to_frame()
    _write_table(summary, folder / "summary.csv")
    draws = [d.reshape(len(d), -1).cpu().numpy() for d in found.draws.values()]
    frame = pd.DataFrame(np.concatenate(draws, 1), columns=summary["name"])
    _write_table(frame, folder / "draws.csv")
