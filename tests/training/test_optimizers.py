"""Optimizers: options by name, Pyro's options per datum, and schedules that end too soon."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim.clipped_adam import ClippedAdam

import vilvm
from vilvm._compile import graph
from vilvm._runtime.random import set_seed
from vilvm.models.vae import VAE, tiny
from vilvm.training import by_name, compiled_step

X = torch.linspace(-2, 3, 40)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    slope = pyro.param("slope", torch.tensor(0.0))
    scale = pyro.param(
        "a.scale", torch.tensor(1.0), constraint=dist.constraints.positive
    )
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, scale))


def trained(optimizer, lvm=None, x=X, **options):
    lvm = vilvm.Pair(model, guide) if lvm is None else lvm
    fitted = vilvm.fit(lvm, x, **{"steps": 3, "optimizer": optimizer, **options})
    return lvm, fitted


def test_names_are_those_of_pyro_statements():
    seen = []

    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = torch.nn.Linear(1, 1)
            self.model = model

        def guide(self, x):
            pyro.param("q.bias", torch.tensor(0.0))
            with pyro.plate("data", len(x)):
                pyro.sample(
                    "z",
                    dist.Normal(
                        self.encoder(x[:, None])[:, 0]
                        + pyro.param("shift", torch.tensor(0.0)),
                        1.0,
                    ),
                )

    trained(
        by_name(torch.optim.SGD, lambda name: seen.append(name) or {"lr": 0.1}), Both()
    )
    assert set(seen) == {"encoder.weight", "encoder.bias", "q.bias", "shift"}


def test_each_parameter_has_its_own_rate():
    plain, _ = trained(partial(torch.optim.SGD, lr=0.1), steps=1)
    rates = {"slope": 0.2, "a.scale": 0.0}
    lvm, fitted = trained(
        by_name(torch.optim.SGD, lambda name: {"lr": rates[name]}), steps=1
    )
    assert lvm.pyro_params["slope"].item() == pytest.approx(
        2 * plain.pyro_params["slope"].item()
    )
    assert lvm.pyro_params["a/scale"].item() == 0.0
    assert plain.pyro_params["a/scale"].item() != 0.0
    assert fitted.history[-1].learning_rate == 0.2


@pytest.mark.parametrize("compile", [False, True])
def test_groups_step_as_a_torch_optimizer_of_groups(monkeypatch, capsys, compile):
    monkeypatch.setattr(compiled_step, "machine_code", graph)

    def vae():
        torch.manual_seed(0)
        return VAE(6, 2, encoder_hidden=(8,), decoder_hidden=(8,))

    x = torch.bernoulli(torch.full((30, 6), 0.4))
    other, lvm = vae(), vae()
    groups = [
        {
            "params": [
                p for n, p in other.named_parameters() if n.startswith("decoder")
            ],
            "lr": 1e-2,
        },
        {
            "params": [
                p for n, p in other.named_parameters() if not n.startswith("decoder")
            ],
            "betas": (0.5, 0.9),
        },
    ]
    options = {
        "steps": 20,
        "batch_size": 10,
        "scheduler": partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9),
    }
    trained(torch.optim.Adam(groups, lr=1e-3), other, x, compile=False, **options)
    named = by_name(
        partial(torch.optim.Adam, lr=1e-3),
        lambda n: {"lr": 1e-2} if n.startswith("decoder") else {"betas": (0.5, 0.9)},
    )
    trained(named, lvm, x, compile=compile, **options)
    for name, value in other.state_dict().items():
        torch.testing.assert_close(lvm.state_dict()[name], value, rtol=1e-4, atol=1e-6)
    assert "eagerly" not in capsys.readouterr().out


def test_options_by_name_resume_and_are_compared(tmp_path):
    def run(folder, steps, slope=0.05, **options):
        rates = by_name(
            torch.optim.Adam, lambda name: {"lr": slope if name == "slope" else 0.01}
        )
        return trained(rates, steps=steps, run_dir=tmp_path / folder, **options)[0]

    whole = run("whole", 20)
    run("parts", 7)
    with pytest.raises(
        vilvm.CheckpointError,
        match=r"by name: lr=0.05, parameters=1; lr=0.01.*this run has .*lr=0.5",
    ):
        run("parts", 20, slope=0.5, resume=True)
    parts = run("parts", 20, resume=True)
    assert all(
        torch.equal(v, parts.state_dict()[n]) for n, v in whole.state_dict().items()
    )


def pyros_own(optimizer, x, batches=1, **options):
    """The guide's parameters after Pyro's SVI."""
    pyro.clear_param_store()
    set_seed(0, torch.device("cpu"), "training")
    svi = SVI(model, guide, optimizer(options), Trace_ELBO())
    for _ in range(batches):
        svi.step(x)
    return [pyro.param("slope").item(), pyro.param("a.scale").log().item()]


@pytest.mark.parametrize(
    "option",
    [
        {"clip_norm": 4.0},
        {"weight_decay": 8.0},
        {"eps": 20.0},
        {"clip_norm": 2.0, "eps": 5.0},
    ],
)
def test_gradients_per_datum_are_svi_over_num_data(option):
    """``clip_norm``, ``weight_decay`` and ``eps`` over N, the number of data, make the steps of
    Pyro's SVI.
    """
    expected = pyros_own(pyro.optim.ClippedAdam, X, 20, lr=0.05, **option)
    defaults = {"eps": 1e-8, "clip_norm": 10.0}
    own = partial(
        ClippedAdam,
        lr=0.05,
        **{k: v / len(X) for k, v in {**defaults, **option}.items()},
    )
    lvm, _ = trained(own, steps=20)
    found = [lvm.pyro_params["slope"].item(), lvm.pyro_params["a/scale"].item()]
    assert found == pytest.approx(expected, rel=1e-4)
    as_given, _ = trained(partial(ClippedAdam, lr=0.05, **option), steps=20)
    assert as_given.pyro_params["slope"].item() != pytest.approx(expected[0], rel=1e-2)


def test_subsampling_plate_scales_by_its_full_size():
    def with_plate(half):
        def scaled(x):
            with pyro.poutine.scale(scale=25.0):
                half(x)

        return scaled

    pyro.clear_param_store()
    set_seed(0, torch.device("cpu"), "training")
    svi = SVI(
        with_plate(model),
        with_plate(guide),
        pyro.optim.ClippedAdam({"lr": 0.05, "clip_norm": 100.0}),
        Trace_ELBO(),
    )
    for _ in range(20):
        svi.step(X)
    lvm = vilvm.Pair(with_plate(model), with_plate(guide))
    trained(
        partial(
            ClippedAdam,
            lr=0.05,
            clip_norm=100.0 / (25 * len(X)),
            eps=1e-8 / (25 * len(X)),
        ),
        lvm,
        steps=20,
    )
    assert lvm.pyro_params["slope"].item() == pytest.approx(
        pyro.param("slope").item(), rel=1e-4
    )


class Rateless(torch.optim.Optimizer):
    """Descends by the sign of the gradient times a gain; it has no option "lr"."""

    def __init__(self, params, gain=0.01):
        super().__init__(params, {"gain": gain})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["gain"] * p.grad.sign()


@pytest.mark.parametrize(
    "optimizer", [Rateless, by_name(Rateless, lambda name: {"gain": 0.02})]
)
@pytest.mark.parametrize("compile", [False, True])
def test_optimizer_without_learning_rate_is_accepted(
    monkeypatch, optimizer, compile, tmp_path
):
    monkeypatch.setattr(compiled_step, "machine_code", graph)
    lvm, fitted = trained(optimizer, compile=compile, run_dir=tmp_path)
    assert np.isnan(fitted.history["learning_rate"]).all()
    gain = 0.01 if optimizer is Rateless else 0.02
    assert abs(lvm.pyro_params["slope"].item()) == pytest.approx(3 * gain)


@pytest.mark.parametrize(
    "number", [np.int64(3), np.uint8(3), torch.tensor(3), np.array(3)]
)
def test_integers_of_every_type_are_accepted(number, tmp_path):
    def run(number):
        torch.manual_seed(0)
        lvm, x = tiny()
        options = {
            "validation": x,
            "patience": number,
            "batch_size": number,
            "seed": number,
            "run_dir": tmp_path / str(type(number)),
        }
        vilvm.fit(lvm, x, epochs=number, clip=np.float32(0.5), **options)
        fitted = vilvm.fit(
            lvm,
            x,
            epochs=4,
            clip=0.5,
            resume=True,
            **{**options, "seed": 3, "batch_size": 3},
        )
        return fitted, lvm.state_dict()

    (found, parameters), (expected, others) = run(number), run(3)
    assert found.steps == expected.steps == 8
    assert all(torch.equal(parameters[n], v) for n, v in others.items())


def test_records_by_number_and_slice():
    lvm, x = tiny()
    history = vilvm.fit(lvm, x, steps=200).history
    assert history[-1] is history.records[3]
    assert history[np.int64(0)].step == 50
    assert isinstance(history[1:], vilvm.History)
    assert history[1:3]["step"].tolist() == [100, 150]
    assert len(history[::-1]) == 4


def test_cycle_as_long_as_the_run_is_accepted():
    cycle = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=30)
    assert (
        trained(partial(torch.optim.SGD, lr=0.1), steps=30, scheduler=cycle)[1].steps
        == 30
    )

    def warmed(optimizer):
        parts = [
            torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=20),
            cycle(optimizer),
        ]
        return torch.optim.lr_scheduler.SequentialLR(optimizer, parts, milestones=[20])

    assert (
        trained(partial(torch.optim.SGD, lr=0.1), steps=50, scheduler=warmed)[1].steps
        == 50
    )
