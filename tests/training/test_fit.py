"""``fit`` learns, records its history, and stops for each of its reasons."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    config_enumerate,
)

import vilvm
from vilvm._compile import graph
from vilvm.data import DynamicBinarisation, StaticBinarisation
from vilvm.models.autoencoder import Autoencoder
from vilvm.models.vae import VAE, tiny
from vilvm.training import one_cycle
from vilvm.training._recorder import Recorder


def scalar_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def scalar_guide(x):
    slope = pyro.param("slope", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, scale))


def test_fit_finds_the_exact_posterior():
    x = torch.randn(500, generator=torch.Generator().manual_seed(0)) * 2**0.5
    lvm = vilvm.Pair(scalar_model, scalar_guide)
    vilvm.fit(
        lvm, x, epochs=30, batch_size=100, optimizer=partial(torch.optim.Adam, lr=0.03)
    )
    assert lvm.pyro_params["slope"].item() == pytest.approx(0.5, abs=0.05)
    assert lvm.pyro_params["scale"].exp().item() == pytest.approx(0.5**0.5, abs=0.05)
    assert len(pyro.get_param_store()) == 0


def test_history_and_files(tmp_path):
    lvm, x = tiny()
    fitted = vilvm.fit(lvm, x, validation=x, steps=120, run_dir=tmp_path)
    assert fitted.history["step"].tolist() == [50, 100, 120]
    assert np.isfinite(fitted.history["validation_elbo"]).all()
    assert np.allclose(
        fitted.history["rate"] + fitted.history["distortion"],
        -fitted.history["validation_elbo"],
    )
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("epoch,step,elbo,validation_elbo")


def test_one_seed_gives_one_run():
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        lvm, x = tiny()
        vilvm.fit(lvm, x, steps=10, batch_size=2, seed=4)
        states.append(lvm.state_dict())
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])


def test_generator_is_restored():
    lvm, x = tiny()
    state = torch.get_rng_state()
    vilvm.fit(lvm, x, steps=3)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.slow
def test_best_parameters_are_kept_and_patience_stops():
    lvm, x = tiny()
    seen = {}

    def remember(event):
        seen[event.history.records[-1].step] = {
            n: v.clone() for n, v in event.lvm.state_dict().items()
        }

    fitted = vilvm.fit(
        lvm,
        x,
        validation=1 - x,
        steps=5000,
        patience=2,
        optimizer=partial(torch.optim.Adam, lr=0.05),
        callbacks=[remember],
    )
    assert fitted.stopped == "early"
    best = fitted.history["validation_elbo"].argmax()
    assert fitted.best_step == fitted.history["step"][best]
    assert fitted.steps == fitted.best_step + 2  # all data a step: an epoch is a step
    assert all(
        torch.equal(seen[fitted.best_step][n], v) for n, v in lvm.state_dict().items()
    )


def test_callback_stops_training():
    lvm, x = tiny()
    fitted = vilvm.fit(
        lvm, x, steps=500, callbacks=[lambda event: len(event.history) == 2]
    )
    assert (fitted.stopped, fitted.steps) == ("callback", 100)


def test_schedulers_set_the_learning_rate():
    lvm, x = tiny()
    step = vilvm.fit(
        lvm,
        x,
        steps=100,
        scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=10, gamma=0.5),
    )
    assert step.history["learning_rate"][-1] == pytest.approx(1e-3 * 0.5**10)


@pytest.mark.parametrize(("mode", "improves"), [("min", True), ("max", False)])
def test_plateau_scheduler_uses_the_validation_elbo(mode, improves):
    (lvm, _), x = tiny(), torch.bernoulli(torch.full((400, 6), 0.9))
    plateau = partial(
        torch.optim.lr_scheduler.ReduceLROnPlateau, patience=1, factor=0.1, mode=mode
    )
    fitted = vilvm.fit(
        lvm, x, validation=x if improves else 1 - x, steps=300, scheduler=plateau
    )
    validation = fitted.history["validation_elbo"]
    assert (validation[-1] > validation[0]) == improves
    assert (fitted.history["learning_rate"][-1] == 1e-3) == improves


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
            pyro.sample(
                "z",
                dist.Normal(
                    self.m * (float("nan") if self.calls == 10 else 1.0),
                    1.0,
                    validate_args=False,
                ),
            )


def test_nonfinite_step_can_be_skipped():
    lvm = Sometimes()
    # Pyro checks its values in the first epoch, here one step, so the fault comes later.
    # it counts its calls
    fitted = vilvm.fit(lvm, torch.randn(200), steps=20, nonfinite="skip", compile=False)
    assert fitted.skipped == 1
    assert fitted.history["skipped"].sum() == 1
    assert torch.isfinite(lvm.m)


def test_enumerated_models_train():
    @config_enumerate
    def model(x):
        weights = pyro.param(
            "weights", torch.ones(2) / 2, constraint=dist.constraints.simplex
        )
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
        lvm,
        x,
        steps=120,
        objective=TraceEnum_ELBO(max_plate_nesting=1),
        optimizer=partial(torch.optim.Adam, lr=0.1),
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

    fitted = vilvm.fit(
        vilvm.Pair(model, guide),
        torch.zeros(1000),
        batch_size=64,
        steps=50,
        optimizer=partial(torch.optim.SGD, lr=0.0),
    )
    assert fitted.history["elbo"][0] == pytest.approx(
        dist.Normal(0.0, 2**0.5).log_prob(torch.tensor(0.0)).item(), abs=1e-4
    )


def test_validation_keeps_its_noise_and_transform():
    lvm, x = tiny()
    grey = vilvm.Data(torch.rand(1500, 6), transform=DynamicBinarisation())
    still = partial(torch.optim.SGD, lr=0.0)
    bounds = vilvm.fit(lvm, x, validation=grey, steps=150, optimizer=still).history[
        "validation_elbo"
    ]
    assert (bounds == bounds[0]).all()


class Line(torch.nn.Module):
    """x ~ N(z, 1), z ~ N(0, 1), with a guide so narrow about m x that the gradient of the loss is
    known: d/dm of (x − m x)² / 2 + (m x)² / 2.
    """

    def __init__(self):
        super().__init__()
        self.m = torch.nn.Parameter(torch.tensor(0.2, dtype=torch.float64))
        self.batches = []

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        seen = bool(self.batches) and torch.equal(
            self.batches[-1], x
        )  # of another particle
        if torch.is_grad_enabled() and not seen:
            self.batches.append(x.clone())
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.m * x, 1e-9))


@pytest.mark.parametrize(
    "objective",
    [Trace_ELBO(), RenyiELBO(alpha=0.0, num_particles=2)],
    ids=["differentiable", "loss_and_grads"],
)
def test_step_descends_the_loss_per_datum(objective):
    x = torch.randn(10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lvm, m = Line(), 0.2
    fitted = vilvm.fit(
        lvm,
        x,
        steps=3,
        batch_size=4,
        objective=objective,
        optimizer=partial(torch.optim.SGD, lr=0.1),
    )
    assert [len(b) for b in lvm.batches][-3:] == [
        4,
        4,
        2,
    ]  # the last batch of an epoch is smaller
    for batch in lvm.batches[-3:]:
        m -= 0.1 * (-(batch * (batch - m * batch)) + batch * m * batch).mean().item()
    assert lvm.m.item() == pytest.approx(m, abs=1e-6)
    assert fitted.steps == 3


def test_epoch_takes_each_datum_once_in_new_order():
    lvm, x = Line(), torch.arange(10.0, dtype=torch.float64)
    vilvm.fit(lvm, x, epochs=3, batch_size=4)
    order = torch.cat(lvm.batches[-9:]).reshape(3, 10)
    assert (order.sort(1).values == x).all()
    assert len({tuple(epoch.tolist()) for epoch in [*order, x]}) == 4


def test_schedule_by_epochs_steps_once_an_epoch():
    halving = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    fitted = vilvm.fit(
        Line(),
        torch.zeros(100, dtype=torch.float64),
        epochs=3,
        batch_size=2,
        scheduler=halving,
        scheduler_interval="epoch",
    )
    assert fitted.history["learning_rate"].tolist() == pytest.approx(
        [5e-4, 2.5e-4, 1.25e-4]
    )


def test_wake_sleep_trains():
    torch.manual_seed(0)
    lvm, _ = tiny()
    x = torch.bernoulli(torch.tensor([0.9, 0.9, 0.1, 0.1, 0.5, 0.5]).expand(64, 6))
    before = vilvm.evaluate(lvm, x, num_samples=50).bounds["elbo"].mean
    vilvm.fit(
        lvm,
        x,
        objective=ReweightedWakeSleep(num_particles=3, vectorize_particles=False),
        steps=100,
        optimizer=partial(torch.optim.Adam, lr=2e-3),
    )
    assert vilvm.evaluate(lvm, x, num_samples=50).bounds["elbo"].mean > before + 0.2


def test_optimizer_instance_is_accepted():
    lvm, x = tiny()
    optimizer = torch.optim.SGD(lvm.parameters(), lr=np.float32(0.5))
    assert (
        vilvm.fit(lvm, x, steps=2, optimizer=optimizer).history["learning_rate"][-1]
        == 0.5
    )


def test_half_precision_numbers_are_accepted(tmp_path):
    lvm = torch.nn.Module()
    lvm.m = torch.nn.Parameter(torch.zeros((), dtype=torch.bfloat16))
    lvm.model = scalar_model

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(lvm.m * x, 1.0))

    lvm.guide = guide
    assert (
        vilvm.fit(lvm, torch.randn(8).bfloat16(), steps=2, run_dir=tmp_path).steps == 2
    )


def diverging(**options):
    return vilvm.fit(
        tiny()[0],
        torch.ones(40, 6),
        steps=60,
        batch_size=10,
        optimizer=partial(torch.optim.SGD, lr=1e30),
        **options,
    )


def test_divergence_within_the_first_epoch_is_one_sentence():
    with pytest.raises(
        vilvm.NonFiniteLossError,
        match=r"Step [234] \(epoch 1\): the loss is nan\. .*'z'",
    ):
        diverging()


def test_divergence_can_be_skipped_from_the_first_epoch():
    fitted = diverging(nonfinite="skip")
    assert fitted.skipped >= 56


def test_skipping_every_step_warns():
    class Never(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.m, self.calls = torch.nn.Parameter(torch.zeros(())), 0

        def model(self, x):
            scalar_model(x)

        def guide(self, x):
            self.calls += 1
            # the first call finds the layout
            broken = self.m if self.calls == 1 else self.m * float("nan")
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(broken, 1.0, validate_args=False))

    with pytest.warns(UserWarning, match="All 3 steps were skipped"):
        vilvm.fit(Never(), torch.randn(8), steps=3, nonfinite="skip")


@pytest.mark.parametrize("compile", [False, True])
def test_failed_noise_is_used_to_name_the_site(compile, monkeypatch):
    monkeypatch.setattr("vilvm.training.compiled_step.machine_code", graph)

    class Rooted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.m = torch.nn.Parameter(torch.zeros(()))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                # NaN for few z
                pyro.sample(
                    "x", dist.Normal(z, (z + 3.5).sqrt(), validate_args=False), obs=x
                )

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.m * x, 1.0))

    for seed in range(2):
        with pytest.raises(
            vilvm.NonFiniteLossError,
            match="log-likelihood of site 'x' is nan for datum",
        ):
            vilvm.fit(
                Rooted(), torch.zeros(100), steps=5000, seed=seed, compile=compile
            )


def test_skipped_step_leaves_buffers_unchanged():
    class Counting(Sometimes):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(1, affine=False)

        def guide(self, x):
            if torch.is_grad_enabled():
                self.norm(x[:, None] * (float("nan") if self.calls == 9 else 1.0))
            super().guide(x)

    lvm = Counting()
    assert (
        vilvm.fit(
            lvm, torch.randn(200), steps=20, nonfinite="skip", compile=False
        ).skipped
        == 1
    )
    assert lvm.norm.num_batches_tracked == 19
    assert torch.isfinite(lvm.norm.running_mean).all()


def test_validation_changes_no_batch_statistics():
    class Normalised(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(1)

        def model(self, x):
            scalar_model(x[:, 0])

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.norm(x)[:, 0], 1.0))

    x, means = torch.randn(200, 1), []
    lvm = Normalised()
    vilvm.fit(
        lvm,
        x,
        steps=60,
        batch_size=64,
        validation=x + 100,
        callbacks=[lambda e: means.append(e.lvm.norm.running_mean.item())],
    )
    assert len(means) == 2
    assert max(abs(m) for m in means) < 1


def test_parameter_added_during_training_is_refused():
    def guide(x):
        with pyro.plate("data", len(x)):
            extra = pyro.param("late", torch.tensor(0.0)) if len(x) < 4 else 0.0
            pyro.sample(
                "z", dist.Normal(pyro.param("m", torch.tensor(0.0)) + extra, 1.0)
            )

    with pytest.raises(
        vilvm.ContractError, match=r"'late'.* appeared after training began"
    ):
        vilvm.fit(
            vilvm.Pair(scalar_model, guide), torch.randn(10), epochs=1, batch_size=4
        )


def test_static_transform_is_drawn_once():
    class Spy(Line):
        def guide(self, x):
            super().guide(x.double())

        def model(self, x):
            super().model(x.double())

    lvm = Spy()
    data = vilvm.Data(torch.linspace(0.2, 0.8, 30), transform=StaticBinarisation())
    vilvm.fit(lvm, data, epochs=3, batch_size=10, compile=False)
    epochs = torch.cat(lvm.batches[-9:]).reshape(3, 30).sum(1)
    assert (epochs == data.x.sum()).all()
    assert torch.equal(data.fixed(5).x, data.x)
    assert "StaticBinarisation" in data.fixed().protocol()["transform"]


@pytest.mark.slow
def test_shared_latents_train_in_batches_under_full_plate():
    x = 1 + torch.randn(1000, generator=torch.Generator().manual_seed(0))

    def model(batch):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", 1000, subsample=batch):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=batch)

    def guide(batch):
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param(
            "scale", torch.tensor(0.1), constraint=dist.constraints.positive
        )
        pyro.sample("mu", dist.Normal(loc, scale))

    lvm = vilvm.Pair(model, guide)
    decaying = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=2000)
    fitted = vilvm.fit(
        lvm,
        x,
        steps=2000,
        batch_size=100,
        optimizer=partial(torch.optim.Adam, lr=0.02),
        scheduler=decaying,
    )
    assert lvm.pyro_params["scale"].exp().item() == pytest.approx(1000**-0.5, rel=0.15)
    # All data together, in the objective and in the layout.
    assert fitted.history["elbo"][-1] == pytest.approx(-1420, abs=60)
    assert np.isnan(fitted.history["rate"]).all()


@pytest.mark.parametrize("steps", [1, 2, 19, 20, 45])
def test_one_cycle_ends_low_for_few_steps(steps):
    lvm, x = VAE(6, 2), torch.zeros(8, 6)
    rates = []
    made = one_cycle(1e-2, steps)

    def watched(optimizer):
        scheduler = made["scheduler"](optimizer)
        step = scheduler.step
        scheduler.step = lambda: (step(), rates.append(optimizer.param_groups[0]["lr"]))
        return scheduler

    assert (
        vilvm.fit(
            lvm, x, steps=steps, optimizer=made["optimizer"], scheduler=watched
        ).stopped
        == "finished"
    )
    assert len(rates) >= steps - 1
    assert max(rates) <= 1e-2 * (1 + 1e-9)
    assert rates[-1] < 1e-3


@pytest.mark.parametrize(
    ("kind", "name"), [(VAE, "ELBO"), (Autoencoder, "log p(x, z)")]
)
def test_progress_names_what_is_maximised(kind, name, monkeypatch):
    said = []
    progress = Recorder.progress
    monkeypatch.setattr(
        Recorder, "progress", lambda self: said.append(progress(self)) or said[-1]
    )
    vilvm.fit(kind(6, 2), torch.rand(20, 6).round(), steps=3, validate_every=1)
    assert f"{name} -" in said[-1]
    assert ("rate" in said[-1]) == (name == "ELBO")
