"""The work of each process in test_distributed, which also runs it in one process for comparison.
It contains no test.
"""

import json
import sys
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO

import vilvm
from vilvm._runtime.distributed import process_group as ranks
from vilvm.objectives import Annealed


class Point(torch.nn.Module):
    """A deterministic auto-encoder: no noise, so that any number of ranks sees the same loss."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(6, 3), torch.nn.Linear(3, 6)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(self.encoder(x)).to_event(1))


class Shared(torch.nn.Module):
    """A mean that all data share, under a plate of all of them, and a guide without noise."""

    def __init__(self, size):
        super().__init__()
        self.size, self.m = size, torch.nn.Parameter(torch.zeros(6))

    def model(self, x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0).expand([6]).to_event(1))
        with pyro.plate("data", self.size, subsample=x):
            pyro.sample("x", dist.Normal(m, 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.sample("m", dist.Delta(self.m).to_event(1))


class Noisy(Point):
    """A pair with noise, which each rank draws itself, and batch statistics."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(6)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(self.norm(x)), 0.5).to_event(1))


class Turns(Point):
    """Batches with and without a label, which has its own parameter; the scale of the likelihood
    depends on the step.
    """

    def __init__(self):
        super().__init__()
        self.label = torch.nn.Linear(3, 1)

    def model(self, batch, scale=1.0):
        x = batch["x"]
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), scale).to_event(1), obs=x)
            if "y" in batch:
                pyro.sample(
                    "y", dist.Normal(self.label(z), 1.0).to_event(1), obs=batch["y"]
                )

    def guide(self, batch, scale=1.0):
        super().guide(batch["x"])


class Scripted(torch.nn.Module):
    """A pair whose ELBO is largest at a known step and falls on both sides of it.

    Train it with ``optimizer=still`` and ``after_step=Scripted.advance``.
    """

    def __init__(self, peak):
        super().__init__()
        self.peak, self.loc = peak, torch.nn.Parameter(torch.zeros(()))
        self.register_buffer("step", torch.zeros(()))

    def model(self, x):
        distance = (self.step - self.peak) / 100
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(distance, 1.0), obs=x[:, 0] * 0)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, 1.0))

    @staticmethod
    def advance(lvm, step):
        lvm.step.fill_(step)


still = partial(torch.optim.SGD, lr=0.0)


def widening(step):
    return {"scale": 0.5 + step / 24}


def bounded(lvm, step):
    lvm.label.weight.clamp_(-0.4, 0.4)


def data():
    return torch.randn(53, 6, generator=torch.Generator().manual_seed(0)) + 1


def made(make, *args):
    # has no effect: all ranks start from rank 0's parameters
    torch.manual_seed(3 + ranks().rank)
    return make(*args)


def noiseless(folder):
    """Parameters and records of runs without noise, by name."""
    x, found = data(), {}
    sgd, adam = partial(torch.optim.SGD, lr=0.05), partial(torch.optim.Adam, lr=0.01)
    for name, lvm, options in (
        # the last batch of an epoch has 13
        ("sgd", made(Point), {"optimizer": sgd, "batch_size": 20}),
        (
            "adam",
            made(Point),
            {"optimizer": adam, "batch_size": 20, "clip": 0.5, "validation": x[:31]},
        ),
        (
            "one",
            made(Point),
            {"optimizer": adam, "batch_size": 1},
        ),  # one datum for two ranks
        ("full", made(Point), {"optimizer": adam}),
        (
            "shared",
            made(Shared, 53),
            {"optimizer": partial(torch.optim.SGD, lr=1e-3), "batch_size": 20},
        ),
        (
            "shared, one",
            made(Shared, 53),
            {"optimizer": partial(torch.optim.SGD, lr=1e-3), "batch_size": 26},
        ),  # a last batch of one datum
        (
            "in turn",
            made(Turns),
            {
                "optimizer": adam,
                "batch_size": 10,
                "arguments": widening,
                "after_step": bounded,
            },
        ),
        (
            "annealed",
            made(Point),
            {
                "optimizer": adam,
                "batch_size": 20,
                "objective": Annealed(Trace_ELBO(), 12),
            },
        ),
    ):
        given = (
            vilvm.Interleaved({"x": x[:30]}, {"x": x[30:], "y": x[30:, :1]})
            if isinstance(lvm, Turns)
            else x
        )
        vilvm.fit(
            lvm,
            given,
            steps=24,
            run_dir=None if folder is None else folder / name,
            progress=False,
            **options,
        )
        found[name] = lvm.state_dict()
    return found


def main(folder):
    with vilvm.distributed(minutes=1.0) as world:
        found = noiseless(folder)
        noisy = made(Noisy)
        fitted = vilvm.fit(
            noisy,
            data(),
            steps=24,
            batch_size=20,
            validation=data(),
            run_dir=folder / "noisy",
            checkpoint_seconds=0.0,
        )
        parts = made(Noisy)
        for steps in (14, 24):
            options = {
                "batch_size": 20,
                "validation": data(),
                "run_dir": folder / "parts",
            }
            resumed = vilvm.fit(
                parts, data(), steps=steps, resume=steps == 24, **options
            )
        bounds = vilvm.evaluate(noisy, data(), num_samples=200, batch_size=7)
        stopped = vilvm.fit(
            made(Point),
            data(),
            steps=400,
            callbacks=[
                lambda event: world.rank == 1 and event.history.records[-1].step > 90
            ],
        )
        impatient = vilvm.fit(
            made(Scripted, 9),
            data(),
            epochs=90,
            batch_size=20,
            validation=data(),
            validate_every=1,
            patience=4,
            optimizer=still,
            after_step=Scripted.advance,
        )
        ends = world.gather(torch.tensor([[impatient.best_step, impatient.steps]]))
        skipping = made(Point)
        spoilt = data()
        spoilt[50] = 1e30  # which has no finite density
        skipped = vilvm.fit(
            skipping,
            data(),
            steps=24,
            batch_size=20,
            validation=spoilt,
            nonfinite="skip",
        )
        refused = alone = ""
        try:
            vilvm.fit(
                made(Point),
                data(),
                steps=5,
                run_dir=folder / "alone" if world.is_main else None,
            )
        except ValueError as error:
            alone = str(error)
        try:
            vilvm.fit(made(Point), data() + world.rank, steps=5)
        except ValueError as error:
            refused = str(error)
        try:
            pair = vilvm.Pair(
                lambda x: pyro.sample(
                    "x", dist.Normal(0.0, 1.0).expand(x.shape).to_event(2), obs=x
                ),
                lambda x: pyro.param("p", torch.tensor(0.0)),
            )
            vilvm.fit(pair, data(), steps=5)
        except vilvm.ContractError as error:
            whole = str(error)
        first = torch.cat([v.reshape(-1).double() for v in noisy.state_dict().values()])
        both = world.gather(first[None])
        own = torch.rand(1, generator=torch.Generator().manual_seed(world.seed(0)))
        draws = world.gather(own).tolist()
    if world.is_main:
        torch.save(
            {"found": found, "noisy": noisy.state_dict()}, folder / "parameters.pt"
        )
        results = {
            "alike": bool((both[0] == both[1]).all()),
            "resumed": all(
                torch.equal(v, noisy.state_dict()[n])
                for n, v in parts.state_dict().items()
            ),
            "same records": resumed.history["elbo"].tolist()
            == fitted.history["elbo"].tolist(),
            "draws": draws,
            "elbo": [
                bounds.bounds["elbo"].mean,
                bounds.bounds["elbo"].mc_se,
                len(bounds.bounds["elbo"].values),
            ],
            "values": bounds.bounds["elbo"].values.tolist(),
            "stopped": [stopped.stopped, stopped.steps],
            "refused": refused,
            "alone": alone,
            "patience": [impatient.stopped, *ends.tolist()],
            "skipped": [skipped.steps, skipped.stopped],
            "whole": whole,
        }
        (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
