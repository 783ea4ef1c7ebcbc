"""The VQ-VAE: a discrete code, a guide without randomness, and a learned prior of the codes.

Generative story. A datum x has M codes k₁ … k_M, each of K values. A prior with parameters of its
own draws them in turn, a codebook e₁ … e_K of vectors in ℝᵈ replaces each by a vector, and a
decoder g maps the M vectors to the parameters of p(x | k):

    k ~ p(k) = Π_m p(k_m | k_{m−R} … k_{m−1}),    z_m = e_{k_m},    x | k ~ Πⱼ Bernoulli(σ(g(z)ⱼ)).

With R = 0 the prior is a product; with R > 0 each code depends on the R codes before it.

Inference. The encoder f maps x to M vectors, and each is replaced by the nearest of the codebook:

    k_m(x) = argmin_k ‖f(x)_m − e_k‖²,    q(k | x) = 1 at k = k(x), 0 elsewhere.

The guide puts all its probability on one point. For a continuous latent this would be a guide
without density and without a bound (``vilvm.guides.delta``). A discrete latent has probabilities,
and log q(k(x) | x) = 0, so that

    log p(x) = log Σ_k p(x | k) p(k) ≥ log p(x | k(x)) + log p(k(x)) = ELBO,

a true bound without Monte Carlo error: the rate is −log p(k(x)) nats, the length of the codes in
an optimal code for p(k), and an importance-weighted bound of any number of samples equals it.

Training. k(x) is piecewise constant, so that f receives no gradient. Three devices replace it:

- straight-through: z = f(x) + stop(e_k − f(x)) has the value e_k, and passes the gradient of
  log p(x | z) at e_k on to f(x) unchanged;
- the codebook moves to the encoder's vectors, by the gradient of ‖stop(f(x)) − e_k‖²;
- the encoder stays near the codebook, by the gradient of β ‖f(x) − stop(e_k)‖², the commitment.

The last two are a ``vilvm.guides.penalty``: they train, and the bound does not contain them.

Reference: Neural Discrete Representation Learning, Aaron van den Oord, Oriol Vinyals and Koray
Kavukcuoglu, 2017.
"""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from vilvm.distributions import IndependentBernoulli
from vilvm.guides import penalty
from vilvm.lvm import rebuildable, training_tensors
from vilvm.networks import mlp, start_at_mean

__all__ = ["VQVAE", "CodePrior", "Codes", "tiny"]


@rebuildable
class VQVAE(nn.Module):
    """A vector-quantised variational auto-encoder of binary rows of `data_dim` numbers.

    Arguments:
        data_dim: D, the size of a datum.
        num_codes: M, the number of codes of a datum.
        codebook_size: K, the number of values of a code.
        code_dim: d, the size of a vector of the codebook.
        memory: R, the number of codes before it on which each code depends in the prior; 0 for
            independent codes.
        commitment: β, the weight of the commitment.
        hidden: sizes of the encoder's hidden layers; the decoder has them in reverse order.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.vq_vae import VQVAE
        >>> lvm, x = VQVAE(data_dim=6, num_codes=2, codebook_size=3), torch.rand(20, 6).round()
        >>> vilvm.fit(lvm, x, steps=20).stopped
        'finished'
        >>> lvm.codes(x).shape
        torch.Size([20, 2])
    """

    def __init__(
        self,
        data_dim: int = 784,
        num_codes: int = 16,
        codebook_size: int = 64,
        code_dim: int = 8,
        *,
        memory: int = 0,
        commitment: float = 0.25,
        hidden: Sequence[int] = (512, 256),
    ):
        super().__init__()
        self.event, self.commitment = (num_codes, code_dim), commitment
        self.encoder = mlp(data_dim, hidden, num_codes * code_dim)
        self.decoder = mlp(num_codes * code_dim, hidden[::-1], data_dim)
        self.codebook = nn.Parameter(torch.randn(codebook_size, code_dim))
        self.prior = CodePrior(num_codes, codebook_size, memory)

    def model(self, x: Tensor) -> None:
        """p(x | k) p(k); x has shape (batch, data_dim)."""
        pyro.module("vq_vae", self)
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", Codes(self.prior))
            z = pyro.sample("z", dist.Delta(self.codebook[k], event_dim=2))
            pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(k | x), all its probability at k(x)."""
        encoded = self.encode(x)
        k = self.nearest(encoded)
        e = self.codebook[k]
        quantisation = (encoded.detach() - e).square().sum((-2, -1))
        commitment = (encoded - e.detach()).square().sum((-2, -1))
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Delta(k, event_dim=1))
            pyro.sample("z", dist.Delta(straight_through(e, encoded), event_dim=2))
            penalty("quantisation", quantisation + self.commitment * commitment)

    def encode(self, x: Tensor) -> Tensor:
        """f(x), shape (..., num_codes, code_dim), for x of shape (..., data_dim)."""
        return self.encoder(x).unflatten(-1, self.event)

    @torch.no_grad()
    def nearest(self, encoded: Tensor) -> Tensor:
        """The index of the nearest vector of the codebook: (..., code_dim) → (...)."""
        e = self.codebook
        # ‖f − e‖² less ‖f‖², which is the same for every e
        return (e.square().sum(-1) - 2 * encoded @ e.T).argmin(-1)

    def codes(self, x: Tensor) -> Tensor:
        """k(x), whole numbers from 0, shape (..., num_codes), for x of shape (..., data_dim)."""
        return self.nearest(self.encode(x))

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """p(x | z) for z of shape (..., num_codes, code_dim)."""
        return IndependentBernoulli(self.decoder(z.flatten(-2)))

    @torch.no_grad()
    def start_at(self, x: Any) -> "VQVAE":
        """Starts training from the mean of data x, and a codebook of vectors f(x) of them.

        A vector that is nearest to no f(x) gets no gradient and remains unused. Needs
        codebook_size / num_codes data at least; returns the model.
        """
        x = training_tensors(self, x, "start_at: x")
        start_at_mean(self.decoder[-1], x.mean(0), "bernoulli")
        encoded = self.encode(x).flatten(0, -2)
        self.codebook.copy_(encoded[torch.randperm(len(encoded))[: len(self.codebook)]])
        return self


def straight_through(value: Tensor, source: Tensor) -> Tensor:
    """`value`, whose gradient goes to `source` unchanged; both of the same shape.

    Arguments:
        value: the value.
        source: receives the gradient.

    Returns:
        A tensor equal to `value`.

    Examples:
        >>> import torch
        >>> from vilvm.models.vq_vae import straight_through
        >>> x = torch.tensor([0.3], requires_grad=True)
        >>> rounded = straight_through(x.round(), x)
        >>> rounded.item(), torch.autograd.grad(3 * rounded.sum(), x)[0].item()
        (0.0, 3.0)
    """
    # The difference is exactly zero; source + (value − source) would be rounded.
    return value.detach() + (source - source.detach())


class CodePrior(nn.Module):
    """The logits of p(k_m | the R codes before k_m): position m's own, plus a perceptron's.

    Arguments:
        num_codes: M, the number of codes.
        codebook_size: K, the number of values of a code.
        memory: R; 0 for independent codes.
        width: size of the vector that stands for a code, and an eighth of the hidden layer.

    Examples:
        >>> import torch
        >>> from vilvm.models.vq_vae import CodePrior
        >>> CodePrior(num_codes=4, codebook_size=3)(torch.zeros(5, 4).long()).shape
        torch.Size([5, 4, 3])
    """

    def __init__(
        self, num_codes: int, codebook_size: int, memory: int = 0, width: int = 16
    ):
        super().__init__()
        self.memory, self.start = memory, codebook_size
        self.position = nn.Parameter(torch.zeros(num_codes, codebook_size))
        if memory:
            self.embedding = nn.Embedding(codebook_size + 1, width)
            self.context = mlp((memory + 1) * width, (8 * width,), codebook_size)
            self.place = nn.Parameter(torch.randn(num_codes, width))

    def forward(self, k: Tensor) -> Tensor:
        """The logits of every code given those before it: (..., M) → (..., M, K)."""
        if not self.memory:
            return self.position.expand(*k.shape, self.start)
        # "start" stands for the codes before the first
        padding = k.new_full((*k.shape[:-1], self.memory), self.start)
        before = torch.cat([padding, k[..., :-1]], -1).unfold(-1, self.memory, 1)
        known = self.embedding(before).flatten(-2)
        place = self.place.expand(*k.shape, -1)
        return self.position + self.context(torch.cat([known, place], -1))


class Codes(dist.TorchDistribution):
    """p(k) of M codes, whose logits a ``CodePrior`` gives.

    Arguments:
        prior: maps codes to logits.
        batch_shape: of the distribution.

    Examples:
        >>> import torch
        >>> from vilvm.models.vq_vae import CodePrior, Codes
        >>> p = Codes(CodePrior(num_codes=4, codebook_size=3))
        >>> p.sample((5,)).shape, round(p.log_prob(torch.zeros(4).long()).exp().item() * 81, 4)
        (torch.Size([5, 4]), 1.0)
    """

    arg_constraints: Any = {}  # noqa: RUF012
    support: Any = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(self, prior: CodePrior, batch_shape: Any = ()):
        self.prior = prior
        super().__init__(batch_shape, prior.position.shape[:1], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Codes":
        """The same distribution with another batch shape."""
        return Codes(self.prior, torch.Size(batch_shape))

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws one code after the other, shape (*sample_shape, *batch_shape, M)."""
        shape = self.shape(sample_shape)
        k = torch.zeros(shape, dtype=torch.long, device=self.prior.position.device)
        for m in range(shape[-1]):
            k[..., m] = dist.Categorical(logits=self.prior(k)[..., m, :]).sample()
        return k

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(k), in nats, of shape `value.shape[:-1]`."""
        found = dist.Categorical(logits=self.prior(value)).log_prob(value).sum(-1)
        return found.expand(torch.broadcast_shapes(found.shape, self.batch_shape))


def tiny() -> tuple[VQVAE, Tensor]:
    """Makes a small instance and a small batch, for the tests.

    Returns:
        The model and a batch.

    Examples:
        >>> from vilvm.models.vq_vae import tiny
        >>> lvm, batch = tiny()
    """
    lvm = VQVAE(6, 3, codebook_size=2, code_dim=2, memory=1, hidden=(8,))
    return lvm, torch.bernoulli(torch.full((5, 6), 0.5))
