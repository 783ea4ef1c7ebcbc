"""Fits linear auto-encoders of several sizes to digits, and compares their error with PCA's.

python -m examples.gallery.linear_autoencoder docs/images/linear_autoencoder.png
"""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from torch import Tensor

import vilvm
from examples._options import console, run
from examples.gallery._figures import GREY, INK, panels, save
from examples.gallery._options import parser_of
from vilvm.data.datasets import digits
from vilvm.models.linear_autoencoder import LinearAutoencoder
from vilvm.training import one_cycle

_SIZES, _SHOWN = (1, 2, 4, 8, 16, 32), (2, 8, 32)


@torch.no_grad()
def restored(lvm: LinearAutoencoder, x: Tensor) -> Tensor:
    """g(f(x))."""
    return (x - lvm.b) @ lvm.U @ lvm.U.T + lvm.b


def figure(
    fits: dict[int, LinearAutoencoder], x: Tensor, errors: Tensor, exact: Tensor
) -> Figure:
    """Left the squared error against d, right digits and their reconstructions."""
    out, (left, right) = panels(8.4, 3.6, columns=2, width_ratios=(1.25, 1))
    left.plot(range(len(exact)), exact, color=GREY, linewidth=2, label="PCA, exact")
    left.plot(_SIZES, errors, "o", color=INK, markersize=7, label="linear auto-encoder")
    left.set(
        xlabel="dimension of the code, d (of 64)",
        ylabel="squared error per digit",
        xlim=(0, 40),
        ylim=(0, None),
    )
    left.legend(frameon=False)
    rows = {"data": x, **{f"d = {d}": restored(fits[d], x) for d in _SHOWN}}
    _sheet(right, rows)
    return out


def _sheet(axes: Axes, rows: dict[str, Tensor]) -> None:
    """Digits, a row of them for each name."""
    sheet = torch.cat(
        [x.unflatten(1, (8, 8)).transpose(0, 1).flatten(1) for x in rows.values()]
    )
    axes.imshow(sheet.numpy(), cmap="gray_r", vmin=0, vmax=1)
    axes.set_yticks([8 * i + 3.5 for i in range(len(rows))], list(rows))
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for i in range(1, len(rows)):
        axes.axhline(8 * i - 0.5, color="white", linewidth=3)


def main(argv: list[str] | None = None) -> int:
    args = parser_of("linear_autoencoder", __doc__, steps=400).parse_args(argv)
    x = digits(transform=None).train.x
    fits, errors = {}, []
    for d in _SIZES:
        torch.manual_seed(args.seed)
        lvm = LinearAutoencoder(data_dim=64, latent_dim=d).start_at(x.mean(0))
        vilvm.fit(
            lvm,
            x,
            steps=args.steps,
            batch_size=len(x),
            seed=args.seed,
            **one_cycle(0.05, args.steps),
        )
        fits[d] = lvm
        errors.append((x - restored(lvm, x)).square().sum(1).mean())
    total = (x - x.mean(0)).square().sum(1).mean()
    kept = torch.from_numpy(PCA().fit(x.numpy()).explained_variance_ratio_).cumsum(0)
    exact = total * torch.cat([torch.ones(1), 1 - kept])
    for d, error in zip(_SIZES, errors, strict=True):
        console.print(
            f"d = {d}: squared error {error:.3f}, PCA {exact[d]:.3f}", highlight=False
        )
    save(figure(fits, x[:6], torch.stack(errors), exact), args.out)
    return 0


if __name__ == "__main__":
    run(main)
