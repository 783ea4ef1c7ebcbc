"""fit: that it learns, what it records, and what stops it."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate

import vilvm
from models.vae import tiny


def scalar_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def scalar_guide(x):
    slope = pyro.param("slope", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, scale))


def test_it_finds_the_exact_posterior():
    x = torch.randn(500, generator=torch.Generator().manual_seed(0)) * 2**0.5
    lvm = vilvm.Pair(scalar_model, scalar_guide)
    vilvm.fit(lvm, x, epochs=60, batch_size=100, optimizer=partial(torch.optim.Adam, lr=0.03))
    assert lvm.pyro_params["slope"].item() == pytest.approx(0.5, abs=0.05)
    assert lvm.pyro_params["scale"].exp().item() == pytest.approx(0.5**0.5, abs=0.05)
    assert len(pyro.get_param_store()) == 0


def test_history_and_files(tmp_path):
    lvm, x = tiny()
    fitted = vilvm.fit(lvm, x, validation=x, steps=120, run_dir=tmp_path)
    assert fitted.history["step"].tolist() == [50, 100, 120]
    assert np.isfinite(fitted.history["validation_elbo"]).all()
    assert np.allclose(fitted.history["rate"] + fitted.history["distortion"], -fitted.history["validation_elbo"])
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("epoch,step,elbo,validation_elbo")


def test_two_runs_of_one_seed_are_one():
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        lvm, x = tiny()
        vilvm.fit(lvm, x, steps=10, batch_size=2, seed=4)
        states.append(lvm.state_dict())
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])


def test_the_generator_is_left_alone():
    lvm, x = tiny()
    state = torch.get_rng_state()
    vilvm.fit(lvm, x, steps=3)
    assert torch.equal(state, torch.get_rng_state())


def test_best_parameters_are_kept_and_patience_stops():
    lvm, x = tiny()
    fitted = vilvm.fit(lvm, x, validation=1 - x, steps=5000, patience=2, optimizer=partial(torch.optim.Adam, lr=0.05))
    assert fitted.stopped == "early"
    assert fitted.steps < 5000
    assert fitted.best_step == fitted.history["step"][fitted.history["validation_elbo"].argmax()]


def test_callback_stops():
    lvm, x = tiny()
    fitted = vilvm.fit(lvm, x, steps=500, callbacks=[lambda event: len(event.history) == 2])
    assert (fitted.stopped, fitted.steps) == ("callback", 100)


def test_schedulers():
    lvm, x = tiny()
    step = vilvm.fit(lvm, x, steps=100, scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=10, gamma=0.5))
    assert step.history["learning_rate"][-1] == pytest.approx(1e-3 * 0.5**10)
    # It watches the validation ELBO, which grows: with mode="min" every record but the first is a bad one.
    plateau = partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, factor=0.1, mode="min")
    assert vilvm.fit(lvm, x, validation=x, steps=300, scheduler=plateau).history["learning_rate"][-1] < 1e-3


def test_clipping_bounds_the_update():
    lvm, x = tiny()
    before = torch.cat([p.detach().flatten().clone() for p in lvm.parameters()])
    vilvm.fit(lvm, x, steps=1, clip=1e-3, optimizer=partial(torch.optim.SGD, lr=1.0))
    after = torch.cat([p.detach().flatten() for p in lvm.parameters()])
    assert (after - before).norm() <= 1e-3 * 1.01


class Sometimes(torch.nn.Module):
    """A guide that puts NaN into the posterior mean at its tenth call."""

    def __init__(self):
        super().__init__()
        self.m, self.calls = torch.nn.Parameter(torch.zeros(())), 0

    def model(self, x):
        scalar_model(x)

    def guide(self, x):
        self.calls += 1
        with pyro.validation_enabled(False), pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.m * (float("nan") if self.calls == 10 else 1.0), 1.0, validate_args=False))


def test_a_nonfinite_step_can_be_skipped():
    lvm = Sometimes()
    # Pyro checks its values in the first epoch, here one step, so the fault comes later.
    fitted = vilvm.fit(lvm, torch.randn(200), steps=20, nonfinite="skip")
    assert fitted.skipped == 1
    assert fitted.history["skipped"].sum() == 1
    assert torch.isfinite(lvm.m)


def test_enumerated_models_train():
    @config_enumerate
    def model(x):
        weights = pyro.param("weights", torch.ones(2) / 2, constraint=dist.constraints.simplex)
        locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)

    def guide(x):
        pass

    torch.manual_seed(0)
    x = torch.cat([torch.randn(300) - 3, torch.randn(100) + 3])
    lvm = vilvm.Pair(model, guide)
    fitted = vilvm.fit(
        lvm, x, steps=300, objective=TraceEnum_ELBO(max_plate_nesting=1), optimizer=partial(torch.optim.Adam, lr=0.05)
    )
    assert lvm.pyro_params["locs"].tolist() == pytest.approx([-3, 3], abs=0.3)
    assert np.isfinite(fitted.history["elbo"]).all()


def test_subsampled_plate_reports_nats_per_datum():
    def model(x):
        with pyro.plate("data", 1000, subsample=torch.arange(len(x))):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", 1000, subsample=torch.arange(len(x))):
            pyro.sample("z", dist.Normal(slope * x, 0.5**0.5))

    fitted = vilvm.fit(vilvm.Pair(model, guide), torch.zeros(64), steps=50, optimizer=partial(torch.optim.SGD, lr=0.0))
    assert fitted.history["elbo"][0] == pytest.approx(dist.Normal(0.0, 2**0.5).log_prob(torch.tensor(0.0)).item(), abs=1e-4)
