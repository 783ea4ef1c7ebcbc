"""Compiled densities of a chain must equal the eager ones, and so must the results of AIS."""

import importlib
from importlib import import_module

import pyro
import pyro.distributions as dist
import pytest
import torch

from vilvm._compile import graph
from vilvm._runtime.random import seeded
from vilvm.diagnostics.pareto_k import pareto_k
from vilvm.evaluation import Schedule, ais, bdmc, evaluate
from vilvm.evaluation.density_gradients import DensityGradients
from vilvm.evaluation.hmc import start
from vilvm.lvm import ContractError
from vilvm.weights.log_joint import LogJoint

SHORT = Schedule(num_chains=6, num_temperatures=4, leapfrog=1)


@pytest.fixture(autouse=True)
def _short_pilot(monkeypatch):
    """A short pilot: these comparisons need no good step sizes."""
    monkeypatch.setattr(import_module("vilvm.evaluation._chains"), "_PILOT_START", 3)
    monkeypatch.setattr(import_module("vilvm.evaluation._chains"), "_PILOT_LEAST", 15)


@pytest.fixture
def as_graph(monkeypatch):
    """Graphs that run without Inductor; a list that counts them."""
    made = []
    for user in ("density_gradients", "sample_passes"):
        monkeypatch.setattr(
            f"vilvm.evaluation.{user}.machine_code",
            lambda *args: (made.append(1), graph(*args))[1],
        )
    return made


def tiny(name):
    with seeded(0):
        return importlib.import_module(f"vilvm.models.{name}").tiny()


def equal_to_eager(lvm, batch, base, compiler):
    joint = LogJoint(lvm, batch, base)
    with seeded(1):
        u, other = joint.draw(4), joint.draw(4)
    gradients = DensityGradients(True, compiler=compiler)
    gradients(joint, u)  # makes the program
    assert gradients.compiles
    for found, expected in zip(
        gradients(joint, other), start(joint, other), strict=True
    ):
        size = expected[expected.isfinite()].abs().mean().item()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * size)


CONTINUOUS = [
    "bayesian_regression",
    "eight_schools",
    "hidden_markov",
    "ppca",
    "vae",
    "factor_analysis",
]


@pytest.mark.parametrize("base", ["guide", "prior"])
@pytest.mark.parametrize(
    "name",
    [
        n if n in ("vae", "eight_schools") else pytest.param(n, marks=pytest.mark.slow)
        for n in CONTINUOUS
    ],
)
def test_graph_equals_eager_gradients_for_every_model(name, base):
    equal_to_eager(*tiny(name), base, graph)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae", "eight_schools", "hidden_markov"])
def test_inductor_equals_eager_gradients(name):
    equal_to_eager(*tiny(name), "guide", None)


@pytest.mark.slow
def test_ais_is_the_same_when_compiled(as_graph):
    lvm, batch = tiny("ppca")
    eager, found = (ais(lvm, batch, SHORT, compile=c) for c in (False, True))
    torch.testing.assert_close(
        found.bound.values, eager.bound.values, rtol=1e-4, atol=1e-4
    )
    assert len(as_graph) == 2  # one for the pilot, one for the other chains
    eager, compiled = (
        bdmc(lvm, SHORT, num_simulations=5, compile=c) for c in (False, True)
    )
    torch.testing.assert_close(
        compiled.gap.values, eager.gap.values, rtol=1e-3, atol=1e-3
    )


def test_smaller_last_batch_runs_eagerly(as_graph):
    lvm, batch = tiny("ppca")
    eager, found = (
        ais(lvm, batch, SHORT, compile=c, batch_size=3) for c in (False, True)
    )
    assert len(batch) % 3, "the last batch has to be smaller"
    assert len(as_graph) == 2
    torch.testing.assert_close(
        found.bound.values, eager.bound.values, rtol=1e-4, atol=1e-4
    )


class Reading(torch.nn.Module):
    """A model that reads a value."""

    def __init__(self):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(()))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            scale = 2.0 if float(z.detach().mean()) > 0 else 1.0
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, 1.0))


def test_untraceable_densities_run_eagerly_with_one_message(as_graph, capsys):
    x = torch.randn(4)
    found = ais(Reading(), x, SHORT, compile=True)
    said = capsys.readouterr().out
    assert "Reading: samples are run one by one" in said  # because each reads a value
    assert said.count("The densities of Reading are not compiled") == 1
    assert "reads the value of a tensor" in said
    torch.testing.assert_close(
        found.bound.values, ais(Reading(), x, SHORT, compile=False).bound.values
    )


def _shifted(function, inputs):
    """A compiler whose programs have an error of 1 %."""
    run = graph(function, inputs)
    return lambda *given: [1.01 * t for t in run(*given)]


def test_gradients_that_differ_are_refused(monkeypatch, capsys):
    monkeypatch.setattr("vilvm.evaluation.density_gradients.machine_code", _shifted)
    lvm, batch = tiny("ppca")
    ais(lvm, batch, SHORT, compile=True)
    assert "is not the eager one" in capsys.readouterr().out


class Counting(Reading):
    """A model whose density depends on how many of its data are positive, counted in Python."""

    def model(self, x):
        scale = 1.0 + int((x.detach().numpy() > 0).sum())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)


def test_program_wrong_for_the_next_batch_is_dropped(as_graph, capsys):
    x = torch.tensor([0.1, 0.4, 0.7, 1.0, -3.0, 5.0, -8.0, 2.0])
    for call, what in (
        (
            lambda c: ais(Counting(), x, SHORT, batch_size=4, compile=c).bound.values,
            "densities",
        ),
        (
            lambda c: (
                evaluate(
                    Counting(), x, num_samples=50, chunk=10, batch_size=4, compile=c
                )
                .bounds["iwae"]
                .values
            ),
            "evaluation",
        ),
    ):
        torch.testing.assert_close(call(True), call(False), rtol=1e-5, atol=1e-5)
        assert f"The {what} of Counting " in capsys.readouterr().out
    assert as_graph


def test_program_that_fails_is_not_used(monkeypatch, capsys):
    def failing(*args):
        def run(*given):
            raise RuntimeError("a kernel fails")

        return run

    for user in ("density_gradients", "sample_passes"):
        monkeypatch.setattr(f"vilvm.evaluation.{user}.machine_code", failing)
    lvm, batch = tiny("ppca")
    assert ais(lvm, batch, SHORT, compile=True).bound.values.isfinite().all()
    assert (
        evaluate(lvm, batch, num_samples=50, chunk=10, compile=True)
        .bounds["elbo"]
        .values.isfinite()
        .all()
    )
    assert capsys.readouterr().out.count("its program fails (a kernel fails") == 2


def test_nan_density_is_named(as_graph):
    class Broken(Reading):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample(
                    "x", dist.Normal(torch.sqrt(z), 1.0, validate_args=False), obs=x
                )

    with pytest.raises(ContractError, match="NaN"):
        ais(Broken(), torch.randn(4), SHORT, compile=True)


def test_pareto_k_is_the_same_when_compiled(as_graph):
    lvm, batch = tiny("vae")
    eager, found = (
        pareto_k(lvm, batch, batch_size=len(batch), num_samples=8_000 * 3, compile=c)
        for c in (False, True)
    )
    assert as_graph
    torch.testing.assert_close(found.k, eager.k, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.ess, eager.ess, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("call", [ais, bdmc, pareto_k])
def test_unknown_compile_option_is_refused(call):
    with pytest.raises(
        ValueError, match="unknown compile='yes'; choose True, False or 'auto'"
    ):
        call(
            Reading(),
            **({} if call is bdmc else {"data": torch.randn(4)}),
            compile="yes",
        )
