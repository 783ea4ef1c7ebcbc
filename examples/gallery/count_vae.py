"""Fits the count VAE to simulated cells, compares it with their exact density, and pictures it.

python -m examples.gallery.count_vae docs/images/count_vae.png
"""

import torch
from matplotlib.figure import Figure

import vilvm
from examples._options import console, run
from examples.gallery._options import parser_of, print_bounds
from vilvm.data.datasets import Cells, Dataset, cells
from vilvm.models.count_vae import CountVAE
from vilvm.training import one_cycle
from vilvm.weights import posterior_mean

_BLUE, _GREY = "#1f4e79", "#8c959d"


def figure(lvm: CountVAE, data: Dataset) -> Figure:
    """Left the cells' latent means by type, right the share of zeros of each gene."""
    test = data.test
    z, kind = posterior_mean(lvm, test.x)["z"], test.labels
    assert kind is not None
    latents = vilvm.posterior(lvm, test.x, 20)
    drawn = lvm.decode(latents["z"], latents["log_library"]).sample()
    out = Figure(figsize=(9, 4), layout="constrained")
    left, right = out.subplots(1, 2)
    for k in kind.unique():
        left.scatter(*z[kind == k].T, s=8, label=f"type {k + 1}")
    left.set(title="Posterior means of z", xlabel="z₁", ylabel="z₂")
    left.legend(frameon=False)
    zeros = [(x == 0).float().flatten(0, -2).mean(0) for x in (test.x, drawn)]
    right.plot([0, 1], [0, 1], color=_GREY, linewidth=1)
    right.scatter(*zeros, s=12, color=_BLUE)
    right.set(title="Share of zeros of a gene", xlabel="test data", ylabel="replicates")
    return out


def main(argv: list[str] | None = None) -> int:
    args = parser_of("count_vae", __doc__, steps=2000).parse_args(argv)
    data = cells()
    torch.manual_seed(args.seed)
    lvm = CountVAE(data.train.x.shape[1], latent_dim=2).start_at(data.train.x)
    fitted = vilvm.fit(
        lvm,
        data.train,
        steps=args.steps,
        batch_size=100,
        validation=data.validation,
        seed=args.seed,
        **one_cycle(5e-3, args.steps),
    )
    found = vilvm.evaluate(lvm, data.test, num_samples=500, seed=args.seed)
    print_bounds(fitted, found)
    gap = Cells().log_prob(data.test.x) - found.bounds["iwae"].values
    console.print(
        f"Exact log p(x) − IWAE: {gap.mean():.2f} ± {gap.std() / len(gap) ** 0.5:.2f}",
        highlight=False,
    )
    figure(lvm, data).savefig(args.out, dpi=90)
    return 0


if __name__ == "__main__":
    run(main)
