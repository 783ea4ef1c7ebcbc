"""Fits a VAE with a Gaussian likelihood to Frey faces, and pictures its reconstructions.

    VILVM_DATA=... python -m examples.gallery.frey_faces docs/images/frey_faces.png
    VILVM_DATA=... python -m examples.gallery.frey_faces plane.png --latent 2

Each network has 200 tanh units, as in the paper, which trains much longer, by Adagrad.
"""

from functools import partial

import torch
from matplotlib.figure import Figure
from torch import nn

import vilvm
from examples._options import positive, run
from examples.gallery._options import parser_of, print_bounds
from vilvm import plots
from vilvm.data.datasets import Dataset, frey_faces
from vilvm.models.vae import VAE
from vilvm.networks import mlp
from vilvm.training import one_cycle


def figure(lvm: VAE, data: Dataset) -> Figure:
    """Faces and their reconstructions; the latent plane, if z has two dimensions."""
    if lvm.origin.numel() == 2:
        return plots.manifold(lvm, data.test, side=12)
    return plots.reconstructions(lvm, data.test)


def main(argv: list[str] | None = None) -> int:
    parser = parser_of("frey_faces", __doc__, steps=3000)
    parser.add_argument("--latent", type=positive, default=20, help="of z")
    args = parser.parse_args(argv)
    try:
        data = frey_faces()
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from None
    torch.manual_seed(args.seed)
    tanh = partial(mlp, activation=nn.Tanh)
    lvm = VAE(560, args.latent, "sigmoid_gaussian", (200,), (200,), network=tanh)
    fitted = vilvm.fit(
        lvm.start_at(data.train.x.mean(0)),
        data.train,
        steps=args.steps,
        batch_size=100,
        validation=data.validation,
        seed=args.seed,
        **one_cycle(2e-3, args.steps),
    )
    print_bounds(
        fitted, vilvm.evaluate(lvm, data.test, num_samples=1000, seed=args.seed)
    )
    figure(lvm, data).savefig(args.out, dpi=60, bbox_inches="tight")
    return 0


if __name__ == "__main__":
    run(main)
