"""The deep Markov model: sequences of unequal length through a nonlinear state space.

Generative story. A chain of states z_1, …, z_T ∈ ℝᵈ starts at a parameter z_0; networks give the
next state's mean and deviation, and the emission of each x_t:

    z_t ~ N(μ(z_{t−1}), diag σ²(z_{t−1})),    x_t ~ p(x_t | z_t).

The gated transition is linear to the share 1 − g and nonlinear to the share g, in each dimension:

    μ(z) = (1 − g) ∘ (W z + w) + g ∘ h(z),    σ(z) = softplus(V relu(h(z)) + v),

with networks h and g, g in (0, 1), and W = I at first. If transition and emission are linear, this
is the model of the Kalman filter.

Inference. Given x, the states are a Markov chain too, p(z | x) = Π_t p(z_t | z_{t−1}, x_t, …,
x_T), in which z_{t−1} stands for all earlier data. The guide has this structure. A recurrent
network that runs backwards summarises x_t, …, x_T in r_t, and a combiner gives

    q(z_t | z_{t−1}, x) = N(A c + a, diag softplus(B c + b)²),   c = ½ (tanh(C z_{t−1} + e) + r_t).

Unequal lengths. A batch is (x, lengths): sequences padded to T, and the number of steps of each.
Padded steps are masked in model and guide, so that they add nothing to the ELBO of a sequence; and
the recurrent network starts at a sequence's last step, not at the padding. So the log-weight of a
sequence is the same in any batch.

Reference: Structured Inference Networks for Nonlinear State Space Models, Rahul Krishnan, Uri
Shalit and David Sontag, 2017.
"""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn.functional import softplus

from vilvm.distributions import IndependentBernoulli
from vilvm.lvm import rebuildable
from vilvm.networks import mlp

__all__ = [
    "Combiner",
    "DeepMarkov",
    "Emitter",
    "GatedTransition",
    "backwards",
    "tiny",
]


def backwards(x: Tensor, lengths: Tensor) -> Tensor:
    """Reverses the first `lengths` steps of each sequence; padding stays where it is.

    Arguments:
        x: shape (batch, T, ...).
        lengths: number of steps of each sequence, shape (batch,).

    Returns:
        Shape (batch, T, ...). Applied twice, it returns `x`.

    Examples:
        >>> import torch
        >>> from vilvm.models.deep_markov import backwards
        >>> backwards(torch.tensor([[1, 2, 3, 0]]), torch.tensor([3]))
        tensor([[3, 2, 1, 0]])
    """
    t = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
    mirrored = lengths.unsqueeze(-1) - 1 - t
    order = torch.where(mirrored >= 0, mirrored, t)
    return torch.take_along_dim(x, order.reshape(*order.shape, *[1] * (x.dim() - 2)), 1)


class GatedTransition(nn.Module):
    """p(z_t | z_{t−1}), in part linear.

    Arguments:
        latent_dim: d, the size of a state.
        hidden: size of the hidden layers.

    Examples:
        >>> import torch
        >>> from vilvm.models.deep_markov import GatedTransition
        >>> GatedTransition(2, 8)(torch.zeros(5, 2)).event_shape
        torch.Size([2])
    """

    def __init__(self, latent_dim: int, hidden: int):
        super().__init__()
        self.gate = mlp(latent_dim, (hidden,), latent_dim, nn.ReLU)
        self.proposed = mlp(latent_dim, (hidden,), latent_dim, nn.ReLU)
        self.linear = nn.Linear(latent_dim, latent_dim)
        self.scale = nn.Linear(latent_dim, latent_dim)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        """z_{t−1}, shape (..., d), to the distribution of z_t."""
        gate, proposed = self.gate(z).sigmoid(), self.proposed(z)
        mean = (1 - gate) * self.linear(z) + gate * proposed
        return _normal(mean, self.scale(proposed.relu()))


class Emitter(nn.Module):
    """p(x_t | z_t): normal with a deviation for each dimension, or Bernoulli.

    Arguments:
        latent_dim: d, the size of a state.
        data_dim: D, the size of x_t.
        hidden: size of the hidden layers.
        likelihood: "gaussian" or "bernoulli".

    Raises:
        ValueError: an unknown likelihood.

    Examples:
        >>> import torch
        >>> from vilvm.models.deep_markov import Emitter
        >>> Emitter(2, 3, 8, "gaussian")(torch.zeros(5, 2)).event_shape
        torch.Size([3])
    """

    def __init__(self, latent_dim: int, data_dim: int, hidden: int, likelihood: str):
        super().__init__()
        if likelihood not in ("gaussian", "bernoulli"):
            raise ValueError(
                f"DeepMarkov: unknown likelihood {likelihood!r}; choose 'gaussian' or 'bernoulli'."
            )
        self.network = mlp(latent_dim, (hidden, hidden), data_dim, nn.ReLU)
        self.noise = (
            nn.Parameter(torch.zeros(data_dim)) if likelihood == "gaussian" else None
        )

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        """z_t, shape (..., d), to the distribution of x_t."""
        if self.noise is None:
            return IndependentBernoulli(self.network(z))
        return _normal(self.network(z), self.noise)


class Combiner(nn.Module):
    """q(z_t | z_{t−1}, x_t, …, x_T).

    Arguments:
        latent_dim: d, the size of a state.
        hidden: size of r_t.

    Examples:
        >>> import torch
        >>> from vilvm.models.deep_markov import Combiner
        >>> Combiner(2, 8)(torch.zeros(5, 2), torch.zeros(5, 8)).event_shape
        torch.Size([2])
    """

    def __init__(self, latent_dim: int, hidden: int):
        super().__init__()
        self.state = nn.Linear(latent_dim, hidden)
        self.mean = nn.Linear(hidden, latent_dim)
        self.scale = nn.Linear(hidden, latent_dim)

    def forward(self, z: Tensor, r: Tensor) -> dist.TorchDistribution:
        """z_{t−1}, shape (..., d), and r_t, shape (batch, hidden), to the distribution of z_t."""
        combined = (self.state(z).tanh() + r) / 2
        return _normal(self.mean(combined), self.scale(combined))


def _normal(mean: Tensor, scale: Tensor) -> dist.TorchDistribution:
    # softplus underflows to 0 at −104; a small number keeps the deviation positive
    return dist.Normal(mean, softplus(scale) + 1e-4).to_event(1)


@rebuildable
class DeepMarkov(nn.Module):
    """A deep Markov model of padded sequences.

    Arguments:
        data_dim: D, the size of x_t.
        latent_dim: d, the size of a state.
        likelihood: "gaussian" or "bernoulli".
        hidden: size of the hidden layers and of the recurrent network's state.

    Raises:
        ValueError: an unknown likelihood.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.deep_markov import DeepMarkov
        >>> batch = torch.randn(5, 4, 3), torch.tensor([4, 2, 3, 4, 1])
        >>> lvm = DeepMarkov(data_dim=3, latent_dim=2, hidden=8)
        >>> vilvm.fit(lvm, batch, steps=5).stopped
        'finished'
    """

    def __init__(
        self,
        data_dim: int,
        latent_dim: int,
        likelihood: str = "gaussian",
        hidden: int = 32,
    ):
        super().__init__()
        self.transition: Any = GatedTransition(latent_dim, hidden)
        self.emitter: Any = Emitter(latent_dim, data_dim, hidden, likelihood)
        self.recurrent = nn.GRU(data_dim, hidden, batch_first=True)
        self.combiner = Combiner(latent_dim, hidden)
        self.first = nn.Parameter(torch.zeros(latent_dim))  # z_0
        self.first_of_guide = nn.Parameter(torch.zeros(latent_dim))

    def model(self, batch: tuple[Tensor, Tensor]) -> None:
        """p(x, z).

        Arguments:
            batch: padded sequences, shape (batch, T, D), and their lengths, shape (batch,).
        """
        pyro.module("deep_markov", self)  # for plain pyro.infer.SVI
        x, lengths = batch
        z: Any = self.first
        with pyro.plate("data", len(lengths)):
            for t in range(x.shape[1]):
                with _steps_at(t, lengths):
                    z = pyro.sample(f"z_{t + 1}", self.transition(z))
                    pyro.sample(f"x_{t + 1}", self.emitter(z), obs=x[:, t])

    def guide(self, batch: tuple[Tensor, Tensor]) -> None:
        """q(z | x)."""
        x, lengths = batch
        states, _ = self.recurrent(backwards(x, lengths))
        r = backwards(states, lengths)
        z: Any = self.first_of_guide
        with pyro.plate("data", len(lengths)):
            for t in range(x.shape[1]):
                with _steps_at(t, lengths):
                    z = pyro.sample(f"z_{t + 1}", self.combiner(z, r[:, t]))


def _steps_at(t: int, lengths: Tensor) -> Any:
    """Masks sequences that ended before step `t`, counted from 0."""
    mask: Any = lengths > t
    return poutine.mask(mask=mask)


def tiny() -> tuple[DeepMarkov, tuple[Tensor, Tensor]]:
    """Makes a small instance and a small batch, for the tests.

    Returns:
        The model and a batch.

    Examples:
        >>> from vilvm.models.deep_markov import tiny
        >>> lvm, batch = tiny()
    """
    lengths = torch.tensor([3, 1, 2, 3, 2])
    return DeepMarkov(2, 2, hidden=8), (torch.randn(5, 3, 2), lengths)
