"""The rows: for each, the paper's data, architecture, objective and schedule, and its number.

The networks of a row are affine maps between the listed sizes, with one activation; the decoder
starts at the mean of the training data, as in Burda et al. A row that needs a part that vilvm does
not have yet names it in `waits_for`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from vilvm.data import DynamicBinarisation, StaticBinarisation, Transform
from vilvm.data.datasets import Dataset, arrays, mnist
from vilvm.models.vae import VAE

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
        encoder: sizes of the encoder's hidden layers.
        latent: size of z.
        decoder: sizes of the decoder's hidden layers.
        schedule: of the training.
        activation: of the hidden layers.
        likelihood: "bernoulli" or "gaussian".
        objective: makes the objective.
        held_out: whether the validation data choose the parameters; if not, they are training
            data.
        waits_for: what vilvm lacks for this row; empty if nothing.
    """

    paper: str
    published: float | None
    tolerance: float | None
    data: Callable[[], Dataset]
    encoder: tuple[int, ...]
    latent: int
    decoder: tuple[int, ...]
    schedule: Schedule
    activation: Callable[[], nn.Module] = nn.ReLU
    likelihood: str = "bernoulli"
    objective: Callable[[], Any] = Trace_ELBO
    held_out: bool = True
    waits_for: str = ""

    def model(self, x: torch.Tensor) -> VAE:
        """The model before its training.

        Arguments:
            x: the training data, shape (num_data, data_dim).
        """
        lvm = VAE(
            x.shape[1],
            self.latent,
            self.likelihood,
            self.encoder,
            self.decoder,
            activation=self.activation,
        )
        return lvm.start_at(x.mean(0))


def _mnist(transform: Transform) -> Dataset:
    """MNIST with 50,000 training and 10,000 validation data, as the binarised files have."""
    return mnist(validation=10_000, transform=transform)


def _frey() -> Dataset:
    """Frey faces, grey levels in [0, 1]: 1,500 for training, 200 for validation, 265 for tests."""
    folder = Path(os.environ.get("VILVM_DATA", ".")) / "freyfaces"
    faces = np.load(folder / "freyfaces_uint8_1965x28x20.npy")
    # neighbouring frames are nearly equal, so that a split in order of time would test another
    # task than the papers'
    faces = faces[
        torch.randperm(len(faces), generator=torch.Generator().manual_seed(0))
    ]
    return arrays(faces[265:], faces[:265], validation=200, name="frey")


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
_BURDA = Row(
    paper="Burda, Grosse and Salakhutdinov 2016",
    published=86.76,
    tolerance=0.5,
    data=DYNAMIC,
    encoder=(200, 200),
    latent=50,
    decoder=(200, 200),
    activation=nn.Tanh,
    schedule=_STAGES,
    held_out=False,
)
_IWAE = "vilvm.objectives.IWAE"
_TOMCZAK = Row(
    paper="Tomczak and Welling 2018",
    published=85.57,
    tolerance=0.5,
    data=STATIC,
    encoder=(300, 300),
    latent=40,
    decoder=(300, 300),
    schedule=Schedule(2000, batch=100, rate=5e-4, warmup=100, patience=50),
    waits_for="gated layers and vilvm.priors.VampPrior with 500 pseudo-inputs",
)

ROWS = {
    "vae_static": Row(
        paper="Rezende and Mohamed 2015, as pythae reproduces it",
        published=89.8,
        tolerance=0.5,
        data=STATIC,
        encoder=(400,),
        latent=20,
        decoder=(400,),
        schedule=Schedule(
            500, batch=100, rate=1e-4, milestones=(200, 350), factor=10 ** (-1 / 5)
        ),
    ),
    "vae_burda": _BURDA,
    "iwae5_burda": replace(_BURDA, published=85.54, waits_for=f"{_IWAE}(5)"),
    "iwae50_burda": replace(_BURDA, published=84.78, waits_for=f"{_IWAE}(50)"),
    "iwae50_burda_2layers": replace(
        _BURDA,
        published=82.90,
        waits_for=f"{_IWAE}(50) and a hierarchical VAE: 784-200-200-100, 100-100-100-50, mirrored",
    ),
    "vamp": _TOMCZAK,
    "hvae_vamp": replace(
        _TOMCZAK,
        published=83.19,
        tolerance=1.0,
        waits_for="a hierarchical VAE with two latents of size 40 and vilvm.priors.VampPrior",
    ),
    "realnvp_conv": Row(
        paper="Xu et al. 2019",
        published=78.6,
        tolerance=None,
        data=DYNAMIC,
        encoder=(),
        latent=40,
        decoder=(),
        schedule=Schedule(2400, batch=128, rate=1e-3),
        held_out=False,
        waits_for="a convolutional VAE and a RealNVP prior trained with it",
    ),
    "frey": Row(
        paper="Kingma and Welling 2014",
        published=None,
        tolerance=None,
        data=_frey,
        encoder=(200,),
        latent=20,
        decoder=(200,),
        activation=nn.Tanh,
        likelihood="gaussian",
        schedule=Schedule(5000, batch=100, rate=1e-3),
    ),
}
