"""Fits the deep Markov model to noisy pendulums, and pictures what it makes of them.

python -m examples.gallery.deep_markov docs/images/deep_markov.png
"""

from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import vilvm
from examples._options import run
from examples.gallery._options import parser_of, print_bounds
from vilvm.data.datasets import pendulums
from vilvm.models.deep_markov import DeepMarkov
from vilvm.training import one_cycle

_BLUE, _GREY = "#1f4e79", "#8c959d"
_SHOWN, _FORECAST = 3, 15


def figure(lvm: DeepMarkov, batch: tuple[Tensor, Tensor]) -> Figure:
    """Sequences, what the model makes of them, and its forecasts beyond their ends."""
    x, lengths = batch
    drawn = vilvm.posterior(lvm, batch, 20)
    z = torch.stack([drawn[f"z_{t + 1}"] for t in range(x.shape[1])], -2)
    out = Figure(figsize=(9, 5), layout="constrained")
    rows: Any = out.subplots(_SHOWN, 1, sharex=True)
    for i, axes in enumerate(rows):
        n = int(lengths[i])
        _panel(axes, x[i, :n, 0], lvm, z[:, i, :n])
    rows[0].set_title("Data (dots), 20 posterior draws, and their forecasts (grey)")
    rows[-1].set_xlabel("step")
    return out


@torch.no_grad()
def _panel(axes: Axes, x: Tensor, lvm: DeepMarkov, z: Tensor) -> None:
    states = list(z.unbind(1))
    for _ in range(_FORECAST):
        states.append(lvm.transition(states[-1]).sample())
    path = lvm.emitter(torch.stack(states, 1)).mean[..., 0]
    steps, last = range(1, path.shape[1] + 1), len(x)
    axes.plot(steps[last - 1 :], path[:, last - 1 :].T, color=_GREY, linewidth=0.6)
    axes.plot(steps[:last], path[:, :last].T, color=_BLUE, linewidth=0.6)
    axes.plot(steps[:last], x, "k.", markersize=5)
    axes.set_ylim(-1.6, 1.6)


def main(argv: list[str] | None = None) -> int:
    args = parser_of("deep_markov", __doc__, steps=1500).parse_args(argv)
    data = pendulums()
    torch.manual_seed(args.seed)
    lvm = DeepMarkov(data_dim=1, latent_dim=3)
    fitted = vilvm.fit(
        lvm,
        data.train,
        steps=args.steps,
        batch_size=50,
        clip=10.0,
        seed=args.seed,
        **one_cycle(1e-2, args.steps),
    )
    print_bounds(
        fitted, vilvm.evaluate(lvm, data.test, num_samples=200, seed=args.seed)
    )
    figure(lvm, data.test.x).savefig(args.out, dpi=80)
    return 0


if __name__ == "__main__":
    run(main)
