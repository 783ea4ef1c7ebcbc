"""Fits two guides to the sprinkler network, and pictures it and their posteriors of the causes.

python -m examples.gallery.bayesian_network docs/images/bayesian_network.png
"""

from itertools import product

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import vilvm
from examples._options import console, run
from examples.gallery._figures import CLASSES, GREY, INK, panels, save
from examples.gallery._options import parser_of
from vilvm.models.bayesian_network import SPRINKLER, BayesianNetwork, objective
from vilvm.training import one_cycle

_DRAWS = 20_000
_PLACES = {"cloudy": (1, 2), "sprinkler": (0, 1), "rain": (2, 1), "wet": (1, 0)}
_WET = {"wet": torch.tensor([1])}


def figure(posteriors: dict[str, Tensor]) -> Figure:
    """Left the graph, right p(sprinkler, rain | wet) of each method."""
    out, (left, right) = panels(8.4, 3.8, columns=2, width_ratios=(1, 1.35))
    _graph(left)
    rows = np.arange(4)
    width = 0.27
    for i, (name, joint) in enumerate(posteriors.items()):
        right.bar(
            rows + (i - 1) * width, joint.numpy(), width, color=CLASSES[i], label=name
        )
    names = {0: "off", 1: "on"}, {0: "no rain", 1: "rain"}
    labels = [
        f"sprinkler {names[0][s]},\n{names[1][r]}" for s, r in product((0, 1), (0, 1))
    ]
    right.set_xticks(rows, labels, fontsize=9)
    right.tick_params(axis="x", length=0)
    right.set_ylabel("probability, given wet grass")
    right.legend(frameon=False, loc="upper right")
    return out


def _graph(axes: Axes) -> None:
    """Nodes, each with its posterior probability, and arrows from parents."""
    for node, (parents, _) in SPRINKLER.items():
        for parent in parents:
            axes.annotate(
                "",
                _PLACES[node],
                _PLACES[parent],
                arrowprops={
                    "arrowstyle": "-|>",
                    "color": GREY,
                    "linewidth": 1.5,
                    "shrinkA": 26,
                    "shrinkB": 28,
                },
            )
        seen = node == "wet"
        text = "wet\nseen" if seen else f"{node}\n{_probability(node):.2f}"
        axes.annotate(
            text,
            _PLACES[node],
            ha="center",
            va="center",
            color="white" if seen else "black",
            bbox={
                "boxstyle": "round,pad=0.5",
                "facecolor": INK if seen else "white",
                "edgecolor": INK,
            },
        )
    axes.set(xlim=(-0.6, 2.6), ylim=(-0.5, 2.5), title="p(yes | wet)")
    axes.set_axis_off()


def _probability(node: str) -> float:
    lvm = BayesianNetwork(SPRINKLER, evidence=("wet",))
    return lvm.exact_posterior(_WET, node).probs[0, 1].item()


def exact_joint() -> Tensor:
    """p(sprinkler, rain | wet), in the order of the bars: p(s | wet) p(r | s, wet)."""
    rain = BayesianNetwork(SPRINKLER, evidence=("wet", "sprinkler"))
    both = {"wet": torch.tensor([1, 1]), "sprinkler": torch.tensor([0, 1])}
    given = rain.exact_posterior(both, "rain").probs
    on = _probability("sprinkler")
    return (torch.tensor([[1 - on], [on]]) * given).flatten()


def guide_joint(lvm: BayesianNetwork) -> Tensor:
    """The same of the guide, as shares of draws."""
    draws = vilvm.posterior(lvm, _WET, _DRAWS)
    pairs = 2 * draws["sprinkler"].flatten() + draws["rain"].flatten()
    return torch.bincount(pairs, minlength=4) / _DRAWS


def main(argv: list[str] | None = None) -> int:
    args = parser_of("bayesian_network", __doc__, steps=300).parse_args(argv)
    posteriors = {"exact": exact_joint()}
    for guide in ("autoregressive", "mean_field"):
        torch.manual_seed(args.seed)
        lvm = BayesianNetwork(SPRINKLER, evidence=("wet",), guide=guide)
        vilvm.fit(
            lvm,
            _WET,
            steps=args.steps,
            objective=objective(),
            seed=args.seed,
            **one_cycle(0.05, args.steps),
        )
        posteriors[f"{guide.replace('_', '-')} guide"] = guide_joint(lvm)
    for name, joint in posteriors.items():
        console.print(name, [round(p, 3) for p in joint.tolist()], highlight=False)
    save(figure(posteriors), args.out)
    return 0


if __name__ == "__main__":
    run(main)
