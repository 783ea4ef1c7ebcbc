"""Fits a hidden Markov model to a sequence, and pictures its states beside the true ones.

python -m examples.gallery.hidden_markov docs/images/hidden_markov.png
"""

import torch
from matplotlib.figure import Figure
from torch import Tensor

import vilvm
from examples._options import console, run
from examples.gallery._figures import GREY, INK, SECOND, panels, save
from examples.gallery._options import parser_of
from vilvm._runtime.random import seeded
from vilvm.models.hidden_markov import HiddenMarkov
from vilvm.training import one_cycle

_LENGTH, _STAY = 150, 0.93


def sequence() -> tuple[Tensor, Tensor]:
    """A sequence, shape (1, T), of means 0 and 2 and noise 1, and its states, shape (T,)."""
    with seeded(1):
        moves = torch.rand(_LENGTH) > _STAY
        z = moves.cumsum(0) % 2
        return (2.0 * z + torch.randn(_LENGTH))[None], z


def figure(x: Tensor, z: Tensor, probability: Tensor, alone: Tensor) -> Figure:
    """Above the data, below p(z_t = 2 | x); grey bands where the true state is 2."""
    out, (above, below) = panels(8.2, 4.0, rows=2, sharex=True)
    time = torch.arange(1, _LENGTH + 1)
    for axes in (above, below):
        axes.fill_between(
            time,
            0,
            1,
            where=(z == 1).numpy(),
            step="mid",
            transform=axes.get_xaxis_transform(),
            color=GREY,
            alpha=0.3,
            linewidth=0,
            label="true state 2" if axes is above else None,
        )
    above.plot(time, x[0], "o", color="black", markersize=3, label="data")
    above.set_ylabel("xₜ")
    below.plot(time, alone, "o", color=SECOND, markersize=2.5, label="from xₜ alone")
    below.plot(
        time, probability, color=INK, linewidth=1.8, label="from the whole sequence"
    )
    below.set(
        xlabel="step t", ylabel="p(zₜ = 2 | x)", yticks=(0, 0.5, 1), xlim=(0, _LENGTH)
    )
    out.legend(frameon=False, loc="outside upper center", ncols=4)
    return out


def main(argv: list[str] | None = None) -> int:
    args = parser_of("hidden_markov", __doc__, steps=800).parse_args(argv)
    x, z = sequence()
    lvm = HiddenMarkov(num_states=2, marginal=True)
    vilvm.fit(lvm, x, steps=args.steps, seed=args.seed, **one_cycle(0.05, args.steps))
    torch.manual_seed(args.seed)
    draws = vilvm.posterior(lvm, x, 500)
    smoothed = lvm.smoothing(x, draws).mean(0)[0, :, 1]
    # the same emissions without a chain: every row of transition uniform
    apart = draws | {"transition": torch.full_like(draws["transition"], 0.5)}
    alone = lvm.smoothing(x, apart).mean(0)[0, :, 1]
    right = [int(((p > 0.5) == z).sum()) for p in (smoothed, alone)]
    console.print(
        f"States found: {right[0]} of {_LENGTH}; from each datum alone {right[1]}",
        highlight=False,
    )
    save(figure(x, z, smoothed, alone), args.out)
    return 0


if __name__ == "__main__":
    run(main)
