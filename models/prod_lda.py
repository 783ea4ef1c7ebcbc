"""A topic model, ProdLDA: latent Dirichlet allocation with a product of experts and an encoder.

Generative story. A document of n words is in K topics in proportions θ; the topics β_k ∈ ℝⱽ are
parameters, over a vocabulary of V words:

    h ~ N(m, diag v),    θ = softmax(h),    x ~ Multinomial(n, softmax(Σ_k θ_k β_k + b)).

In latent Dirichlet allocation the words' probabilities are a mixture, Σ_k θ_k softmax(β_k), and
here they are a product of experts, ∝ Π_k softmax(β_k)^θ_k: a word must be likely under every topic
of the document that has weight. b are the words' log-frequencies, so that β_k says how a topic
differs from the corpus.

The prior of h approximates θ ~ Dirichlet(α): Laplace's approximation in the softmax basis, where
the density of h has its mode inside, is normal with

    m_k = log α_k − (1/K) Σ_j log α_j,    v_k = (1 − 2/K) / α_k + (1/K²) Σ_j 1/α_j.

Inference. The length n is given, and an encoder gives q(h | x) = N(m(x), diag s²(x)). Early in
training the posterior may come to ignore topics ("component collapse"), against which a high
learning rate helps. The paper's batch normalisation and dropout are left out: in the decoder they
make p(x | h) depend on the other documents of a batch, and normalised outputs of the encoder
cannot make s² small, as the posterior of a long document needs.

References: Autoencoding Variational Inference for Topic Models, Akash Srivastava and Charles
Sutton, 2017; Latent Dirichlet Allocation, Blei, Ng and Jordan, 2003.
"""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from vilvm._runtime.argument_checks import check_number, check_positive
from vilvm.distributions import Multinomial
from vilvm.guides import normal
from vilvm.lvm import rebuildable, training_tensors
from vilvm.networks import mlp

__all__ = ["ProdLDA", "laplace_dirichlet", "tiny"]


def laplace_dirichlet(alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Laplace's approximation of a Dirichlet distribution in the softmax basis.

    Arguments:
        alpha: concentrations α, shape (..., K).

    Returns:
        Mean and variance of h, both of shape (..., K).

    Reference: Choice of Basis for Laplace Approximation, David MacKay, 1998.

    Examples:
        >>> import torch
        >>> from vilvm.models.prod_lda import laplace_dirichlet
        >>> laplace_dirichlet(torch.ones(4))
        (tensor([0., 0., 0., 0.]), tensor([0.7500, 0.7500, 0.7500, 0.7500]))
    """
    size = alpha.shape[-1]
    mean = alpha.log() - alpha.log().mean(-1, keepdim=True)
    variance = (1 - 2 / size) / alpha + (1 / alpha).sum(-1, keepdim=True) / size**2
    return mean, variance


@rebuildable
class ProdLDA(nn.Module):
    """A topic model of rows of word counts.

    Arguments:
        num_words: V, the size of the vocabulary.
        num_topics: K.
        concentration: α, the same for all topics.
        hidden: sizes of the encoder's hidden layers.

    Raises:
        ValueError: a size is not a positive integer, or `concentration` is not positive.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.prod_lda import ProdLDA
        >>> x = torch.poisson(torch.full((20, 6), 3.0))
        >>> lvm = ProdLDA(num_words=6, num_topics=2).start_at(x)
        >>> vilvm.fit(lvm, x, steps=20).stopped
        'finished'
        >>> lvm.topics.shape
        torch.Size([2, 6])
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        num_words: int,
        num_topics: int = 50,
        concentration: float = 1.0,
        hidden: Sequence[int] = (100, 100),
    ):
        super().__init__()
        num_topics = check_number("ProdLDA: num_topics", num_topics, 2)
        alpha = check_positive("ProdLDA: concentration", concentration)
        loc, variance = laplace_dirichlet(torch.full((num_topics,), alpha))
        self.register_buffer("loc", loc)
        self.register_buffer("scale", variance.sqrt())
        self.encoder = mlp(num_words, hidden, 2 * num_topics, nn.Softplus)
        self.decoder = nn.Linear(num_topics, num_words)  # β and b

    def model(self, x: Tensor) -> None:
        """p(x | h, n) p(h); x has shape (batch, num_words)."""
        pyro.module("prod_lda", self)  # for plain pyro.infer.SVI
        with pyro.plate("data", len(x)):
            h = pyro.sample("h", dist.Normal(self.loc, self.scale).to_event(1))
            pyro.sample("x", self.decode(h, x.sum(-1)), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(h | x)."""
        q = normal(self.encoder(x.log1p()))
        with pyro.plate("data", len(x)):
            pyro.sample("h", q)

    def decode(self, h: Tensor, length: Tensor) -> Multinomial:
        """p(x | h, n).

        Arguments:
            h: shape (..., num_topics).
            length: n, the number of words, shape (...,), or broadcast with it.
        """
        return Multinomial(length, self.decoder(h.softmax(-1)))

    @property
    def topics(self) -> Tensor:
        """softmax(β_k + b): the words of a document in one topic only, shape (K, V)."""
        beta = self.decoder.weight.detach().T
        return (beta + self.decoder.bias.detach()).softmax(-1)

    @torch.no_grad()
    def start_at(self, x: Any) -> "ProdLDA":
        """Sets b to log-frequencies of the words in x, shape (num_data, num_words).

        Returns:
            The model.
        """
        x = training_tensors(self, x, "start_at: x")
        # half a count more, so that a word without counts has a finite logarithm
        self.decoder.bias.copy_((x.sum(0) + 0.5).log() - x.sum().log())
        return self


def tiny() -> tuple[ProdLDA, Tensor]:
    """Makes a small instance and a small batch, for the tests.

    Returns:
        The model and a batch.

    Examples:
        >>> from vilvm.models.prod_lda import tiny
        >>> lvm, batch = tiny()
    """
    return ProdLDA(6, 3, hidden=(8,)), torch.poisson(torch.full((5, 6), 2.0))
