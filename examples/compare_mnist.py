"""Compares auto-encoders with fitted priors and the VAE as generative models, in one ledger.

    python -m examples.compare_mnist --quick
    python -m examples.compare_mnist
    python -m examples.compare_mnist --resume runs/compare_mnist-DATE-TIME

On binarised images there are a deep, a convolutional and a denoising auto-encoder, and the VAE.
Each auto-encoder gets four priors of its codes (a diagonal and a full Gaussian, a mixture, a flow)
and a stochastic guide fitted to the frozen model; the VAE has its own prior and the same fitted
ones. The deep and the denoising auto-encoder and the VAE have the same decoder. On grey levels
there are probabilistic PCA, and the linear auto-encoder with the same priors. All are trained for
the same number of passes over the same images.
"""

import argparse
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from pyro.infer import Trace_ELBO

import vilvm
from examples._options import (
    add_common,
    add_resume,
    console,
    dataset_of_run,
    device_of,
    finished,
    run,
    run_folder,
    save,
    write_settings,
)
from vilvm import plots, report
from vilvm._runtime.files import write_atomic, write_json
from vilvm.data import Chain, Corrupted, Data, DynamicBinarisation, PixelErasure
from vilvm.data.datasets import Dataset
from vilvm.evaluation import (
    Difference,
    Ledger,
    compare,
    fit_features,
    frechet_distance,
    reconstruct,
    two_sample_test,
)
from vilvm.evaluation.interpolation import great_circle, line
from vilvm.models.autoencoder import Autoencoder
from vilvm.models.conv_autoencoder import ConvAutoencoder
from vilvm.models.denoising_autoencoder import DenoisingAutoencoder
from vilvm.models.linear_autoencoder import LinearAutoencoder
from vilvm.models.ppca import PPCA
from vilvm.models.vae import VAE
from vilvm.objectives import Annealed
from vilvm.priors import fit_prior
from vilvm.report import Page, Table
from vilvm.training import one_cycle
from vilvm.wrappers import fit_guide, with_prior
from vilvm.wrappers.likelihood_scale import fit_likelihood_scale

PRIORS = {
    "diagonal": "diagonal Gaussian",
    "full": "full Gaussian",
    "mixture": "mixture",
    "flow": "flow",
}
CAPTIONS = {
    "samples": "E[x | z] for z drawn from each model's prior, below test images",
    "interpolations": "From one test image to another; the last row, a cross-fade of "
    "their pixels, is the baseline",
    "reconstructions": "Reconstructions, below test images",
}
OWN_PRIOR = ("VAE", "probabilistic PCA")
BATCH, RATE, DECODER = 200, 4e-3, (128, 96)


class Budget(NamedTuple):
    """The size of a run.

    Arguments:
        train: training images.
        epochs: passes over them.
        guide_epochs: passes of a fitted guide.
        flow_steps: training steps of a flow.
        test: test images.
        samples: importance samples for each.
        draws: draws of each model for the two-sample tests.
    """

    train: int
    epochs: int
    guide_epochs: int
    flow_steps: int
    test: int
    samples: int
    draws: int


FULL = Budget(
    train=55_000,
    epochs=12,
    guide_epochs=8,
    flow_steps=2500,
    test=500,
    samples=5000,
    draws=2000,
)
QUICK = Budget(
    train=6000,
    epochs=20,
    guide_epochs=4,
    flow_steps=300,
    test=200,
    samples=500,
    draws=500,
)


@dataclass
class Contest:
    """Trained models by name, and the seconds that each took."""

    folder: Path
    seed: int
    budget: Budget
    device: str
    models: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def train(self, name: str, lvm: Any, data: Data, warmup: float = 0.0) -> Any:
        total = self.budget.epochs * -(-len(data) // BATCH)
        objective = Annealed(Trace_ELBO(), round(warmup * total)) if warmup else None
        fitted = vilvm.fit(
            lvm,
            data,
            objective=objective,
            **one_cycle(RATE, total),
            epochs=self.budget.epochs,
            batch_size=BATCH,
            clip=100.0,
            device=self.device,
            **self.checkpoint_options(name),
        )
        self.add(name, lvm, fitted)
        return lvm

    def add_priors(
        self, name: str, lvm: Any, data: Data, new_guide: bool = True
    ) -> None:
        """Adds the model with each fitted prior, under a new guide or its own."""
        for kind, prior in PRIORS.items():
            began, full = time.perf_counter(), f"{name} + {prior}"
            proper = with_prior(
                lvm,
                fit_prior(
                    lvm, data, kind, steps=self.budget.flow_steps, seed=self.seed
                ),
            )
            before = self.seconds[name] + time.perf_counter() - began
            if new_guide:
                self.add_guide(full, proper, data, before)
            else:
                self.models[full], self.seconds[full] = proper, before

    def add_guide(self, name: str, lvm: Any, data: Data, before: float) -> None:
        guided, fitted = fit_guide(
            lvm,
            data,
            hidden=(400, 400),
            epochs=self.budget.guide_epochs,
            **self.checkpoint_options(name),
        )
        self.add(name, guided, fitted, before)

    def add(self, name: str, lvm: Any, fitted: vilvm.Fit, before: float = 0.0) -> None:
        self.models[name], self.seconds[name] = lvm, before + finished(fitted).seconds
        console.print(f"  {name}: {fitted.seconds:.0f} s", highlight=False)

    def checkpoint_options(self, name: str) -> dict[str, Any]:
        """Arguments of ``fit`` that checkpoint this model and resume its training."""
        file = name.replace(" + ", "_").replace(",", "").replace(" ", "_")
        return {
            "run_dir": self.folder / "models" / file,
            "resume": True,
            "seed": self.seed,
        }


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.compare_mnist",
        description=(__doc__ or "").split("\n")[0],
    )
    add_common(parser, "compare_mnist")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="3 minutes instead of 30 on two cores: fewer images, passes, samples",
    )
    parser.add_argument(
        "--latent", type=codes, default=20, help="size of a code, at least 2"
    )
    add_resume(parser)
    return parser.parse_args(argv)


def codes(text: str) -> int:
    if not 2 <= (value := int(text)) < 64:
        raise argparse.ArgumentTypeError(
            f"must be at least 2, for a flow, and below 64, the pixels of a digit; got {value}"
        )
    return value


def binary_models(contest: Contest, data: Dataset, latent: int) -> None:
    """On binarised images, all with a Bernoulli likelihood."""
    pixels, side = data.train.x.shape[1], (data.train.image_shape or (1, 1))[-1]
    binary, train, mean = DynamicBinarisation(), data.train, data.train.x.mean(0)
    holes = Chain((binary, Corrupted(PixelErasure(0.3))))
    seen, pairs = data.with_transform(binary).train, data.with_transform(holes).train
    console.print(
        f"Training on binarised {data.name}, {len(train):,} images", highlight=False
    )
    vae = VAE(pixels, latent, decoder_hidden=DECODER).start_at(mean)
    contest.add_priors(
        "VAE", contest.train("VAE", vae, seen, warmup=0.25), seen, new_guide=False
    )
    # A larger guide, trained after the decoder, like those of the auto-encoders.
    contest.add_guide("VAE, new guide", vae, seen, contest.seconds["VAE"])
    deep = contest.train(
        "deep AE",
        Autoencoder(pixels, latent, "bernoulli", hidden=DECODER[::-1]).start_at(mean),
        seen,
    )
    contest.add_priors("deep AE", deep, seen)
    denoising = DenoisingAutoencoder(
        pixels, latent, "bernoulli", hidden=DECODER[::-1]
    ).start_at(mean)
    contest.add_priors(
        "denoising AE", contest.train("denoising AE", denoising, pairs), seen
    )
    conv = contest.train(
        "conv AE", ConvAutoencoder(side, latent, "bernoulli", channels=(8, 16)), seen
    )
    contest.add_priors("conv AE", conv, seen)


def grey_models(contest: Contest, data: Dataset, latent: int) -> None:
    """On grey levels, all with a Gaussian likelihood of one variance."""
    train = data.train
    console.print(
        f"Training on the grey levels of {data.name}, {len(train):,} images",
        highlight=False,
    )
    began = time.perf_counter()
    contest.models["probabilistic PCA"] = (
        PPCA(train.x.shape[1], latent).maximise(train.x).to(contest.device)
    )
    contest.seconds["probabilistic PCA"] = time.perf_counter() - began
    linear = contest.train(
        "linear AE",
        LinearAutoencoder(train.x.shape[1], latent).start_at(train.x.mean(0)),
        train,
    )
    contest.models["linear AE"] = fit_likelihood_scale(linear, train)
    contest.add_priors("linear AE", contest.models["linear AE"], train)


def judge(
    contest: Contest, names: list[str], data: Dataset
) -> tuple[Ledger, dict[str, float]]:
    """The ledger, and the two-sample accuracy and Fréchet distance of validation images."""
    budget = contest.budget
    features = fit_features(
        data.train.subset(slice(0, 10 * budget.draws)), seed=contest.seed
    )
    count = min(budget.draws, len(data.test), len(data.validation))
    generator = torch.Generator().manual_seed(contest.seed)
    picked = (
        split.subset(torch.randperm(len(split), generator=generator)[:count])
        for split in (data.test, data.validation)
    )
    real, other = (part.fixed(contest.seed).x for part in picked)
    floor = (
        two_sample_test(real, other, seed=contest.seed).accuracy,
        frechet_distance(features(real), features(other)),
    )
    console.print(
        f"Evaluating {len(names)} models, {budget.samples} samples for each of {budget.test} "
        "images",
        highlight=False,
    )
    console.print(
        f"  with validation images as draws: two-sample {floor[0]:.3f}, Fréchet {floor[1]:.2f}",
        highlight=False,
    )
    # At random: the first half of MNIST's test images is cleaner than the second.
    generator = torch.Generator().manual_seed(contest.seed)
    picked = torch.randperm(len(data.test), generator=generator)[: budget.test]
    ledger = compare(
        {name: contest.models[name] for name in names},
        data.test.subset(picked),
        num_samples=budget.samples,
        held_out=data.test,
        num_draws=min(budget.draws, len(data.test)),
        features=features,
        seconds={name: contest.seconds[name] for name in names},
        seed=contest.seed,
    )
    return ledger, {"two_sample": floor[0], "frechet": floor[1]}


def has_own_codes(name: str) -> bool:
    return " + " not in name and "," not in name


def figures(models: dict[str, Any], data: Dataset) -> dict[str, Figure]:
    """Draws of every model that has a prior; interpolations and reconstructions of every model
    that has its own codes.
    """
    drawn = {
        name: lvm for name, lvm in models.items() if " + " in name or name in OWN_PRIOR
    }
    coded = {name: lvm for name, lvm in models.items() if has_own_codes(name)}
    paths: dict[str, Any] = {name: (lvm, line) for name, lvm in coded.items()}
    for name, lvm in coded.items():
        paths[f"{name}, great circle"] = (lvm, circle_of(name, models))
    seen = data.test.subset(slice(0, 16)).fixed()
    restored = {name: reconstruct(lvm, seen.x) for name, lvm in coded.items()}
    rows = {"data": seen.x, **restored}
    return {
        "samples": plots.samples_by_model(drawn, data.test),
        "interpolations": plots.interpolations_by_model(paths, data.test),
        "reconstructions": plots.picture_rows(
            rows, seen.image_shape, "Reconstructions"
        ),
    }


def circle_of(name: str, models: dict[str, Any]) -> Any:
    """The great circle about the origin of N(0, I), or of the Gaussian fitted to the codes."""
    if name in OWN_PRIOR:
        return great_circle
    prior = models[f"{name} + full Gaussian"].lvm.prior.distribution()
    return partial(great_circle, mean=prior.mean, scale_tril=prior.scale_tril)


def above_vae(ledger: Ledger) -> dict[str, Difference]:
    """The bound of each model of binary images minus that of the VAE, paired by datum."""
    rows = ledger.groups()[ledger["VAE"].protocol]
    return {
        row.name: ledger.difference(row.name, "VAE")
        for row in rows
        if row.name != "VAE"
    }


def page(
    settings: dict[str, Any],
    ledger: Ledger,
    floors: dict[str, dict[str, float]],
    pictures: dict[str, Figure],
    device: str,
) -> Page:
    against = above_vae(ledger)
    latent, name = settings["latent"], settings["dataset"]
    best = ledger.rank(ledger["VAE"].protocol)[0]
    rivals = {
        f"deep AE + {kind}": against[f"deep AE + {kind}"] for kind in PRIORS.values()
    }
    above = Table(
        ["model", "nats per image above the VAE"],
        sorted(against.items(), key=lambda item: -item[1].mean),
    )
    reference = Table(
        ["images", "two-sample", "Fréchet"],
        [[what, *floor.values()] for what, floor in floors.items()],
    )
    options = {**settings, "data": name, "device": device}
    return Page(
        f"Auto-encoders as generative models of {name}",
        f"Auto-encoders of {latent} codes under fitted priors, beside the variational "
        f"auto-encoder: {len(ledger)} models, in one ledger.",
        summary={
            "best on binarised images": best,
            "its bound (nats per image)": ledger[best].bound,
            "the VAE's bound": ledger["VAE"].bound,
            **{f"{rival}, above the VAE": found for rival, found in rivals.items()},
        },
        ledger=ledger,
        tables={
            "Above the VAE with its own prior, datum by datum": above,
            "Two-sample test and Fréchet distance of validation images, as a reference": reference,
        },
        figures=pictures,
        settings={**settings, **(QUICK if settings["quick"] else FULL)._asdict()},
        command=report.command(
            "examples.compare_mnist",
            {k: v for k, v in options.items() if k != "dataset"},
        ),
        environment=report.environment(device, settings["seed"]),
    )


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    with run_folder(args, arguments, "compare_mnist") as (folder, settings):
        return work(folder, settings)


def work(folder: Path, settings: dict[str, Any]) -> int:
    began = time.perf_counter()
    data, budget = prepared(folder, settings)
    torch.manual_seed(settings["seed"])
    contest = Contest(folder, settings["seed"], budget, device_of(settings["device"]))
    try:
        binary_models(contest, data, settings["latent"])
        binary = list(contest.models)
        grey_models(contest, data, settings["latent"])
    except KeyboardInterrupt:
        console.print(
            f"Resume with: python -m examples.compare_mnist --resume {folder}",
            highlight=False,
        )
        return 130
    grey = [name for name in contest.models if name not in binary]
    binarised = data.with_transform(DynamicBinarisation())
    first, floor = judge(contest, binary, binarised)
    second, grey_floor = judge(contest, grey, data)
    ledger = first + second
    ledger.to_csv(folder / "ledger.csv")
    write_atomic(folder / "ledger.md", ledger.to_markdown())
    shown = pictures_of(contest, binary, binarised, "binarised")
    shown |= pictures_of(contest, grey, data, "grey")
    seconds = time.perf_counter() - began
    results = {
        "above_vae": {
            name: found._asdict() for name, found in above_vae(ledger).items()
        },
        "notes": ledger.notes,
        "seconds": seconds,
        "images_as_draws": {"binary": floor, "grey": grey_floor},
    }
    write_json(folder / "results.json", results)
    floors = {"binarised": floor, "grey": grey_floor}
    page(settings, ledger, floors, shown, contest.device).write(folder / "page.html")
    summarise(ledger)
    console.print(
        f"Took {seconds / 60:.1f} minutes; open {folder / 'page.html'}; figures, ledger.csv and "
        "ledger.md are beside it",
        highlight=False,
    )
    return 0


def prepared(folder: Path, settings: dict[str, Any]) -> tuple[Dataset, Budget]:
    """The data and the size of the run; writes the settings.

    Raises:
        SystemExit: the data of the resumed run are not available now.
    """
    data = dataset_of_run(settings, None)
    budget = QUICK if settings["quick"] else FULL
    write_settings(folder, settings)
    if data.name == "digits":
        budget = budget._replace(
            epochs=10 * budget.epochs, guide_epochs=10 * budget.guide_epochs
        )
    return data._replace(train=data.train.subset(slice(0, budget.train))), budget


def pictures_of(
    contest: Contest, names: list[str], data: Dataset, kind: str
) -> dict[str, Figure]:
    """Writes the figures of some models; returns them by caption."""
    drawn = figures({name: contest.models[name].to("cpu") for name in names}, data)
    suffix = {"binarised": "binary"}.get(kind, kind)
    files = {f"{name}_{suffix}": figure for name, figure in drawn.items()}
    save(files, contest.folder / "figures")
    return {
        f"{CAPTIONS[name]} ({kind} images)": figure for name, figure in drawn.items()
    }


def summarise(ledger: Ledger) -> None:
    """Prints the ledger, and the auto-encoder's priors against the VAE."""
    console.print(ledger)
    against = above_vae(ledger)
    for kind in PRIORS.values():
        found = against[f"deep AE + {kind}"]
        where = "above" if found.mean > 0 else "below"
        console.print(
            f"deep AE + {kind}: {abs(found.mean):.2f} ± {found.se:.2f} nats {where} the VAE of "
            "the same decoder",
            highlight=False,
        )


if __name__ == "__main__":
    run(main)
