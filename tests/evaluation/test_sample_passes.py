"""Compiled passes must equal the eager ones on the same noise."""

import importlib
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

import vilvm
from vilvm._compile import graph
from vilvm._runtime.random import seeded

GALLERY = sorted(
    p.stem
    for p in (Path(__file__).parents[2] / "models").glob("*.py")
    if p.stem != "__init__"
)


@pytest.fixture
def as_graph(monkeypatch):
    """Graphs that run without Inductor; a list that counts them."""
    made = []
    monkeypatch.setattr(
        "vilvm.evaluation.sample_passes.machine_code",
        lambda *args: (made.append(1), graph(*args))[1],
    )
    return made


def same(lvm, batch, **options):
    vilvm.evaluate(lvm, batch, num_samples=1)  # initialises an autoguide
    eager, found = (
        vilvm.evaluate(lvm, batch, num_samples=47, chunk=10, compile=c, **options)
        for c in (False, True)
    )
    for name in eager.bounds:
        torch.testing.assert_close(
            found.bounds[name].values, eager.bounds[name].values, rtol=1e-5, atol=1e-5
        )
    torch.testing.assert_close(
        found.distortion.values, eager.distortion.values, rtol=1e-5, atol=1e-5
    )


FEW = {"vae", "ppca", "autoencoder", "linear_discriminant"}  # one of each kind


@pytest.mark.parametrize(
    "name",
    [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in GALLERY],
)
def test_graph_equals_eager_evaluation_for_every_model(name, as_graph, capsys):
    with seeded(0):
        lvm, batch = importlib.import_module(f"vilvm.models.{name}").tiny()
    same(lvm, batch)
    # a degenerate guide has only two draws
    assert as_graph or "autoencoder" in name or name == "vq_vae"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae", "eight_schools", "hidden_markov"])
def test_inductor_equals_eager_evaluation(name):
    with seeded(0):
        lvm, batch = importlib.import_module(f"vilvm.models.{name}").tiny()
    same(lvm, batch)


def test_program_out_of_memory_falls_back_to_eager(monkeypatch, capsys):
    calls = []

    def compiler(function, inputs):
        run = graph(function, inputs)

        def program(*given):
            calls.append(1)
            if len(calls) == 3:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return run(*given)

        return program

    monkeypatch.setattr("vilvm.evaluation.sample_passes.machine_code", compiler)
    from vilvm.models.vae import tiny

    same(*tiny())
    assert len(calls) == 3
    assert (
        "runs eagerly, because its program ran out of memory" in capsys.readouterr().out
    )


def test_smaller_last_batch_runs_eagerly(as_graph):
    from vilvm.models.vae import tiny

    lvm, batch = tiny()
    same(lvm, batch, batch_size=2)
    assert len(as_graph) == 1


class Mean(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.m = torch.nn.Parameter(torch.tensor(0.5))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z", dist.Normal(self.m * x, 0.7 if float(x.sum()) > 100 else 0.6)
            )


def test_untraceable_pair_runs_eagerly_with_one_message(as_graph, capsys):
    same(Mean(), torch.randn(6))
    message = capsys.readouterr().out.strip()
    assert message.startswith(
        "The evaluation of Mean is not compiled, and runs eagerly: Python reads the value of a "
        "tensor"
    )
    assert "\n" not in message


def test_nan_density_is_named(as_graph):
    class Broken(Mean):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample(
                    "x",
                    dist.Normal(
                        torch.where(z > 3.0, torch.nan, z), 1.0, validate_args=False
                    ),
                    obs=x,
                )

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.m * x, 1.0))

    for seed in range(5):  # NaN in one draw of 700
        with pytest.raises(vilvm.ContractError, match="NaN"):
            vilvm.evaluate(
                Broken(),
                torch.zeros(6),
                num_samples=2000,
                chunk=10,
                compile=True,
                seed=seed,
            )
    assert len(as_graph) == 5


def test_unknown_compile_option_is_refused():
    with pytest.raises(ValueError, match="unknown compile='yes'"):
        vilvm.evaluate(Mean(), torch.randn(6), compile="yes")
