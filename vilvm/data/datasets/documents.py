"""Simulated documents with known topics, from latent Dirichlet allocation.

    θ ~ Dirichlet(0.2),    n ~ Poisson(80),    x ~ Multinomial(n, Σ_k θ_k topic_k).

Topic k has its own block of the vocabulary, with nine tenths of its probability, in proportion to
1, 1/2, 1/3, …; the last tenth is spread over all words.

Reference: Latent Dirichlet Allocation, Blei, Ng and Jordan, 2003.
"""

import numpy as np
import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_seed
from vilvm.data.data import Data
from vilvm.data.datasets.dataset import Dataset, simulated

__all__ = ["documents", "topics_of_documents"]

_OWN, _CONCENTRATION, _LENGTH = 0.9, 0.2, 80


def topics_of_documents(num_topics: int = 5, num_words: int = 100) -> Tensor:
    """The topics that ``documents`` are drawn from.

    Arguments:
        num_topics: K.
        num_words: V, the size of the vocabulary, a multiple of K.

    Returns:
        Probabilities of words, shape (K, V), float64; topic k has the words from k V / K on.

    Raises:
        ValueError: `num_words` is no multiple of `num_topics`.

    Examples:
        >>> from vilvm.data.datasets import topics_of_documents
        >>> topics_of_documents(2, 4)
        tensor([[0.6250, 0.3250, 0.0250, 0.0250],
                [0.0250, 0.0250, 0.6250, 0.3250]], dtype=torch.float64)
    """
    num_topics = check_number("documents: num_topics", num_topics)
    num_words = check_number("documents: num_words", num_words)
    if num_words % num_topics:
        raise ValueError(
            f"documents: num_words must be a multiple of the {num_topics} topics; got {num_words}."
        )
    own = 1 / torch.arange(1, num_words // num_topics + 1, dtype=torch.float64)
    blocks = torch.block_diag(*[_OWN * own / own.sum()] * num_topics)
    return blocks + (1 - _OWN) / num_words


def documents(
    num_train: int = 2000,
    num_test: int = 500,
    num_topics: int = 5,
    num_words: int = 100,
    seed: int = 0,
) -> Dataset:
    """Word counts of simulated documents of unequal length.

    Arguments:
        num_train: number of training data.
        num_test: number of validation data, and of test data.
        num_topics: K.
        num_words: V, the size of the vocabulary, a multiple of K.
        seed: of all draws.

    Returns:
        The three splits, rows of V counts; a label is the document's most frequent topic.

    Raises:
        ValueError: a number is out of range.

    Examples:
        >>> from vilvm.data.datasets import documents
        >>> documents(50).train.x.shape
        torch.Size([50, 100])
    """
    seed = check_seed("documents: seed", seed)
    topics = topics_of_documents(num_topics, num_words).numpy()
    # numpy's generator draws from Dirichlet and multinomial, torch's does not
    generator = np.random.default_rng(seed)

    def draw(count: int, split: str) -> Data:
        theta = generator.dirichlet([_CONCENTRATION] * num_topics, count)
        x = generator.multinomial(generator.poisson(_LENGTH, count), theta @ topics)
        labels = torch.from_numpy(theta.argmax(-1))
        return Data(torch.from_numpy(x).float(), "documents", split, labels=labels)

    return simulated("documents", draw, num_train, num_test)
