"""Compiled densities of a chain are the eager ones, or are not taken; and what is made of them is
the same.
"""

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
    """What is compared here needs no good step sizes."""
    monkeypatch.setattr(import_module("vilvm.evaluation._chains"), "_PILOT_START", 3)
    monkeypatch.setattr(import_module("vilvm.evaluation._chains"), "_PILOT_LEAST", 15)


@pytest.fixture
def as_graph(monkeypatch):
    """Graphs that are run as they are; and how many were made."""
    made = []
    for user in ("density_gradients", "sample_passes"):
        monkeypatch.setattr(
            f"vilvm.evaluation.{user}.inductor", lambda *args: (made.append(1), graph(*args))[1]
        )
    return made


def tiny(name):
    with seeded(0):
        return importlib.import_module(f"vilvm.models.{name}").tiny()


def equal_to_eager(lvm, batch, base, compiler):
    joint = LogJoint(lvm, batch, base)
    with seeded(1):
        u, other = joint.draw(4), joint.draw(4)
    slopes = DensityGradients(True, compiler=compiler)
    slopes(joint, u)  # of which the program is made
    assert slopes.compiles
    for found, expected in zip(slopes(joint, other), start(joint, other), strict=True):
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
def test_every_model_has_the_same_slopes(name, base):
    equal_to_eager(*tiny(name), base, graph)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae", "eight_schools", "hidden_markov"])
def test_what_inductor_makes_of_it_is_the_same(name):
    equal_to_eager(*tiny(name), "guide", None)


@pytest.mark.slow
def test_annealing_finds_the_same_evidence(as_graph):
    lvm, batch = tiny("ppca")
    eager, found = (ais(lvm, batch, SHORT, compile=c) for c in (False, True))
    torch.testing.assert_close(found.bound.values, eager.bound.values, rtol=1e-4, atol=1e-4)
    assert len(as_graph) == 2  # of the pilot's chains, and of the others
    both, told = (bdmc(lvm, SHORT, num_simulations=5, compile=c) for c in (False, True))
    torch.testing.assert_close(told.gap.values, both.gap.values, rtol=1e-3, atol=1e-3)


def test_a_program_serves_all_batches_and_the_last_smaller_one_is_eager(as_graph):
    lvm, batch = tiny("ppca")
    eager, found = (ais(lvm, batch, SHORT, compile=c, batch_size=3) for c in (False, True))
    assert len(batch) % 3, "the last batch has to be smaller"
    assert len(as_graph) == 2
    torch.testing.assert_close(found.bound.values, eager.bound.values, rtol=1e-4, atol=1e-4)


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


def test_what_cannot_be_traced_is_told_in_one_line_and_runs_eagerly(as_graph, capsys):
    x = torch.randn(4)
    found = ais(Reading(), x, SHORT, compile=True)
    said = capsys.readouterr().out
    assert "Reading: samples are run one by one" in said  # each for itself reads a value
    assert said.count("The densities of Reading are not compiled") == 1
    assert "reads the value of a tensor" in said
    torch.testing.assert_close(
        found.bound.values, ais(Reading(), x, SHORT, compile=False).bound.values
    )


def _shifted(function, inputs):
    """A compiler whose programs are a hundredth off."""
    run = graph(function, inputs)
    return lambda *given: [1.01 * t for t in run(*given)]


def test_slopes_that_differ_are_refused(monkeypatch, capsys):
    monkeypatch.setattr("vilvm.evaluation.density_gradients.inductor", _shifted)
    lvm, batch = tiny("ppca")
    ais(lvm, batch, SHORT, compile=True)
    assert "is not what is found eagerly" in capsys.readouterr().out


class Counting(Reading):
    """A model whose density depends on how many of its data are positive, counted in Python."""

    def model(self, x):
        scale = 1.0 + int((x.detach().numpy() > 0).sum())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)


def test_a_program_that_is_right_for_one_batch_only_is_dropped_at_the_next(as_graph, capsys):
    x = torch.tensor([0.1, 0.4, 0.7, 1.0, -3.0, 5.0, -8.0, 2.0])
    for call, told in (
        (lambda c: ais(Counting(), x, SHORT, batch_size=4, compile=c).bound.values, "densities"),
        (
            lambda c: (
                evaluate(Counting(), x, num_samples=50, chunk=10, batch_size=4, compile=c)
                .bounds["iwae"]
                .values
            ),
            "evaluation",
        ),
    ):
        torch.testing.assert_close(call(True), call(False), rtol=1e-5, atol=1e-5)
        assert f"The {told} of Counting " in capsys.readouterr().out
    assert as_graph


def test_a_program_that_fails_is_not_taken(monkeypatch, capsys):
    def failing(*args):
        def run(*given):
            raise RuntimeError("a kernel fails")

        return run

    for user in ("density_gradients", "sample_passes"):
        monkeypatch.setattr(f"vilvm.evaluation.{user}.inductor", failing)
    lvm, batch = tiny("ppca")
    assert ais(lvm, batch, SHORT, compile=True).bound.values.isfinite().all()
    assert (
        evaluate(lvm, batch, num_samples=50, chunk=10, compile=True)
        .bounds["elbo"]
        .values.isfinite()
        .all()
    )
    assert capsys.readouterr().out.count("its program fails (a kernel fails") == 2


def test_a_density_that_is_nan_is_named(as_graph):
    class Broken(Reading):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(torch.sqrt(z), 1.0, validate_args=False), obs=x)

    with pytest.raises(ContractError, match="NaN"):
        ais(Broken(), torch.randn(4), SHORT, compile=True)


def test_pareto_k_is_the_same(as_graph):
    lvm, batch = tiny("vae")
    eager, found = (
        pareto_k(lvm, batch, batch_size=len(batch), num_samples=8_000 * 3, compile=c)
        for c in (False, True)
    )
    assert as_graph
    torch.testing.assert_close(found.k, eager.k, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.ess, eager.ess, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("call", [ais, bdmc, pareto_k])
def test_an_unknown_choice_is_refused(call):
    with pytest.raises(ValueError, match="unknown compile='yes'; choose True, False or 'auto'"):
        call(Reading(), **({} if call is bdmc else {"data": torch.randn(4)}), compile="yes")
