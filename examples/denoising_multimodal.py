"""Compares a denoising auto-encoder with posterior draws if several clean data are possible.

    python -m examples.denoising_multimodal
    python -m examples.denoising_multimodal --only plane

There are two parts: two clusters in the plane with one coordinate erased, where p(x | x̃) has a
closed form, and MNIST with half of each image erased. A denoising auto-encoder h(x̃) is compared
with draws from the posterior of a latent variable model given the remaining part of x. Under the
quadratic loss, h(x̃) is the mean of the possible x, which may resemble none of them.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from pyro.infer import Trace_ELBO
from rich.table import Table
from torch import Tensor

import vilvm
from examples._options import (
    add_common,
    console,
    dataset_of,
    device_of,
    finished,
    positive,
    run,
    run_folder,
    save,
    write_settings,
)
from vilvm import plots
from vilvm._runtime.files import write_json
from vilvm.data import Chain, Corrupted, Data, DynamicBinarisation, HalfErasure
from vilvm.data.datasets import Dataset, TwoModes, two_modes
from vilvm.evaluation import reconstruct
from vilvm.models.denoising_autoencoder import DenoisingAutoencoder
from vilvm.models.vae import VAE
from vilvm.objectives import Annealed
from vilvm.training import one_cycle
from vilvm.wrappers import fit_guide, with_prior_guide
from vilvm.wrappers.partly_observed import partly_observed


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.denoising_multimodal",
        description=(__doc__ or "").split("\n")[0],
    )
    add_common(parser, "denoising_multimodal")
    parser.add_argument(
        "--only", choices=["plane", "images"], help="one of the two parts"
    )
    parser.add_argument(
        "--steps", type=positive, default=4000, help="of training in the plane"
    )
    parser.add_argument(
        "--epochs",
        type=positive,
        help="of training on images; default: 12 on MNIST, 100 on digits",
    )
    parser.add_argument(
        "--completions", type=positive, default=6, help="drawn for each image"
    )
    parser.add_argument(
        "--proposals",
        type=positive,
        default=2000,
        help="draws from which a completion is resampled",
    )
    return parser.parse_args(argv)


def train(
    lvm: Any,
    data: Data,
    settings: dict[str, Any],
    *,
    steps: int,
    batch_size: int,
    lr: float,
    warmup: int = 0,
) -> None:
    fitted = vilvm.fit(
        lvm,
        data,
        objective=Annealed(Trace_ELBO(), warmup) if warmup else None,
        **one_cycle(lr, steps),
        steps=steps,
        batch_size=min(batch_size, len(data)),
        device=device_of(settings["device"]),
        seed=settings["seed"],
    )
    finished(fitted)


def plane(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Restores two clusters in the plane whose first coordinate is erased."""
    data, erase = two_modes(seed=settings["seed"]), HalfErasure("left", (1, 2))
    torch.manual_seed(settings["seed"])
    auto = DenoisingAutoencoder(2, 4, hidden=(64, 64))
    budget = {"steps": settings["steps"], "batch_size": 500, "lr": 3e-3}
    train(auto, data.with_transform(Corrupted(erase)).train, settings, **budget)
    lvm = VAE(2, 2, "gaussian", encoder_hidden=(64, 64), decoder_hidden=(64, 64))
    train(lvm, data.train, settings, **budget)
    auto, lvm = auto.cpu(), lvm.cpu()
    x = data.test.x
    second, erased = x[:, 1], erase(x)
    restored = reconstruct(auto, erased)[:, 0]
    torch.manual_seed(settings["seed"])
    # Proposals are drawn from the prior: a Gaussian guide would cover one of the two modes only.
    given_rest = with_prior_guide(partly_observed(lvm, erase.observed))
    few, draws = erased[:200], 500
    z = vilvm.resample(given_rest, few, draws, proposals=20_000, chunk=2000)["z"]
    drawn = lvm.decode(z).sample()[..., 0]
    share, truth = (drawn > 0).double().mean(0), TwoModes.upper(few[:, 1]).double()
    pictures = {
        "data": torch.stack([data.validation.x[:, 0], data.validation.x[:, 1]], 1),
        "auto-encoder": torch.stack([restored, second], 1),
        "posterior draws": torch.stack(
            [drawn[:10].flatten(), few[:, 1].expand(10, -1).flatten()], 1
        ),
    }
    save({"plane": plots.planes(pictures, x)}, folder / "figures")
    return {
        "auto_encoder": {
            "rms_distance_to_conditional_mean": (restored - TwoModes.mean(second))
            .square()
            .mean()
            .sqrt()
            .item(),
            "rms_of_conditional_mean": TwoModes.mean(second)
            .square()
            .mean()
            .sqrt()
            .item(),
            "log_density": TwoModes.log_prob(restored, second).median().item(),
        },
        "draws": {
            "log_density": TwoModes.log_prob(drawn, few[:, 1]).median().item(),
            "upper_share_rms_error": (share - truth).square().mean().sqrt().item(),
            "upper_share_rms_error_of_exact_draws": (truth * (1 - truth) / draws)
            .mean()
            .sqrt()
            .item(),
            "upper_share_bias": (share - truth).mean().item(),
        },
        "data": {"log_density": TwoModes.log_prob(x[:, 0], second).median().item()},
    }


def images(settings: dict[str, Any], data: Dataset, folder: Path) -> dict[str, Any]:
    """Restores pictures whose left half is erased."""
    shape, seed = data.train.image_shape or (1, data.train.x.shape[1]), settings["seed"]
    erase = HalfErasure("left", shape)
    binary, halves = DynamicBinarisation(), Chain((DynamicBinarisation(), erase))
    pixels, batch_size = data.train.x.shape[1], 200
    steps = settings["epochs"] * -(-len(data.train) // batch_size)
    torch.manual_seed(seed)
    auto = DenoisingAutoencoder(pixels, 64).start_at(data.train.x.mean(0))
    train(
        auto,
        data.with_transform(Chain((binary, Corrupted(erase)))).train,
        settings,
        steps=steps,
        batch_size=batch_size,
        lr=2e-3,
    )
    lvm = VAE(pixels, 20, decoder_hidden=(128, 96)).start_at(data.train.x.mean(0))
    train(
        lvm,
        data.with_transform(binary).train,
        settings,
        steps=steps,
        batch_size=batch_size,
        lr=4e-3,
        warmup=steps // 4,
    )
    partial_lvm = partly_observed(lvm, erase.observed.to(next(lvm.parameters()).device))
    given_half, fitted = fit_guide(
        partial_lvm,
        data.with_transform(halves).train,
        epochs=settings["epochs"],
        seed=seed,
    )
    finished(fitted)
    auto, lvm, given_half = auto.cpu(), lvm.cpu(), given_half.cpu()
    test = data.with_transform(binary).test.subset(slice(0, 500)).fixed(seed)
    clean, erased, hidden = test.x, erase(test.x), ~erase.observed
    torch.manual_seed(seed)
    weights = vilvm.log_weights(
        given_half, erased[:50], settings["proposals"]
    ).log_weight.softmax(0)
    z = vilvm.resample(
        given_half,
        erased,
        settings["completions"],
        proposals=settings["proposals"],
        chunk=100,
    )["z"]
    completions = torch.stack([vilvm.predict(lvm, {"z": one})["x"] for one in z])
    mean = reconstruct(auto, erased).clamp(0, 1)
    shown = slice(0, 12)
    observed = erase.observed
    rows = {
        "original": clean[shown],
        "half erased": erased[shown],
        "auto-encoder": torch.where(observed, clean, mean)[shown],
    }
    rows |= {
        f"completion {i + 1}": torch.where(observed, clean, c)[shown]
        for i, c in enumerate(completions)
    }
    save(
        {
            "completions": plots.picture_rows(
                rows, shape, "Left halves: the mean, and draws from the posterior"
            )
        },
        folder / "figures",
    )
    return {
        "auto_encoder": {
            "entropy": entropy(mean[:, hidden]),
            "sse": (mean - clean)[:, hidden].square().sum(1).mean().item(),
        },
        "draws": {
            "entropy": entropy(completions[..., hidden]),
            "sse_of_their_mean": (completions.mean(0) - clean)[:, hidden]
            .square()
            .sum(1)
            .mean()
            .item(),
            "spread": completions[..., hidden].var(0).mean().sqrt().item(),
            "ess": (1 / weights.square().sum(0)).mean().item(),
        },
        "data": data.name,
        "num_test": len(test),
    }


def entropy(p: Tensor) -> float:
    """Mean entropy of a hidden pixel, in nats."""
    return torch.distributions.Bernoulli(p).entropy().mean().item()


def table(results: dict[str, Any]) -> Table:
    out = Table(title="Restorations of a corrupted datum", title_justify="left")
    for i, head in enumerate(["", "auto-encoder", "posterior draws", "truth"]):
        out.add_column(head, justify="right" if i else "left")
    if "plane" in results:
        auto, draws = results["plane"]["auto_encoder"], results["plane"]["draws"]
        truth = results["plane"]["data"]["log_density"]
        out.add_row(
            "plane: median log p(x₁) given x̃",
            f"{auto['log_density']:.1f}",
            f"{draws['log_density']:.2f}",
            f"{truth:.2f}",
        )
        out.add_row(
            "plane: distance to the conditional mean, RMS",
            f"{auto['rms_distance_to_conditional_mean']:.3f}",
            "",
            "0",
        )
        exact = draws["upper_share_rms_error_of_exact_draws"]
        out.add_row(
            "plane: share in upper mode, RMS error",
            "",
            f"{draws['upper_share_rms_error']:.3f}",
            f"{exact:.3f} of exact draws",
        )
    if "images" in results:
        auto, draws = results["images"]["auto_encoder"], results["images"]["draws"]
        out.add_row(
            "images: entropy of a hidden pixel (nats)",
            f"{auto['entropy']:.3f}",
            f"{draws['entropy']:.3f}",
            "0",
        )
        out.add_row(
            "images: SSE of the (mean) picture",
            f"{auto['sse']:.1f}",
            f"{draws['sse_of_their_mean']:.1f}",
            "0",
        )
        out.add_row(
            "images: std of a hidden pixel over draws",
            "0",
            f"{draws['spread']:.3f}",
            "",
        )
        out.add_row("images: effective sample size", "", f"{draws['ess']:.1f}", "")
    return out


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    with run_folder(args, arguments, "denoising_multimodal") as (folder, settings):
        return work(folder, settings)


def work(folder: Path, settings: dict[str, Any]) -> int:
    write_settings(folder, settings)
    results: dict[str, Any] = {}
    if settings["only"] != "images":
        results["plane"] = plane(settings, folder)
    if settings["only"] != "plane":
        data = dataset_of(settings["data"], None)
        settings |= {
            "dataset": data.name,
            "epochs": settings["epochs"] or (12 if data.name == "mnist" else 100),
        }
        write_settings(folder, settings)
        results["images"] = images(settings, data, folder)
    write_json(folder / "results.json", results)
    console.print(table(results))
    console.print(f"Figures and numbers are in {folder}", highlight=False)
    return 0


if __name__ == "__main__":
    run(main)
