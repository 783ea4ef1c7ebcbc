"""Fits the topic model to simulated documents, and pictures the topics beside the true ones.

python -m examples.gallery.prod_lda docs/images/prod_lda.png
"""

from typing import Any

import torch
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import vilvm
from examples._options import console, run
from examples.gallery._options import parser_of, print_bounds
from vilvm.data.datasets import documents, topics_of_documents
from vilvm.models.prod_lda import ProdLDA
from vilvm.training import one_cycle


def shared_words(found: Tensor, true: Tensor, count: int = 10) -> Tensor:
    """Shares of the `count` likeliest words, every topic beside its partner in the best matching.

    Arguments:
        found: probabilities of words, shape (K, V).
        true: shape (K, V).
        count: number of words.

    Returns:
        The order of the found topics, and the shares, two rows of shape (K,).
    """
    tops = [
        torch.zeros_like(t).scatter_(1, t.topk(count)[1], 1.0) for t in (true, found)
    ]
    shared = tops[0].double() @ tops[1].double().T / count
    rows, order = linear_sum_assignment(-shared.numpy())
    return torch.stack([torch.from_numpy(order).double(), shared[rows, order]])


def figure(found: Tensor, true: Tensor) -> Figure:
    """The words' probabilities in each topic, true above and found below."""
    out = Figure(figsize=(9, 3.2), layout="constrained")
    rows: Any = out.subplots(2, 1, sharex=True)
    for axes, topics, name in zip(rows, (true, found), ("true", "found"), strict=True):
        image = axes.imshow(topics.sqrt().numpy(), aspect="auto", cmap="Blues", vmin=0)
        axes.set_ylabel(f"{name} topic")
        axes.set_yticks(range(len(topics)), range(1, len(topics) + 1))
        out.colorbar(image, ax=axes, label="√probability")
    rows[-1].set_xlabel("word")
    return out


def main(argv: list[str] | None = None) -> int:
    args = parser_of("prod_lda", __doc__, steps=600).parse_args(argv)
    data, true = documents(), topics_of_documents()
    torch.manual_seed(args.seed)
    lvm = ProdLDA(true.shape[1], len(true)).start_at(data.train.x)
    fitted = vilvm.fit(
        lvm,
        data.train,
        steps=args.steps,
        batch_size=200,
        seed=args.seed,
        **one_cycle(2e-2, args.steps),
    )
    print_bounds(fitted, vilvm.evaluate(lvm, data.test, num_samples=500))
    order, shares = shared_words(lvm.topics, true)
    console.print(
        f"Share of the ten likeliest words that a topic shares with the true one: at least "
        f"{shares.min():.1f}, mean {shares.mean():.2f}",
        highlight=False,
    )
    figure(lvm.topics[order.long()], true).savefig(args.out, dpi=90)
    return 0


if __name__ == "__main__":
    run(main)
