"""Objectives in ``fit``: the compiled step is the eager one, and pairs of any kind are trained."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

import vilvm
from tests.objectives.linear_gaussian import Subsampled, factor_analysis, two_layers
from vilvm._compile import graph
from vilvm.lvm import Pair
from vilvm.objectives import IWAE, STL, Annealed, BetaELBO, BetaTC, DReG, FreeBits
from vilvm.training import compiled_step

OBJECTIVES = {
    "IWAE": lambda: IWAE(4),
    "DReG": lambda: DReG(4),
    "STL": STL,
    "FreeBits": lambda: FreeBits(0.5),
    "BetaTC": lambda: BetaTC(4.0, latent="z1"),
    "BetaELBO": lambda: BetaELBO(4.0),
    "capacity": lambda: BetaELBO(50.0, capacity=1.0, capacity_steps=5),
    "warm-up of z2": lambda: Annealed(Trace_ELBO(), 5, sites=["z2"]),
    "warm-up of STL": lambda: Annealed(STL(), 5),
}


def trained(lvm, x, objective, compile, **options):
    """The run and the parameters after it."""
    options = {"steps": 12, "seed": 1} | options
    run = vilvm.fit(lvm, x, objective=objective, compile=compile, **options)
    return run, [p.detach().clone() for p in lvm.parameters()]


@pytest.fixture(autouse=True)
def _traced_without_inductor(monkeypatch):
    monkeypatch.setattr(compiled_step, "inductor", graph)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_compiled_run_equals_the_eager_one(name, capsys):
    found = []
    for compile in (False, True):
        lvm, x = two_layers()
        run, parameters = trained(lvm, x, OBJECTIVES[name](), compile, batch_size=3)
        found.append(parameters)
    assert run.compile_seconds > 0
    assert "runs eagerly" not in capsys.readouterr().out
    start = [p.detach() for p in two_layers()[0].parameters()]
    assert all((a != b).all() for a, b in zip(start, found[0], strict=True))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
