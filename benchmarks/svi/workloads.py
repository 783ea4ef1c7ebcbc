"""Models written twice over the same networks: as a Pyro pair, and as a loss in plain PyTorch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from vilvm.distributions import IndependentBernoulli
from vilvm.guides import normal
from vilvm.networks import ConvDecoder, ConvEncoder, mlp
from vilvm.objectives import IWAE

__all__ = [
    "PARTICLES",
    "SCHOOLS",
    "WORKLOADS",
    "EightSchools",
    "EightSchoolsByHand",
    "Hierarchical",
    "ImportanceWeighted",
    "Net",
    "Workload",
]

PARTICLES = 50  # of the importance-weighted bound
SCHOOLS = (
    torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
    torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
)


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp log_variance) ‖ N(0, 1)), summed over the last dimension."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)


def normal_density(z: Tensor) -> Tensor:
    """log N(z | 0, 1)."""
    return -0.5 * z.square() - 0.5 * math.log(2 * math.pi)


def draw(mean: Tensor, log_variance: Tensor) -> Tensor:
    return mean + (log_variance / 2).exp() * torch.randn_like(mean)


def distortion(logits: Tensor, x: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(
        logits, x, reduction="none"
    ).sum(-1)


class Net(nn.Module):
    """A VAE of any encoder and decoder: `model` and `guide` for Pyro, `loss` in plain PyTorch."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, latent: int):
        super().__init__()
        self.encoder, self.decoder, self.latent = encoder, decoder, latent

    def model(self, x: Tensor) -> None:
        pyro.module("net", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent), 1.0).to_event(1))
            pyro.sample("x", IndependentBernoulli(self.decoder(z)), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(self.encoder(x)))

    def loss(self, x: Tensor) -> Tensor:
        mean, log_variance = self.encoder(x).chunk(2, -1)
        return (
            distortion(self.decoder(draw(mean, log_variance)), x)
            + gaussian_kl(mean, log_variance)
        ).mean()


class ImportanceWeighted(Net):
    """The same VAE under the importance-weighted bound of `PARTICLES` draws."""

    def loss(self, x: Tensor) -> Tensor:
        mean, log_variance = self.encoder(x).chunk(2, -1)
        noise = torch.randn(PARTICLES, *mean.shape, device=x.device)
        z = mean + (log_variance / 2).exp() * noise
        log_guide = (normal_density(noise) - log_variance / 2).sum(-1)
        log_w = normal_density(z).sum(-1) - log_guide
        log_w = log_w - distortion(self.decoder(z), x.expand(PARTICLES, *x.shape))
        return (math.log(PARTICLES) - log_w.logsumexp(0)).mean()


class Hierarchical(nn.Module):
    """Two layers of latents: z2 ~ N(0, 1), z1 ~ N(g(z2)), x ~ Bernoulli(h(z1)); q(z1 | x) q(z2 |
    z1).
    """

    def __init__(self, data_dim: int, hidden: int, latents: tuple[int, int]):
        super().__init__()
        self.latents, (one, two) = latents, latents
        self.encoder, self.upper = (
            mlp(data_dim, [hidden], 2 * one),
            mlp(one, [hidden // 2], 2 * two),
        )
        self.lower, self.decoder = (
            mlp(two, [hidden // 2], 2 * one),
            mlp(one, [hidden], data_dim),
        )

    def model(self, x: Tensor) -> None:
        pyro.module("net", self)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample(
                "z2", dist.Normal(x.new_zeros(self.latents[1]), 1.0).to_event(1)
            )
            z1 = pyro.sample("z1", normal(self.lower(z2)))
            pyro.sample("x", IndependentBernoulli(self.decoder(z1)), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", normal(self.encoder(x)))
            pyro.sample("z2", normal(self.upper(z1)))

    def loss(self, x: Tensor) -> Tensor:
        mean1, log_variance1 = self.encoder(x).chunk(2, -1)
        z1 = draw(mean1, log_variance1)
        mean2, log_variance2 = self.upper(z1).chunk(2, -1)
        prior, prior_log_variance = self.lower(draw(mean2, log_variance2)).chunk(2, -1)
        apart = (z1 - prior).square() / prior_log_variance.exp() + prior_log_variance
        own = (z1 - mean1).square() / log_variance1.exp() + log_variance1
        rate = 0.5 * (apart - own).sum(-1) + gaussian_kl(mean2, log_variance2)
        return (distortion(self.decoder(z1), x) + rate).mean()


class EightSchools(nn.Module):
    """Eight schools without centring, under Pyro's AutoNormal."""

    def __init__(self) -> None:
        super().__init__()
        self.guide = AutoNormal(
            self.model,
            init_loc_fn=lambda s: (
                torch.ones_like if s["name"] == "tau" else torch.zeros_like
            )(s["fn"].sample()),
        )

    def model(self, batch: tuple[Tensor, Tensor]) -> None:
        y, sigma = batch
        mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(y.new_full((), 5.0)))
        with pyro.plate("schools", len(y)):
            eta = pyro.sample("eta", dist.Normal(y.new_zeros(()), 1.0))
            pyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)


class EightSchoolsByHand(nn.Module):
    """The same Gaussian in mu, log tau and eta, from the same start."""

    def __init__(self) -> None:
        super().__init__()
        shapes = {"mu": (), "tau": (), "eta": (8,)}
        self.mean = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
        )
        self.raw_scale = nn.ParameterDict(
            {
                name: nn.Parameter(torch.full(shape, 0.1).expm1().log())
                for name, shape in shapes.items()
            }
        )

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        y, sigma = batch
        z, log_q = {}, sigma.new_zeros(())
        for name, mean in self.mean.items():
            scale, noise = (
                nn.functional.softplus(self.raw_scale[name]),
                torch.randn_like(mean),
            )
            z[name] = mean + scale * noise
            log_q = log_q + (normal_density(noise) - scale.log()).sum()
        tau = z["tau"].exp()
        half_cauchy = math.log(2 / (5 * math.pi)) - (tau / 5).square().log1p()
        log_p = (
            normal_density(z["mu"] / 5)
            - math.log(5)
            + half_cauchy
            + z["tau"]
            + normal_density(z["eta"]).sum()
        )
        log_p = (
            log_p
            + (
                normal_density((y - z["mu"] - tau * z["eta"]) / sigma) - sigma.log()
            ).sum()
        )
        return log_q - log_p


def _vae() -> Net:
    return Net(mlp(784, [400], 40), mlp(20, [400], 784), 20)


def _importance_weighted() -> Net:
    return ImportanceWeighted(mlp(784, [400], 40), mlp(20, [400], 784), 20)


def _convolutional() -> Net:
    return Net(ConvEncoder(28, 40), ConvDecoder(20, 28), 20)


@dataclass(frozen=True)
class Workload:
    """A model and how it is timed.

    Arguments:
        name: of the model.
        make: the pair, its networks drawn from torch's generator.
        by_hand: makes the object with the `loss`, if that is not the pair.
        batches: sizes to time; None for a model of all its data.
        steps: a round at the first size.
        objective: makes the objective of the pair.
    """

    name: str
    make: Callable[[], Any]
    by_hand: Callable[[], Any] | None = None
    batches: Sequence[int | None] = (128, 1024)
    steps: int = 40
    objective: Callable[[], Any] = Trace_ELBO


WORKLOADS = {
    w.name: w
    for w in (
        Workload("vae", _vae),
        Workload(
            "importance_weighted",
            _importance_weighted,
            batches=(20, 128),
            steps=5,
            objective=lambda: IWAE(PARTICLES),
        ),
        Workload("convolutional", _convolutional, steps=20),
        Workload("hierarchical", lambda: Hierarchical(784, 400, (32, 16))),
        Workload(
            "eight_schools",
            EightSchools,
            EightSchoolsByHand,
            batches=(None,),
            steps=200,
        ),
    )
}
