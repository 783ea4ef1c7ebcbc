"""Fits a VAE with a Gaussian likelihood to Frey faces, and pictures its latent plane.

    VILVM_DATA=... python -m examples.gallery.frey_faces docs/images/frey_faces.png
    VILVM_DATA=... python -m examples.gallery.frey_faces faces.png --latent 20

The paper has 200 tanh units in each network, and trains longer by Adagrad.
"""

import torch
from matplotlib.figure import Figure

import vilvm
from examples._options import positive, run
from examples.gallery._options import parser_of, print_bounds
from vilvm import plots
from vilvm.data.datasets import Dataset, frey_faces
from vilvm.models.vae import VAE
from vilvm.training import one_cycle


def figure(lvm: VAE, data: Dataset) -> Figure:
    """The latent plane, if z has two dimensions; else faces and their reconstructions."""
    if lvm.origin.numel() == 2:
        return plots.manifold(lvm, data.test, side=12)
    return plots.reconstructions(lvm, data.test)


def main(argv: list[str] | None = None) -> int:
    parser = parser_of("frey_faces", __doc__, steps=4000)
    parser.add_argument("--latent", type=positive, default=2, help="dimensions of z")
    args = parser.parse_args(argv)
    try:
        data = frey_faces()
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from None
    torch.manual_seed(args.seed)
    lvm = VAE(560, args.latent, "sigmoid_gaussian", (200,), (200,))
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
