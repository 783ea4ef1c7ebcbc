"""Linear-Gaussian pairs, with noise and evidence in closed form, in float64."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from vilvm._runtime.random import seeded
from vilvm.models.factor_analysis import FactorAnalysis


def factor_analysis(num_data=20, data_dim=4, latent_dim=2, exact=False):
    """A pair of one latent; with `exact`, its guide is the posterior."""
    with seeded(3):
        lvm = FactorAnalysis(data_dim, latent_dim).double()
        x = 1.5 * torch.randn(num_data, data_dim, dtype=torch.float64)
    return (lvm.optimise_guide() if exact else lvm), x


class TwoLayers(nn.Module):
    """z2 ~ N(0, 1), z1 ~ N(a z2, 1), x ~ N(b z1, 1); q(z1 | x) q(z2 | z1), all scalars.

    With `exact`, the guide is the posterior.
    """

    def __init__(self, exact=False):
        super().__init__()
        a, b, number = 0.8, 1.3, {"dtype": torch.float64}
        precision = 1 / (1 + a**2) + b**2
        m, s = b / precision, precision**-0.5
        c, t = a / (1 + a**2), (1 + a**2) ** -0.5
        if not exact:
            m, s, c, t = m + 0.3, 1.4 * s, c - 0.4, 1.3 * t
        self.a, self.b, self.m, self.s, self.c, self.t = (
            nn.Parameter(torch.tensor(v, **number)) for v in (a, b, m, s, c, t)
        )

    def model(self, x):
        pyro.module("two_layers", self)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(x.new_zeros(()), 1.0))
            z1 = pyro.sample("z1", dist.Normal(self.a * z2, 1.0))
            pyro.sample("x", dist.Normal(self.b * z1, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(self.m * x, self.s))
            pyro.sample("z2", dist.Normal(self.c * z1, self.t))

    def exact_log_evidence(self, x):
        variance = self.b**2 * (1 + self.a**2) + 1
        return dist.Normal(0.0, variance.sqrt()).log_prob(x)


def two_layers(exact=False, num_data=6):
    return TwoLayers(exact), torch.linspace(-2, 2, num_data, dtype=torch.float64)


class Scaled(nn.Module):
    """A pair whose sites all have a factor: a number, or one for each datum."""

    def __init__(self, lvm, scale):
        super().__init__()
        self.lvm, self.factor = lvm, scale

    def model(self, x):
        with pyro.poutine.scale(scale=self.factor):
            self.lvm.model(x)

    def guide(self, x):
        with pyro.poutine.scale(scale=self.factor):
            self.lvm.guide(x)


class Subsampled(nn.Module):
    """Factor analysis of `size` data, of which the plate holds those of the batch."""

    def __init__(self, lvm, size):
        super().__init__()
        self.lvm, self.size = lvm, size

    def model(self, x):
        lvm = self.lvm
        with pyro.plate("data", self.size, subsample=x):
            z = pyro.sample("z", dist.Normal(lvm.origin, 1.0).to_event(1))
            noise = lvm.psi.sqrt()
            pyro.sample("x", dist.Normal(z @ lvm.W.T + lvm.b, noise).to_event(1), obs=x)

    def guide(self, x):
        mean = (x - self.lvm.b) @ self.lvm.V.T
        with pyro.plate("data", self.size, subsample=x):
            pyro.sample("z", dist.MultivariateNormal(mean, scale_tril=self.lvm.L))


class SharedMean(nn.Module):
    """mu ~ N(0, 1), x ~ N(mu, 1): a latent that the data share."""

    def __init__(self, size=None, loc=0.3, scale=0.4):
        super().__init__()
        self.size, self.scale = size, scale
        self.loc = nn.Parameter(torch.tensor(loc))

    def model(self, x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", self.size or len(x), subsample=x):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def guide(self, x):
        pyro.sample("mu", dist.Normal(self.loc, self.scale))


def gradient(objective, lvm, x):
    """One draw of loss and gradient, the latter as one vector."""
    lvm.zero_grad()
    loss = objective.differentiable_loss(lvm.model, lvm.guide, x)
    loss.backward()
    grads = [p.grad if p.grad is not None else 0 * p for p in lvm.parameters()]
    return loss.detach(), torch.cat([g.flatten() for g in grads])


def gradients(objective, lvm, x, seed=0, draws=20, copies=60):
    """Draws of the gradient of `copies` of the data at once, shape (draws, parameters)."""
    x = x.repeat(copies, *[1] * (x.dim() - 1))
    with seeded(seed):
        return torch.stack([gradient(objective, lvm, x)[1] for _ in range(draws)])


def t_scores(first, second):
    """Differences of two means of independent draws, in standard errors.

    With 20 draws each, |t| exceeds 7 in about one of a million numbers.
    """
    error = (first.var(0) / len(first) + second.var(0) / len(second)).sqrt()
    # an entry without noise must agree up to rounding
    error = error + 1e-9 * (1 + first.mean(0).abs())
    return (first.mean(0) - second.mean(0)) / error
