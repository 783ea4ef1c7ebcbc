"""Objectives in ``fit``: the compiled step is the eager one, and pairs of any kind are trained."""

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

import vilvm
from tests.objectives.linear_gaussian import (
    SharedMean,
    Subsampled,
    factor_analysis,
    two_layers,
)
from vilvm._compile import graph
from vilvm.lvm import ContractError
from vilvm.models import gaussian_mixture
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
    options = {"steps": 6, "seed": 1} | options
    run = vilvm.fit(lvm, x, objective=objective, compile=compile, **options)
    return run, [p.detach().clone() for p in lvm.parameters()]


@pytest.fixture(autouse=True)
def _traced_without_inductor(monkeypatch):
    monkeypatch.setattr(compiled_step, "machine_code", graph)


# the one that uses every way to change a gradient; the others are slow
QUICK = {"DReG"}


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in OBJECTIVES],
)
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


@pytest.mark.parametrize("name", OBJECTIVES)
def test_plain_svi_steps_as_the_objective_says(name):
    lvm, x = two_layers()
    svi = SVI(lvm.model, lvm.guide, pyro.optim.SGD({"lr": 1e-3}), OBJECTIVES[name]())
    before = [p.detach().clone() for p in lvm.parameters()]
    losses = [svi.step(x) for _ in range(2)]
    assert all(isinstance(loss, float) for loss in losses)
    assert all((a != b).all() for a, b in zip(before, lvm.parameters(), strict=True))


def test_subsampled_plate_trains_by_the_bound_per_datum():
    lvm, x = factor_analysis(exact=True)
    pair = Subsampled(lvm, size=len(x))
    run = vilvm.fit(
        pair, x, steps=1, batch_size=5, objective=IWAE(4), optimizer=torch.optim.SGD
    )
    evidence = factor_analysis(exact=True)[0].exact_log_evidence(x)
    parts = torch.combinations(evidence, 5).mean(-1)
    assert (parts - run.history[-1].elbo).abs().min() < 1e-5


def test_shared_latent_trains_by_the_joint_bound():
    x = torch.tensor([0.5, 1.0, -0.2])
    lvm = SharedMean(loc=x.sum().item() / 4, scale=0.5)  # the posterior
    run = vilvm.fit(lvm, x, steps=1, objective=IWAE(4), compile=False)
    covariance = torch.eye(3) + 1.0
    evidence = torch.distributions.MultivariateNormal(torch.zeros(3), covariance)
    assert run.history[-1].elbo == pytest.approx(evidence.log_prob(x).item(), rel=1e-5)


def test_pair_that_does_not_vectorise_runs_particles_one_by_one(capsys):
    lvm, x = two_layers()

    def model(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", pyro.distributions.Normal(x.new_zeros(()), 1.0))
            loc = lvm.a * z2.reshape(len(x))
            z1 = pyro.sample("z1", pyro.distributions.Normal(loc, 1.0))
            pyro.sample("x", pyro.distributions.Normal(lvm.b * z1, 1.0), obs=x)

    pair = vilvm.Pair(model, lvm.guide)
    objective = IWAE(3)
    vilvm.fit(pair, x, steps=2, objective=objective)
    assert objective.vectorize_particles  # set back after the run
    assert "torch.vmap" in capsys.readouterr().out


def test_enumerated_latent_is_refused():
    lvm, x = gaussian_mixture.tiny()
    with pytest.raises(ContractError, match="TraceEnum_ELBO"):
        vilvm.fit(lvm, x, steps=1, objective=IWAE(3))
