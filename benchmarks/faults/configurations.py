"""The runs that are killed: small pairs on small data. Together they use every optimizer,
scheduler and option of ``fit``.

A configuration is a function of a folder for its data that returns a pair, data and options of
``fit``. All randomness follows from torch's seed, so that a resumed process builds what the first
one built.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import (
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import AutoNormal
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedulers

import vilvm
from vilvm.data import DynamicBinarisation
from vilvm.data.datasets import on_disk
from vilvm.models.vae import VAE
from vilvm.objectives import Annealed
from vilvm.training import by_name, one_cycle

__all__ = ["CONFIGURATIONS", "INDUCTOR", "RANKS", "STEPS", "Setup", "fit"]

STEPS = 40
ROWS, DIM, BATCH = 61, 6, 16  # four batches an epoch, the last of 13


class Setup(NamedTuple):
    """A pair, its data, and the options of ``fit``."""

    lvm: Any
    data: Any
    options: dict[str, Any]


class Normalised(nn.Module):
    """A Gaussian pair with batch statistics, dropout and noise."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(DIM), nn.Dropout(0.3)
        self.encoder, self.decoder = nn.Linear(DIM, 2), nn.Linear(2, DIM)

    def model(self, x: Tensor, scale: float = 1.0) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), scale).to_event(1), obs=x)

    def guide(self, x: Tensor, scale: float = 1.0) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z", dist.Normal(self.encoder(self.drop(self.norm(x))), 0.5).to_event(1)
            )


def rows(seed: int = 0) -> Tensor:
    return torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(seed))


def vae(**options: Any) -> Setup:
    """A variational auto-encoder on pictures of nine pixels."""
    return Setup(
        VAE(DIM, 2, encoder_hidden=(5,), decoder_hidden=(5,)),
        (rows() > 0).float(),
        options,
    )


def normalised(**options: Any) -> Setup:
    return Setup(Normalised(), rows(), options)


def spoilt(**options: Any) -> Setup:
    """One datum has no finite density, so every epoch has a step that is skipped."""
    x = rows()
    x[50] = 1e30
    return Setup(Normalised(), x, {"nonfinite": "skip", **options})


def functions(**options: Any) -> Setup:
    """A pair of functions, whose parameters Pyro keeps."""

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(DIM))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(loc + z[..., None], 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.full((DIM,), 0.1))
        scale = pyro.param(
            "scale", torch.tensor(1.0), constraint=dist.constraints.positive
        )
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ slope, scale))

    return Setup(vilvm.Pair(model, guide), rows(), options)


def shared(**options: Any) -> Setup:
    """A latent that all data share, under a plate of their full size, with a Pyro autoguide."""

    def model(x: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(torch.zeros(DIM), 1.0).to_event(1))
        with pyro.plate("data", ROWS, subsample=x):
            pyro.sample("x", dist.Normal(m, 1.0).to_event(1), obs=x)

    return Setup(vilvm.Pair(model, AutoNormal(model)), rows(), options)


@config_enumerate
def half_labelled(batch: dict[str, Tensor]) -> None:
    odds = pyro.param(
        "odds", torch.tensor(0.5), constraint=dist.constraints.unit_interval
    )
    locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
    with pyro.plate("data", len(batch["x"])):
        y = pyro.sample("y", dist.Bernoulli(odds), obs=batch.get("y"))
        pyro.sample("x", dist.Normal(locs[y.long()], 1.0), obs=batch["x"])


def in_turn(**options: Any) -> Setup:
    """Batches of two kinds; in one of them a label is enumerated."""
    x = rows()[:, 0]
    data = vilvm.Interleaved({"x": x[30:]}, {"x": x[:30], "y": (x[:30] > 0).float()})
    return Setup(
        vilvm.Pair(half_labelled, lambda batch: None),
        data,
        {"objective": TraceEnum_ELBO(max_plate_nesting=1), **options},
    )


def from_disk(folder: Path, **options: Any) -> Setup:
    """Grey levels in a file, binarised anew for every batch."""
    return vae(**options)._replace(data=_file(folder, DynamicBinarisation()))


def _file(folder: Path, transform: Any = None) -> vilvm.Data:
    path = folder / "x.npy"
    if not path.exists():
        np.save(path, rows().sigmoid().numpy())
    return on_disk(path, transform=transform)


def widening(step: int) -> dict[str, float]:
    return {"scale": 0.5 + step / STEPS}


def clamped(lvm: Any, step: int) -> None:
    lvm.decoder.weight.clamp_(-0.4, 0.4)


def cooled(event: vilvm.Event) -> bool:
    """A callback that changes the model, and stops the run at its second record."""
    with torch.no_grad():
        event.lvm.decoder.bias.mul_(0.9)  # type: ignore[attr-defined]
    return len(event.history) == 2


def _sgd(**options: Any) -> Callable[..., torch.optim.Optimizer]:
    return partial(torch.optim.SGD, lr=1e-2, **options)


def _adam(**options: Any) -> Callable[..., torch.optim.Optimizer]:
    return partial(torch.optim.Adam, lr=1e-2, **options)


def _by_weight() -> Any:
    return by_name(
        torch.optim.Adam, lambda name: {"lr": 1e-3 if "weight" in name else 1e-2}
    )


def _two_schedules(optimizer: torch.optim.Optimizer) -> Any:
    return schedulers.SequentialLR(
        optimizer,
        [
            schedulers.LinearLR(optimizer, total_iters=15),
            schedulers.ExponentialLR(optimizer, 0.95),
        ],
        milestones=[15],
    )


_OPTIMIZERS: dict[str, Any] = {
    "Adam, fused": None,
    "Adam": _adam(),
    "AMSGrad": _adam(amsgrad=True),
    "AdamW": partial(torch.optim.AdamW, lr=1e-2),
    "NAdam": partial(torch.optim.NAdam, lr=1e-2),
    "RAdam": partial(torch.optim.RAdam, lr=1e-2),
    "Adamax": partial(torch.optim.Adamax, lr=1e-2),
    "Adagrad": partial(torch.optim.Adagrad, lr=1e-2),
    "Adadelta": torch.optim.Adadelta,
    "RMSprop, centred": partial(
        torch.optim.RMSprop, lr=1e-3, centered=True, momentum=0.5
    ),
    "Rprop": torch.optim.Rprop,
    "ASGD": partial(torch.optim.ASGD, lr=1e-2),
    "SGD": _sgd(),
    "SGD, Nesterov": _sgd(momentum=0.9, nesterov=True),
    "ClippedAdam": partial(ClippedAdam, lr=1e-2, clip_norm=1.0, lrd=0.99),
    "by name": _by_weight(),
}
_SCHEDULERS: dict[str, dict[str, Any]] = {
    "one cycle": one_cycle(1e-2, STEPS),
    "cosine": {"scheduler": partial(schedulers.CosineAnnealingLR, T_max=STEPS)},
    "warm restarts": {
        "scheduler": partial(schedulers.CosineAnnealingWarmRestarts, T_0=7)
    },
    "cyclic": {
        "scheduler": partial(
            schedulers.CyclicLR, base_lr=1e-3, max_lr=1e-2, step_size_up=6
        ),
        "optimizer": _sgd(momentum=0.9),
    },
    "milestones by epoch": {
        "scheduler": partial(schedulers.MultiStepLR, milestones=[2, 5]),
        "scheduler_interval": "epoch",
        "clip": 1.0,
    },
    "one after another": {"scheduler": _two_schedules},
    "on a plateau": {
        "scheduler": partial(schedulers.ReduceLROnPlateau, patience=0),
        "optimizer": _adam(),
        "steps": 200,
    },
}
# Compiled as the traced graph, because Inductor takes seconds at every start. One configuration
# below uses Inductor.
_COMPILED: dict[str, Callable[[Path], Setup]] = {
    "Adam": lambda _: vae(steps=80),
    "SGD": lambda _: vae(optimizer=_sgd(momentum=0.9), steps=80),
    "one cycle, statistics, dropout": lambda _: normalised(
        **one_cycle(1e-2, 80), steps=80
    ),
    "skipped steps": lambda _: spoilt(steps=80),
    "data on disk": lambda folder: from_disk(folder, steps=80),
    "callbacks": lambda _: normalised(callbacks=[cooled], steps=160),
    "arguments, a hook": lambda _: normalised(arguments=widening, after_step=clamped),
    "in turn": lambda _: in_turn(),
}
CONFIGURATIONS: dict[str, Callable[[Path], Setup]] = {
    **{
        f"optimizer: {name}": (lambda _, o=o: vae(optimizer=o))
        for name, o in _OPTIMIZERS.items()
    },
    **{
        f"scheduler: {name}": (lambda _, o=o: normalised(**o, validation=rows(1)[:20]))
        for name, o in _SCHEDULERS.items()
    },
    "all data at once": lambda _: vae(batch_size=None),
    "one datum left over": lambda _: normalised(batch_size=30),
    "data on disk": from_disk,
    "validation on disk": lambda folder: normalised(validation=_file(folder)),
    "bf16": lambda _: normalised(precision="bf16"),
    "skipped steps": lambda _: spoilt(),
    "arguments, a hook": lambda _: normalised(arguments=widening, after_step=clamped),
    "in turn": lambda _: in_turn(),
    "callbacks": lambda _: normalised(callbacks=[cooled], steps=160),
    "early stopping": lambda _: vae(
        validation=(rows(1) > 0).float()[:5],
        patience=1,
        optimizer=_adam(),
        steps=1000,
        batch_size=8,
    ),
    "annealed": lambda _: vae(objective=Annealed(Trace_ELBO(num_particles=2), 25)),
    "Rényi": lambda _: vae(objective=RenyiELBO(alpha=2, num_particles=3)),
    "mean field": lambda _: vae(objective=TraceMeanField_ELBO(), clip=0.5),
    "TraceGraph": lambda _: vae(objective=TraceGraph_ELBO()),
    "functions": lambda _: functions(),
    "a latent that data share": lambda _: shared(),
    **{
        f"compiled: {name}": (
            lambda folder, m=m: _with(
                m(folder), compile=True, batch_size=4, checkpoint_seconds=0.02
            )
        )
        for name, m in _COMPILED.items()
    },
}
INDUCTOR = "compiled by Inductor"
CONFIGURATIONS[INDUCTOR] = CONFIGURATIONS["compiled: Adam"]
# Of several ranks, with the same shared options.
RANKS: dict[str, tuple[int, Callable[[Path], Setup]]] = {
    "2 ranks": (2, lambda _: normalised()),
    "2 ranks, validation, one cycle": (
        2,
        lambda _: vae(**one_cycle(1e-2, STEPS), validation=(rows(1) > 0).float()),
    ),
    "2 ranks, skipped steps": (2, lambda _: spoilt()),
    "2 ranks, compiled": (2, lambda _: vae(compile=True)),
    "3 ranks": (3, lambda _: normalised(clip=0.5)),
}


def _with(setup: Setup, **options: Any) -> Setup:
    return setup._replace(options={**setup.options, **options})


def fit(
    make: Callable[[Path], Setup], folder: Path, data: Path, **more: Any
) -> tuple[Any, vilvm.Fit]:
    """Trains a configuration in a run folder, or resumes it. Every step has a checkpoint."""
    torch.manual_seed(1)
    lvm, x, options = make(data)
    given = {
        "steps": STEPS,
        "batch_size": BATCH,
        "compile": False,
        "checkpoint_seconds": 0.0,
        **options,
        **more,
    }
    return lvm, vilvm.fit(lvm, x, run_dir=folder, resume=True, progress=False, **given)
