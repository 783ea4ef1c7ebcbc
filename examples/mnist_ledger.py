"""Trains every generative model of binary images, and ranks them on one page.

    python -m examples.mnist_ledger
    python -m examples.mnist_ledger --models VAE "VQ-VAE"
    python -m examples.mnist_ledger --resume runs/mnist_ledger-DATE-TIME

VAEs of the same networks with other objectives, priors and guides; convolutional, hierarchical,
ladder and two-level VAEs; the semi-supervised M2; a VQ-VAE; an auto-encoder with a flow fitted to
its codes. All are trained on the same binary images for as many epochs; the guide of the
auto-encoder for as many more. The ledger has importance-weighted and annealed bounds on test
images, chosen at random.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from examples import image_models
from examples._options import (
    add_common,
    add_resume,
    console,
    dataset_of_run,
    device_of,
    finished,
    positive,
    rate,
    run,
    run_folder,
    save,
    write_settings,
)
from vilvm import guides, plots, report
from vilvm._runtime.files import write_atomic
from vilvm.data import StaticBinarisation
from vilvm.data.datasets import Dataset
from vilvm.evaluation import Ledger, Schedule, compare, fit_features
from vilvm.guides import normal
from vilvm.models.autoencoder import Autoencoder
from vilvm.models.semi_supervised_vae import SemiSupervisedVAE, objective
from vilvm.models.vae import VAE
from vilvm.models.vq_vae import VQVAE
from vilvm.objectives import IWAE
from vilvm.priors import RealNVP, VampPrior, fit_prior
from vilvm.report import Page
from vilvm.wrappers import fit_guide, with_prior

LATENT, HIDDEN = 40, (400, 200)
AIS = Schedule(num_chains=16, num_temperatures=100, leapfrog=3)

Settings = dict[str, Any]


class Trained(NamedTuple):
    """A model of rows of pixels, and the seconds of its training."""

    lvm: Any
    seconds: float


Train = Callable[[Dataset, Settings, Path], Trained]


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.mnist_ledger",
        description=(__doc__ or "").split("\n")[0],
    )
    add_common(parser, "mnist_ledger")
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL"
    )
    parser.add_argument("--epochs", type=positive, default=10)
    parser.add_argument("--batch-size", type=positive, default=200)
    parser.add_argument(
        "--lr",
        type=rate,
        default=2e-3,
        help="peak learning rate of a one-cycle schedule",
    )
    parser.add_argument("--images", type=positive, default=500, help="of the test data")
    parser.add_argument("--samples", type=positive, default=5000, help="for each")
    add_resume(parser)
    return parser.parse_args(argv)


# Models
# --------------------------------------------------------------------------------------------


def vae(x: Tensor, head: Any = normal, prior: nn.Module | None = None) -> VAE:
    return VAE(
        x.shape[1], LATENT, "bernoulli", HIDDEN, HIDDEN[::-1], head=head, prior=prior
    )


def vae_vamp(x: Tensor) -> VAE:
    return vae(x, prior=VampPrior(x[:500], bounds=(0, 1)))


def vae_real_nvp(x: Tensor) -> VAE:
    return vae(x, prior=RealNVP(LATENT))


def vae_flow(x: Tensor) -> VAE:
    # annealing needs log q at given values, which this flow has in one pass
    return vae(x, head=guides.RealNVP(LATENT))


def of_images(
    make: Callable[[Tensor], Any],
    data: Dataset,
    settings: Settings,
    folder: Path,
    loss: Callable[[], Any] | None = None,
) -> Trained:
    """A pair of rows of pixels that starts at their mean."""
    x = data.train.x
    lvm = make(x).start_at(x.mean(0))
    found = loss() if loss else None
    return Trained(lvm, image_models.train(lvm, data.train, settings, found, folder))


def vq_vae(data: Dataset, settings: Settings, folder: Path) -> Trained:
    lvm = VQVAE(data.train.x.shape[1], memory=4).start_at(data.train.x)
    seconds = image_models.train(lvm, data.train, settings, Trace_ELBO(), folder)
    return Trained(lvm, seconds)


class Unlabelled(nn.Module):
    """M2 as a model of images alone: the class is a latent, summed over."""

    def __init__(self, lvm: SemiSupervisedVAE):
        super().__init__()
        self.lvm = lvm

    def model(self, x: Tensor) -> None:
        self.lvm.model({"x": x})

    def guide(self, x: Tensor) -> None:
        self.lvm.guide({"x": x})


def semi_supervised(data: Dataset, settings: Settings, folder: Path) -> Trained:
    lvm = SemiSupervisedVAE(data.train.x.shape[1]).start_at(data.train.x.mean(0))
    sources = image_models.partly_labelled(data.train)
    seconds = image_models.train(lvm, sources, settings, objective(), folder)
    return Trained(Unlabelled(lvm), seconds)


def autoencoder(data: Dataset, settings: Settings, folder: Path) -> Trained:
    """A flow fitted to its codes is its prior; a guide fitted afterwards bounds its evidence."""
    seed = settings["seed"]
    make = partial(
        Autoencoder, latent_dim=LATENT, likelihood="bernoulli", hidden=HIDDEN
    )
    coder = of_images(
        lambda x: make(x.shape[1]), data, settings, folder / "codes", Trace_ELBO
    )
    began = time.perf_counter()
    prior = fit_prior(coder.lvm, data.train, "flow", seed=seed)
    fitting = time.perf_counter() - began
    guided, fitted = fit_guide(
        with_prior(coder.lvm, prior),
        data.train,
        hidden=HIDDEN,
        epochs=settings["epochs"],
        seed=seed,
        run_dir=folder / "guide",
        resume=True,
    )
    return Trained(guided, coder.seconds + fitting + finished(fitted).seconds)


MODELS: dict[str, Train] = {
    "VAE": partial(of_images, vae),
    "VAE, IWAE objective": partial(of_images, vae, loss=partial(IWAE, 5)),
    "VAE, VampPrior": partial(of_images, vae_vamp),
    "VAE, RealNVP prior": partial(of_images, vae_real_nvp),
    "VAE, RealNVP guide": partial(of_images, vae_flow),
    "convolutional VAE": partial(of_images, image_models.conv_vae),
    "hierarchical VAE": partial(of_images, image_models.hierarchical_vae),
    "ladder VAE": partial(of_images, image_models.ladder_vae),
    "two levels, VampPrior": partial(of_images, image_models.top_down_vae),
    "M2": semi_supervised,
    "VQ-VAE": vq_vae,
    "auto-encoder, flow prior": autoencoder,
}


# The run
# --------------------------------------------------------------------------------------------


def judged(trained: dict[str, Trained], data: Dataset, settings: Settings) -> Ledger:
    seed = settings["seed"]
    # at random: the first half of MNIST's test images is cleaner than the second
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randperm(len(data.test), generator=generator)[: settings["images"]]
    return compare(
        {name: found.lvm for name, found in trained.items()},
        data.test.subset(picked),
        num_samples=settings["samples"],
        ais=AIS,
        held_out=data.test,
        features=fit_features(data.train.subset(slice(0, 10_000)), seed=seed),
        seconds={name: found.seconds for name, found in trained.items()},
        seed=seed,
    )


def page(settings: Settings, ledger: Ledger, samples: Figure, device: str) -> Page:
    best = ledger.rank()[0]
    options = {k: v for k, v in settings.items() if k != "dataset"}
    return Page(
        f"Generative models of {settings['dataset']}",
        f"{len(ledger)} models of the same binary images, each trained for "
        f"{settings['epochs']} epochs.",
        summary={
            "best": best,
            f"its IWAE-{settings['samples']} (nats per image)": ledger[best].bound,
            "its AIS (nats per image)": ledger[best].ais,
        },
        ledger=ledger,
        figures={"Above, test images; below, E[x | z] for z from each prior": samples},
        settings=settings,
        command=report.command("examples.mnist_ledger", options),
        environment=report.environment(device, settings["seed"]),
    )


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    with run_folder(args, arguments, "mnist_ledger") as (folder, settings):
        return work(folder, settings)


def work(folder: Path, settings: Settings) -> int:
    data = dataset_of_run(settings, StaticBinarisation())
    write_settings(folder, settings)
    try:
        trained = {
            name: trained_in(folder, name, data, settings)
            for name in settings["models"]
        }
        ledger = judged(trained, data, settings)
    except KeyboardInterrupt:
        console.print(
            f"Resume with: python -m examples.mnist_ledger --resume {folder}",
            highlight=False,
        )
        return 130
    samples = plots.samples_by_model(
        {name: found.lvm for name, found in trained.items()}, data.test
    )
    ledger.to_csv(folder / "ledger.csv")
    write_atomic(folder / "ledger.md", ledger.to_markdown())
    save({"samples": samples}, folder / "figures")
    page(settings, ledger, samples, device_of(settings["device"])).write(
        folder / "page.html"
    )
    console.print(ledger)
    for note in ledger.notes:
        console.print(note, highlight=False)
    console.print(f"The page is {folder / 'page.html'}", highlight=False)
    return 0


def trained_in(folder: Path, name: str, data: Dataset, settings: Settings) -> Trained:
    # each from the seed, so that a model does not depend on those before it
    torch.manual_seed(settings["seed"])
    file = name.replace(",", "").replace(" ", "_")
    found = MODELS[name](data, settings, folder / "models" / file)
    found.lvm.to("cpu")
    console.print(f"  {name}: {found.seconds:.0f} s", highlight=False)
    return found


if __name__ == "__main__":
    run(main)
