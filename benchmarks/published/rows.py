"""The rows: for each, the paper's data, architecture, objective and schedule, and its number.

The decoder of every row starts at the mean of the training data, as in Burda et al.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from vilvm.data import DynamicBinarisation, StaticBinarisation, Transform
from vilvm.data.datasets import Dataset, frey_faces, mnist
from vilvm.models.conv_vae import ConvVAE
from vilvm.models.hierarchical_vae import HierarchicalVAE
from vilvm.models.top_down_vae import TopDownVAE
from vilvm.models.vae import VAE
from vilvm.networks import gated_mlp, mlp
from vilvm.objectives import IWAE
from vilvm.priors import RealNVP, VampPrior

__all__ = ["ROWS", "Row", "Schedule"]


@dataclass(frozen=True)
class Schedule:
    """The steps of a training, all of Adam.

    Arguments:
        epochs: of the full schedule.
        batch: data a step.
        rate: the first learning rate.
        milestones: epochs after which the rate is multiplied by `factor`.
        factor: see `milestones`.
        eps: of Adam.
        warmup: epochs over which the weight of the KL term rises to 1.
        patience: epochs without a better ELBO of the validation data, after which training stops.
    """

    epochs: int
    batch: int
    rate: float
    milestones: tuple[int, ...] = ()
    factor: float = 1.0
    eps: float = 1e-8
    warmup: int = 0
    patience: int | None = None


@dataclass(frozen=True)
class Row:
    """A published result.

    Arguments:
        paper: who published it.
        published: the negative log-likelihood of the test data in nats per datum, by importance
            weighting; None if the paper has a curve only.
        tolerance: nats within which ours must be with the full schedule; None for no claim.
        data: makes the data set.
        make: makes the model, given the training data of shape (num_data, data_dim).
        schedule: of the training.
        objective: makes the objective.
        held_out: whether the validation data choose the parameters; if not, they are training
            data.
    """

    paper: str
    published: float | None
    tolerance: float | None
    data: Callable[[], Dataset]
    make: Callable[[Tensor], Any]
    schedule: Schedule
    objective: Callable[[], Any] = Trace_ELBO
    held_out: bool = True

    def model(self, x: Tensor) -> Any:
        """The model before its training.

        Arguments:
            x: the training data, shape (num_data, data_dim).
        """
        return self.make(x).start_at(x.mean(0))


_TANH, _RELU = (partial(mlp, activation=a) for a in (nn.Tanh, nn.ReLU))


def _rezende(x: Tensor, latent_dim: int = 40) -> VAE:
    return VAE(x.shape[1], latent_dim, "bernoulli", (400,), (400,), network=_RELU)


def _burda(x: Tensor) -> VAE:
    hidden = (200, 200)
    return VAE(x.shape[1], 50, "bernoulli", hidden, hidden, network=_TANH)


def _burda_2_layers(x: Tensor) -> HierarchicalVAE:
    return HierarchicalVAE(x.shape[1], network=_TANH)


def _tomczak(x: Tensor) -> VAE:
    hidden, prior = (300, 300), VampPrior(x[:500], bounds=(0, 1))
    return VAE(
        x.shape[1], 40, "bernoulli", hidden, hidden, network=gated_mlp, prior=prior
    )


def _tomczak_2_levels(x: Tensor) -> TopDownVAE:
    return TopDownVAE(x.shape[1], prior=VampPrior(x[:500], bounds=(0, 1)))


def _xu(x: Tensor) -> ConvVAE:
    # their encoder and decoder are residual networks; these are smaller
    prior = RealNVP(40, layers=20, hidden=(64, 64))
    return ConvVAE(math.isqrt(x.shape[1]), 40, channels=(32, 64), prior=prior)


def _kingma(x: Tensor) -> VAE:
    return VAE(x.shape[1], 20, "sigmoid_gaussian", (200,), (200,), network=_TANH)


def _mnist(transform: Transform) -> Dataset:
    """MNIST with 50,000 training and 10,000 validation data, as the binarised files have."""
    return mnist(validation=10_000, transform=transform)


STATIC = partial(_mnist, StaticBinarisation())
DYNAMIC = partial(_mnist, DynamicBinarisation())

# 3^i epochs at 0.001 · 10^(−i/7), for i = 0 … 7
_STAGES = Schedule(
    epochs=sum(3**i for i in range(8)),
    batch=20,
    rate=1e-3,
    milestones=tuple(sum(3**i for i in range(stage)) for stage in range(1, 8)),
    factor=10 ** (-1 / 7),
    eps=1e-4,
)
_REZENDE = Row(
    paper="Rezende and Mohamed 2015, as pythae reproduces it",
    published=89.8,
    tolerance=0.5,
    data=STATIC,
    make=_rezende,
    schedule=Schedule(
        500, batch=100, rate=1e-4, milestones=(200, 350), factor=10 ** (-1 / 5)
    ),
)
_BURDA = Row(
    paper="Burda, Grosse and Salakhutdinov 2016",
    published=86.76,
    tolerance=0.5,
    data=DYNAMIC,
    make=_burda,
    schedule=_STAGES,
    held_out=False,
)
_TOMCZAK = Row(
    paper="Tomczak and Welling 2018",
    published=85.57,
    tolerance=0.5,
    data=STATIC,
    make=_tomczak,
    schedule=Schedule(2000, batch=100, rate=5e-4, warmup=100, patience=50),
)

ROWS = {
    "vae_static": _REZENDE,
    "vae_static_20": replace(
        _REZENDE, published=None, tolerance=None, make=partial(_rezende, latent_dim=20)
    ),
    "vae_burda": _BURDA,
    "iwae5_burda": replace(_BURDA, published=85.54, objective=partial(IWAE, 5)),
    "iwae50_burda": replace(_BURDA, published=84.78, objective=partial(IWAE, 50)),
    "iwae50_burda_2layers": replace(
        _BURDA,
        published=82.90,
        make=_burda_2_layers,
        objective=partial(IWAE, 50),
    ),
    "vamp": _TOMCZAK,
    "hvae_vamp": replace(
        _TOMCZAK,
        published=83.19,
        tolerance=1.0,
        make=_tomczak_2_levels,
    ),
    "realnvp_conv": Row(
        paper="Xu et al. 2019",
        published=78.6,
        tolerance=None,
        data=DYNAMIC,
        make=_xu,
        schedule=Schedule(
            2400,
            batch=128,
            rate=1e-3,
            milestones=tuple(range(200, 2400, 200)),
            factor=0.5,
            warmup=100,
        ),
        held_out=False,
    ),
    "frey": Row(
        paper="Kingma and Welling 2014",
        published=None,
        tolerance=None,
        data=frey_faces,
        make=_kingma,
        schedule=Schedule(5000, batch=100, rate=1e-3),
    ),
}
